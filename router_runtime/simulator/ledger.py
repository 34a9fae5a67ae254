"""What each simulated model was asked and what that would have cost, exactly."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Final

from router_runtime.pricing import Price, Usage
from router_runtime.types import Json

_NOTHING: Final = Usage(0, 0)


@dataclass
class Account:
    """One model's.

    Parameters
    ----------
    price : Price or None
    requests : int
        Calls that named the model.
    answered : int
        Calls that were answered, and billed.
    refused : int
        Calls refused as malformed or unfit for the model.
    rate_limited : int
        Calls above a limit.
    faults : Counter
        Calls that met a fault, by kind; one that leaves the answer usable is answered too.
    usage : Usage
        Of the answered calls.
    in_flight, peak_in_flight : int
        Calls at this moment, and the most at a time.
    """

    price: Price | None
    requests: int = 0
    answered: int = 0
    refused: int = 0
    rate_limited: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    usage: Usage = _NOTHING
    in_flight: int = 0
    peak_in_flight: int = 0

    @property
    def cost_usd(self) -> Decimal:
        """Of the answered calls."""
        return Decimal(0) if self.price is None else self.price.cost(self.usage)

    def enter(self) -> None:
        """Count a call that begins."""
        self.in_flight += 1
        self.peak_in_flight = max(self.peak_in_flight, self.in_flight)

    def leave(self) -> None:
        """Count a call that ended, however it did."""
        self.in_flight -= 1

    def bill(self, usage: Usage) -> None:
        """Count an answer."""
        self.answered += 1
        self.usage += usage

    def clear(self) -> None:
        """Forget all but the calls in flight."""
        self.requests = self.answered = self.refused = self.rate_limited = 0
        self.faults.clear()
        self.usage = _NOTHING
        self.peak_in_flight = self.in_flight

    def to_json(self) -> dict[str, Json]:
        """Return all figures; USD as text, because JSON numbers are not exact."""
        return {
            "requests": self.requests,
            "answered": self.answered,
            "refused": self.refused,
            "rate_limited": self.rate_limited,
            "faults": dict(sorted(self.faults.items())),
            "input_tokens": self.usage.input_tokens,
            "output_tokens": self.usage.output_tokens,
            "images": self.usage.images,
            "cost_usd": f"{self.cost_usd:f}",
            "in_flight": self.in_flight,
            "peak_in_flight": self.peak_in_flight,
        }


def ledger_json(accounts: Mapping[str, Account]) -> dict[str, Json]:
    """Return the whole ledger."""
    total = sum((account.cost_usd for account in accounts.values()), Decimal(0))
    return {
        "simulated": True,
        "cost_usd": f"{total:f}",
        "models": {model: account.to_json() for model, account in accounts.items()},
    }
