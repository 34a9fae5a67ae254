"""A provider's limits per minute, kept on our side, so that calls go elsewhere before it refuses.

Each process counts its own calls over any 60 seconds; what the provider answers stays the last
word.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Final

MINUTE_S: Final = 60.0


class MinuteQuota:
    """Calls and tokens of the last minute against their limits.

    Parameters
    ----------
    requests, tokens : int or None
        Most per minute; None: no limit.
    clock : callable
        Seconds that only go forward.
    """

    def __init__(
        self,
        requests: int | None,
        tokens: int | None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._requests = requests
        self._tokens = tokens
        self._clock = clock
        self._calls: deque[tuple[float, float]] = deque()
        self._used = 0.0

    @property
    def full(self) -> bool:
        """Whether another call would pass a limit; a single one of any size passes an idle one."""
        self._forget()
        if self._requests is not None and len(self._calls) >= self._requests:
            return True
        return self._tokens is not None and self._used >= self._tokens

    @property
    def free_in_s(self) -> float:
        """Seconds until the oldest call is a minute old."""
        self._forget()
        return self._calls[0][0] + MINUTE_S - self._clock() if self._calls else 0.0

    def count(self, tokens: float) -> None:
        """Count a call that is sent now."""
        self._calls.append((self._clock(), tokens))
        self._used += tokens

    def _forget(self) -> None:
        past = self._clock() - MINUTE_S
        while self._calls and self._calls[0][0] <= past:
            self._used -= self._calls.popleft()[1]
        if not self._calls:
            self._used = 0.0  # whatever rounding left
