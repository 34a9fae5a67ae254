"""What is asked of the tables, on either database."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    Engine,
    delete,
    func,
    select,
    type_coerce,
    update,
)

from router_runtime.service.store.pending import HOUR_S
from router_runtime.service.store.tables import (
    content,
    decisions,
    feedback,
    from_pico,
    losses,
)

_SPLIT: Final = 10**6


def usd_sums(column: ColumnElement[Any]) -> tuple[ColumnElement[Any], ColumnElement[Any]]:
    """Return two columns for ``usd_of``: SQLite's sum of whole numbers may not pass 2^63."""
    pico = type_coerce(column, BigInteger)
    return func.sum(pico // _SPLIT), func.sum(pico % _SPLIT)


def usd_of(millionths: object, rest: object) -> Decimal:
    """Return the dollars that the two sums say; of no rows: 0."""
    whole, part = (int(str(value or 0)) for value in (millionths, rest))
    return from_pico(whole * _SPLIT + part)


def spent(engine: Engine, key_id: str, since: float) -> Decimal:
    """Return what the database knows that a key spent.

    Lost records are included; they are known by the hour, and of the hour of ``since`` all count.

    Parameters
    ----------
    engine : Engine
    key_id : str
    since : float
        Seconds since the epoch.
    """
    total = Decimal(0)
    with engine.connect() as connection:
        for table, first in ((decisions, since), (losses, since // HOUR_S * HOUR_S)):
            query = select(*usd_sums(table.c.cost_usd)).where(
                table.c.key_id == key_id, table.c.at >= first
            )
            total += usd_of(*connection.execute(query).one())
    return total


def owner(connection: Connection, decision_id: str) -> str | None:
    """Return the key that a decision was made for; None where there is no such decision."""
    query = select(decisions.c.key_id).where(decisions.c.decision_id == decision_id)
    found = connection.execute(query).scalar_one_or_none()
    return None if found is None else str(found)


@dataclass(frozen=True, slots=True)
class RecentDecision:
    """A line of the dashboard.

    Parameters
    ----------
    decision_id : str
    at : float
        Seconds since the epoch.
    key_id, endpoint, requested : str
    chosen, served, reason, policy, error : str or None
    status : int
    total_s : float
    cost_usd : Decimal
    estimated : bool
    score : float or None
        The feedback, if there is any.
    """

    decision_id: str
    at: float
    key_id: str
    endpoint: str
    requested: str
    chosen: str | None
    served: str | None
    reason: str | None
    policy: str | None
    error: str | None
    status: int
    total_s: float
    cost_usd: Decimal
    estimated: bool
    score: float | None


_RECENT: Final = tuple(
    name for name in RecentDecision.__dataclass_fields__ if name not in ("score",)
)


def recent(engine: Engine, *, limit: int, key_id: str | None = None) -> list[RecentDecision]:
    """Return the newest decisions, newest first, of one key or of all."""
    query = (
        select(*(decisions.c[name] for name in _RECENT), feedback.c.score)
        .join(feedback, feedback.c.decision_id == decisions.c.decision_id, isouter=True)
        .order_by(decisions.c.at.desc(), decisions.c.decision_id)
        .limit(limit)
    )
    if key_id is not None:
        query = query.where(decisions.c.key_id == key_id)
    with engine.connect() as connection:
        rows = connection.execute(query).all()
    return [RecentDecision(**row._mapping) for row in rows]


def decision(engine: Engine, decision_id: str, *, key_id: str | None = None) -> Any:
    """Return all that is kept of one decision as a mapping, without content; None: unknown.

    With ``key_id`` only of that key.
    """
    query = select(decisions).where(decisions.c.decision_id == decision_id)
    if key_id is not None:
        query = query.where(decisions.c.key_id == key_id)
    with engine.connect() as connection:
        row = connection.execute(query).one_or_none()
    return None if row is None else dict(row._mapping)


def forget_content(engine: Engine, *, before: float) -> int:
    """Delete messages, and comments of feedback, from before a time; return how many requests'."""
    with engine.begin() as connection:
        gone = connection.execute(delete(content).where(content.c.at < before)).rowcount
        connection.execute(
            update(feedback)
            .where(feedback.c.at < before, feedback.c.comment.is_not(None))
            .values(comment=None)
        )
    return gone
