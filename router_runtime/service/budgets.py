"""Money of keys: calendar periods, whole nano-dollars, and reserve-then-settle in one process.

A budget may not be passed by requests that run at the same time and do not yet know their cost.
So the most that a request is expected to cost is reserved before it is sent, and replaced by what
it did cost when it has ended. Money is counted in whole nano-dollars, each amount rounded up: sums
are exact, never too low, and are the same in Python and in a script on Redis, whose numbers are
doubles (exact up to nine million dollars).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import ROUND_CEILING, Decimal

from router_runtime.errors import RequestError
from router_runtime.service.values import KeyLimits

NANO = 1_000_000_000
_MOST = 2**53 - 1


@dataclass(frozen=True, slots=True)
class Period:
    """A UTC calendar day or month.

    Parameters
    ----------
    name : str
        ``d:2026-11-21`` or ``m:2026-11``.
    start_s, end_s : float
        Seconds since the epoch; ``end_s`` belongs to the next one.
    """

    name: str
    start_s: float
    end_s: float

    @property
    def noun(self) -> str:
        """``day`` or ``month``."""
        return "day" if self.name.startswith("d") else "month"


def periods_at(at_s: float) -> tuple[Period, Period]:
    """Return the day and the month that contain a time in seconds since the epoch."""
    moment = datetime.fromtimestamp(at_s, UTC)
    day = moment.replace(hour=0, minute=0, second=0, microsecond=0)
    month = day.replace(day=1)
    next_month = (month + timedelta(days=32)).replace(day=1)
    return (
        Period(f"d:{day:%Y-%m-%d}", day.timestamp(), (day + timedelta(days=1)).timestamp()),
        Period(f"m:{month:%Y-%m}", month.timestamp(), next_month.timestamp()),
    )


def to_nano(usd: Decimal) -> int:
    """Return whole nano-dollars, rounded up; amounts beyond any budget are cut to the largest."""
    if usd <= 0:
        return 0
    return min(int((usd * NANO).to_integral_value(ROUND_CEILING)), _MOST)


def from_nano(nano: int) -> Decimal:
    """Return US dollars, exactly."""
    return Decimal(nano).scaleb(-9)


def limits_nano(limits: KeyLimits) -> tuple[int | None, int | None]:
    """Return the day's and the month's budget in nano-dollars; None where there is none."""
    day, month = limits.usd_per_day, limits.usd_per_month
    return (None if day is None else to_nano(day)), (None if month is None else to_nano(month))


def budget_exceeded(
    period: Period, *, limit_nano: int, left_nano: int, wanted_nano: int
) -> RequestError:
    """Return the error for a request that may cost more than a key's period has left."""
    until = datetime.fromtimestamp(period.end_s, UTC)
    return RequestError(
        f"This key's budget of {_dollars(limit_nano)} USD per {period.noun} has "
        f"{_dollars(max(left_nano, 0))} USD left, and this request may cost "
        f"{_dollars(wanted_nano)} USD. Ask for fewer tokens (max_tokens), for a cheaper model, or "
        f"again after {until:%Y-%m-%d %H:%M} UTC.",
        status=402,
        code="budget_exceeded",
    )


def _dollars(nano: int) -> str:
    return f"{from_nano(nano):f}".rstrip("0").rstrip(".") or "0"


@dataclass(slots=True)
class PeriodMoney:
    """What one key has spent and reserved in one period, in nano-dollars.

    Parameters
    ----------
    period : Period
    spent, reserved : int
    retry_seed_s : float or None
        When what was spent before must be asked for again; None: it is known.
    """

    period: Period
    spent: int = 0
    reserved: int = 0
    retry_seed_s: float | None = 0.0

    def needs_seed(self, now_s: float) -> bool:
        """Whether what was spent before this process started is to be asked for now."""
        return self.retry_seed_s is not None and now_s >= self.retry_seed_s

    def seed(self, spent_nano: int) -> None:
        """Take what was spent according to the store.

        What was counted here before, while the store could not be asked, is part of it.
        """
        self.spent = max(self.spent, spent_nano)
        self.retry_seed_s = None

    def left(self, limit_nano: int) -> int:
        """Return what is neither spent nor reserved; negative where a call cost too much."""
        return limit_nano - self.spent - self.reserved


@dataclass(slots=True)
class Ledger:
    """Money of one key in this process, in the current day and month.

    A request belongs to the day and month in which it was admitted, as it does in the store; it
    keeps them, so that one that ends after midnight is not counted twice.
    """

    day: PeriodMoney
    month: PeriodMoney

    @classmethod
    def opened(cls, now_s: float) -> Ledger:
        """Return the ledger of a key that was not seen before."""
        day, month = periods_at(now_s)
        return cls(PeriodMoney(day), PeriodMoney(month))

    def at(self, now_s: float) -> tuple[PeriodMoney, PeriodMoney]:
        """Return the money of the day and the month that contain a time."""
        if not self.day.period.start_s <= now_s < self.day.period.end_s:
            day, month = periods_at(now_s)
            self.day = PeriodMoney(day)
            if month.name != self.month.period.name:
                self.month = PeriodMoney(month)
        return self.day, self.month


def reserve(
    monies: tuple[PeriodMoney, PeriodMoney],
    limits: tuple[int | None, int | None],
    *,
    before_nano: int,
    wanted_nano: int,
) -> None:
    """Replace a request's reservation in its day and month, or leave both as they are.

    Asking for no more than is already reserved never fails.

    Raises
    ------
    RequestError
        402 ``budget_exceeded``.
    """
    more = wanted_nano - before_nano
    for money, limit in _limited(monies, limits):
        left = money.left(limit) + before_nano
        if more > 0 and wanted_nano > left:
            raise budget_exceeded(
                money.period, limit_nano=limit, left_nano=left, wanted_nano=wanted_nano
            )
    for money in monies:
        money.reserved += more


def settle(monies: tuple[PeriodMoney, PeriodMoney], *, reserved_nano: int, spent_nano: int) -> None:
    """Give a reservation back and count what was spent in its place."""
    for money in monies:
        money.reserved -= reserved_nano
        money.spent += spent_nano


def remaining(
    monies: tuple[PeriodMoney, PeriodMoney], limits: tuple[int | None, int | None]
) -> Decimal | None:
    """Return the dollars left in the tighter of the budgets, at least 0; None without one."""
    left = [money.left(limit) for money, limit in _limited(monies, limits)]
    return from_nano(max(min(left), 0)) if left else None


def _limited(
    monies: tuple[PeriodMoney, PeriodMoney], limits: tuple[int | None, int | None]
) -> Iterator[tuple[PeriodMoney, int]]:
    for money, limit in zip(monies, limits, strict=True):
        if limit is not None:
            yield money, limit
