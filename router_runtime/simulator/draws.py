"""Random numbers that depend on what they are for, not on what was drawn before.

A simulated model must answer a call alike whether it comes first or last, alone or among hundreds.
So there is no generator with a state: every number is a keyed digest of its own name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Final, TypeVar

T = TypeVar("T")

_NORMAL: Final = NormalDist()
_STEPS: Final = 2**53  # distinct floats in [0, 1)


@dataclass(frozen=True)
class Draws:
    """Named draws for one purpose.

    Parameters
    ----------
    key : bytes
        At most 64 bytes; equal keys draw equal numbers.
    """

    key: bytes = field(repr=False)

    @classmethod
    def of(cls, *parts: str | int) -> Draws:
        """Return the draws that belong to ``parts``, such as seed, model and messages."""
        digest = hashlib.sha256()
        for part in parts:
            data = str(part).encode("utf-8", "surrogatepass")
            digest.update(len(data).to_bytes(8, "big") + data)  # ("ab", "c") is not ("a", "bc")
        return cls(digest.digest())

    def integer(self, name: str) -> int:
        """Return a whole number in [0, 2**53)."""
        digest = hashlib.blake2b(name.encode(), key=self.key, digest_size=8).digest()
        return int.from_bytes(digest, "big") % _STEPS

    def uniform(self, name: str) -> float:
        """Return a number in [0, 1)."""
        return self.integer(name) / _STEPS

    def normal(self, name: str) -> float:
        """Return a number of the standard normal distribution."""
        return _NORMAL.inv_cdf((self.integer(name) + 0.5) / _STEPS)

    def pick(self, name: str, options: Sequence[T]) -> T:
        """Return one of ``options``, each as likely."""
        return options[self.integer(name) % len(options)]
