"""What the page at ``/ui`` shows: the caller's own requests, told from the store, and the targets.

A key sees what it did and nobody else's. Figures are read from the database, where records are a
moment after the answer; ``in_flight`` and the breakers are of this process.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from decimal import Decimal
from typing import Any, Final

import numpy as np
from sqlalchemy import BigInteger, ColumnElement, Engine, case, cast, func, literal_column, select

from router_runtime.service.spending import NO_ANSWER, Spending, baseline_of, spending
from router_runtime.service.store.queries import recent
from router_runtime.service.store.tables import decisions
from router_runtime.service.values import Caller
from router_runtime.types import Json

_RECENT: Final = 25
_TIMED: Final = 500
"""Newest requests whose latency is told: percentiles of all would read the whole table."""

_SLOTS: Final = 48
_CLIENT_LEFT: Final = 499

PARTS: Final = {
    "Whole request": "total_s",
    "Waiting for models": "upstream_s",
    "Deciding": "decide_s",
    "of it, encoding": "encode_s",
}


class Dashboard:
    """Reads the summary of a caller.

    Parameters
    ----------
    engine : Engine
        The store's database.
    config : callable
        The runtime config in force.
    breakers : callable
        State of each candidate's breaker: ``closed``, ``open`` or ``half_open``.
    in_flight, lost : callable
        Requests being served now, and records that could not be kept.
    clock : callable
        Seconds since the epoch.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        config: Callable[[], Any],
        breakers: Callable[[], Mapping[str, str]],
        in_flight: Callable[[], int],
        lost: Callable[[], int],
        clock: Callable[[], float],
    ) -> None:
        self._engine = engine
        self._config = config
        self._breakers = breakers
        self._in_flight = in_flight
        self._lost = lost
        self._clock = clock

    async def summary(self, caller: Caller, *, seconds: float) -> dict[str, Json]:
        """Return what the page draws, of the caller's last ``seconds``.

        Raises
        ------
        sqlalchemy.exc.SQLAlchemyError
            The database does not answer.
        """
        baseline = baseline_of(self._config())
        until = self._clock()
        found = await asyncio.to_thread(self._read, caller.key_id, until - seconds, until, baseline)
        states = sorted(self._breakers().items())
        return {
            **found,
            "baseline": baseline,
            "breakers": [
                {"model": model, "state": state} for model, state in states if caller.may_use(model)
            ],
            "in_flight": self._in_flight(),
            "records_lost": self._lost(),
        }

    def _read(
        self, key_id: str, since: float, until: float, baseline: str | None
    ) -> dict[str, Json]:
        report = spending(self._engine, since=since, key_id=key_id, baseline=baseline)
        total = report.total
        return {
            **self._ends(key_id, since),
            "requests": total.requests,
            "cost_usd": _number(total.cost_usd),
            "estimated_usd": _number(total.estimated_usd),
            "saved_usd": total.saved_usd if total.compared else None,
            "saved_share": total.saved_share if total.compared else None,
            "models": _models(report.lines),
            "timeline": self._timeline(key_id, since, until),
            "latency": self._latency(key_id, since),
            "recent": [
                {**asdict(each), "cost_usd": _number(each.cost_usd)}
                for each in recent(self._engine, limit=_RECENT, key_id=key_id)
            ],
        }

    def _ends(self, key_id: str, since: float) -> dict[str, Json]:
        """Count requests that failed, that their client left, and that called nobody."""
        c = decisions.c
        query = select(
            _count_if((c.status >= 400) & (c.status != _CLIENT_LEFT)),
            _count_if(c.status == _CLIENT_LEFT),
            _count_if((c.status < 400) & c.served.is_(None)),
        ).where(c.key_id == key_id, c.at >= since)
        with self._engine.connect() as connection:
            errors, left, decided_only = connection.execute(query).one()
        return {"errors": errors, "left": left, "decided_only": decided_only}

    def _timeline(self, key_id: str, since: float, until: float) -> list[dict[str, Json]]:
        """Count requests, and those that failed, in equal slots of the time."""
        c = decisions.c
        width = (until - since) / _SLOTS
        query = (
            select(
                cast(func.floor((c.at - since) / width), BigInteger),
                func.count(),
                _count_if((c.status >= 400) & (c.status != _CLIENT_LEFT)),
            )
            .where(c.key_id == key_id, c.at >= since)
            .group_by(literal_column("1"))
        )
        slots = [{"at": since + n * width, "requests": 0, "errors": 0} for n in range(_SLOTS)]
        with self._engine.connect() as connection:
            for number, requests, errors in connection.execute(query):
                slot = slots[min(int(number), _SLOTS - 1)]  # now, and what came since it was read
                slot["requests"] += requests
                slot["errors"] += errors
        return slots

    def _latency(self, key_id: str, since: float) -> list[dict[str, Json]]:
        c = decisions.c
        query = (
            select(*(c[column] for column in PARTS.values()))
            .where(c.key_id == key_id, c.at >= since, c.served.is_not(None))
            .order_by(c.at.desc())
            .limit(_TIMED)
        )
        with self._engine.connect() as connection:
            rows = np.array([tuple(row) for row in connection.execute(query)], dtype=np.float64)
        if not len(rows):
            return []
        middle, late = np.percentile(rows, (50, 95), axis=0)
        return [
            {"part": part, "p50_s": p50, "p95_s": p95}
            for part, p50, p95 in zip(PARTS, middle.tolist(), late.tolist(), strict=True)
        ]


def _models(lines: Sequence[Spending]) -> list[dict[str, Json]]:
    """Return models that answered or cost something, those that answered most first."""
    shown = [
        line
        for line in lines
        if line.name != NO_ANSWER and (line.requests or line.attempts or line.cost_usd)
    ]
    answered = sum(line.requests for line in shown)
    return [
        {
            "model": line.name,
            "requests": line.requests,
            "share": line.requests / answered if answered else 0.0,
            "failed": line.failed,
            "cost_usd": _number(line.cost_usd),
        }
        for line in sorted(shown, key=lambda line: (-line.requests, line.name))
    ]


def _count_if(condition: ColumnElement[bool]) -> ColumnElement[int]:
    return func.coalesce(func.sum(case((condition, 1), else_=0)), 0)


def _number(usd: Decimal) -> float:
    """Return dollars for drawing; the exact ones are in ``model-router spend``."""
    return float(usd)
