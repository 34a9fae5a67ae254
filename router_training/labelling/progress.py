"""Who watches while targets are asked, and the watcher that shows a line per target.

On a terminal the lines are live; elsewhere (a log file, a job) plain lines come every few seconds.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal
from types import TracebackType
from typing import Final, Protocol

from rich.console import Console
from rich.live import Live
from rich.table import Table

from router_runtime.console import err, plain_table
from router_training.labelling.calls import Outcome, Status

_RATE_S: Final = 30  # seconds that the shown rate is the mean of
_REFRESH_PER_S: Final = 2.0


class Watch(Protocol):
    """Is told what happens while targets are asked."""

    def started(self, model_id: str, total: int | None) -> None:
        """Hear that a target has ``total`` cells more to go; None where nobody knows."""
        ...

    def ineligible(self, model_id: str) -> None:
        """Hear that one of the cells is not asked, because the target cannot serve it."""
        ...

    def ended(self, outcome: Outcome, *, asked: bool) -> None:
        """Hear how one of the cells ended; ``asked`` is False where that was kept already."""
        ...

    def stopped(self, model_id: str, why: str) -> None:
        """Hear that a target is not asked any more in this run."""
        ...

    def draining(self, calls: int) -> None:
        """Hear that nothing more is asked and that so many calls in flight are waited for."""
        ...


class Unwatched:
    """Looks away."""

    def started(self, model_id: str, total: int | None) -> None:
        """Ignore it."""

    def ineligible(self, model_id: str) -> None:
        """Ignore it."""

    def ended(self, outcome: Outcome, *, asked: bool) -> None:
        """Ignore it."""

    def stopped(self, model_id: str, why: str) -> None:
        """Ignore it."""

    def draining(self, calls: int) -> None:
        """Ignore it."""


@dataclass
class _Line:
    total: int | None = None
    answered: int = 0
    failed: int = 0
    pending: int = 0
    ineligible: int = 0
    cost_usd: Decimal = Decimal(0)
    unpriced: bool = False
    stopped: bool = False
    told: bool = False  # its last plain line was printed when it had finished
    recent: deque[list[float]] = field(default_factory=deque)  # [second, calls] of asked ones

    @property
    def done(self) -> int:
        """Cells that have an end in this run."""
        return self.answered + self.failed + self.ineligible

    @property
    def finished(self) -> bool:
        """Whether every cell has come to its turn; more may be announced later."""
        return self.total is not None and self.done + self.pending >= self.total

    def count(self, now: float) -> None:
        second = float(int(now))
        if self.recent and self.recent[-1][0] == second:
            self.recent[-1][1] += 1
        else:
            self.recent.append([second, 1])

    def rate(self, now: float, began: float) -> float:
        """Return calls per second of the last half minute."""
        while self.recent and self.recent[0][0] < now - _RATE_S:
            self.recent.popleft()
        calls = sum(n for _, n in self.recent)
        return calls / max(min(_RATE_S, now - began), 1.0)

    def eta_s(self, rate: float) -> float | None:
        if self.total is None or self.stopped or rate <= 0:
            return None
        return max(self.total - self.done - self.pending, 0) / rate


class LabelProgress:
    """Shows done, failed, rate, spending and remaining time of every target.

    Parameters
    ----------
    console : Console, optional
        Where; standard error by default.
    every_s : float
        Seconds between plain lines.
    clock : callable
        Seconds that only grow.
    """

    def __init__(
        self,
        console: Console = err,
        *,
        every_s: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console = console
        self._every_s = every_s
        self._clock = clock
        self._began = self._shown = clock()
        self._lines: dict[str, _Line] = {}
        self._live: Live | None = None
        if console.is_terminal:
            self._live = Live(
                get_renderable=self._table,
                console=console,
                refresh_per_second=_REFRESH_PER_S,
                transient=True,
            )

    def __enter__(self) -> LabelProgress:
        if self._live is not None:
            self._live.start(refresh=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is None:
            self._print()
        else:
            self._live.stop()

    def started(self, model_id: str, total: int | None) -> None:
        line = self._line(model_id)
        line.told = False
        if total is not None:
            line.total = (line.total or 0) + total

    def ineligible(self, model_id: str) -> None:
        self._line(model_id).ineligible += 1
        self._maybe_print()

    def ended(self, outcome: Outcome, *, asked: bool) -> None:
        line = self._line(outcome.model_id)
        if outcome.status is Status.ANSWERED:
            line.answered += 1
        elif outcome.status is Status.PENDING:
            line.pending += 1
        else:
            line.failed += 1
        if asked and outcome.status is not Status.PENDING:
            line.count(self._clock())
            line.cost_usd += outcome.cost_usd or 0
            line.unpriced |= outcome.status is Status.ANSWERED and outcome.cost_usd is None
        self._maybe_print()

    def stopped(self, model_id: str, why: str) -> None:
        self._line(model_id).stopped = True
        self._console.print(f"{model_id}: stopped: {why}")

    def draining(self, calls: int) -> None:
        self._console.print(f"waiting for {calls} calls in flight; Ctrl-C again abandons them")

    def _line(self, model_id: str) -> _Line:
        return self._lines.setdefault(model_id, _Line())

    def _maybe_print(self) -> None:
        now = self._clock()
        if self._live is None and now - self._shown >= self._every_s:
            self._shown = now
            self._print()

    def _print(self) -> None:
        for model_id, line in self._lines.items():
            if line.finished and line.told:
                continue
            line.told = line.finished
            done, failed, rate, usd, left = self._cells(model_id)
            text = f"{model_id}: {done} done, {failed} failed, {rate}/s, {usd}"
            self._console.print(f"{text}, {left} left" if left else text, soft_wrap=True)

    def _table(self) -> Table:
        table = plain_table("asking")
        table.add_column("target", overflow="ellipsis")
        for name in ("done", "failed", "per s", "USD", "left"):
            table.add_column(name, justify="right", no_wrap=True)
        for model_id in list(self._lines):  # another thread draws
            name = f"{model_id} (stopped)" if self._lines[model_id].stopped else model_id
            table.add_row(name, *self._cells(model_id))
        return table

    def _cells(self, model_id: str) -> tuple[str, str, str, str, str]:
        line, now = self._lines[model_id], self._clock()
        rate = line.rate(now, self._began)
        done = f"{line.done:,}" if line.total is None else f"{line.done:,}/{line.total:,}"
        usd = f"${line.cost_usd:.4f}" + ("+" if line.unpriced else "")
        return done, f"{line.failed:,}", f"{rate:.1f}", usd, _duration(line.eta_s(rate))


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
