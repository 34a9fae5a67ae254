"""Who spent what on which model, and what a baseline model would have cost instead.

Each attempt is billed to the model that was asked, failed ones included. Savings compare only what
can be compared: requests that were answered and for which the baseline's cost was expected when
they were decided. That cost is an estimate, so savings are one.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final, Literal, TypeAlias

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    Engine,
    Select,
    case,
    cast,
    func,
    literal_column,
    select,
)

from router_runtime.config import RuntimeConfig
from router_runtime.service.store.queries import usd_of, usd_sums
from router_runtime.service.store.tables import attempts, decisions, losses

By: TypeAlias = Literal["key", "model", "day"]

NO_ANSWER: Final = "(no answer)"
_DAY_S: Final = 86_400


@dataclass(frozen=True, slots=True)
class Spending:
    """One line of the report, or its total.

    Parameters
    ----------
    name : str
        The key's id, the model or the day (UTC).
    requests : int
        By model: those that it answered.
    attempts, failed : int
        Calls, and those of them that brought no answer.
    input_tokens, output_tokens : int
    cost_usd, estimated_usd : Decimal
        All, and the part of it whose usage was not reported.
    unpriced : int
        Calls to candidates without a price.
    lost : int
        Records that could not be kept; what they cost is in ``cost_usd``, not their tokens.
    compared : int
        Requests that savings are told of.
    saved_usd : float
        What the baseline was expected to cost for those, less what they did cost.
    baseline_usd : float
        The former.
    """

    name: str
    requests: int = 0
    attempts: int = 0
    failed: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost_usd: Decimal = Decimal(0)
    estimated_usd: Decimal = Decimal(0)
    unpriced: int = 0
    lost: int = 0
    compared: int = 0
    baseline_usd: float = 0.0
    saved_usd: float = 0.0

    @property
    def saved_share(self) -> float | None:
        """Savings as a share of the baseline; None where nothing can be compared."""
        return self.saved_usd / self.baseline_usd if self.baseline_usd else None


@dataclass(frozen=True, slots=True)
class SpendingReport:
    """Lines by name, and their total.

    Parameters
    ----------
    by : {"key", "model", "day"}
    baseline : str or None
        The model that savings are told against.
    lines : tuple of Spending
    total : Spending
    """

    by: By
    baseline: str | None
    lines: tuple[Spending, ...]
    total: Spending


@dataclass(slots=True)
class _Sums:
    values: dict[str, dict[str, Any]] = field(default_factory=lambda: defaultdict(dict))

    def add(self, name: object, **found: Any) -> None:
        values = self.values[str(name)]
        for column, value in found.items():
            values[column] = values.get(column, 0) + value


def baseline_of(config: RuntimeConfig) -> str | None:
    """Return the model that savings are told against: the configured, or the dearest by output."""
    if config.service.baseline_model is not None:
        return config.service.baseline_model
    priced = [(c.price.output_mtok, c.price.input_mtok, c) for c in config.candidates if c.price]
    return max(priced, key=lambda entry: entry[:2])[2].id if priced else None


def spending(
    engine: Engine,
    *,
    by: By = "model",
    since: float | None = None,
    key_id: str | None = None,
    baseline: str | None = None,
) -> SpendingReport:
    """Sum up what was spent.

    Parameters
    ----------
    engine : Engine
    by : {"key", "model", "day"}
    since : float or None
        Seconds since the epoch.
    key_id : str or None
        Only of this key.
    baseline : str or None
        Candidate that savings are told against; None: no savings are told.
    """
    sums = _Sums()
    with engine.connect() as connection:
        _add_attempts(sums, connection, by, since=since, key_id=key_id)
        _add_requests(sums, connection, by, since=since, key_id=key_id)
        _add_losses(sums, connection, by, since=since, key_id=key_id)
        if baseline is not None:
            _add_savings(sums, connection, by, baseline, since=since, key_id=key_id)
    lines = tuple(Spending(name, **sums.values[name]) for name in sorted(sums.values))
    return SpendingReport(by, baseline, lines, _total(lines))


def _add_attempts(
    sums: _Sums, connection: Connection, by: By, *, since: float | None, key_id: str | None
) -> None:
    c = attempts.c
    name = {"key": c.key_id, "model": c.model_id, "day": _day(c.at)}[by]
    failed = case((c.error.is_(None) | (c.error == "cut"), 0), else_=1)
    query = select(
        name,
        c.estimated,
        func.count(),
        func.sum(failed),
        func.coalesce(func.sum(c.input_tokens), 0),
        func.coalesce(func.sum(c.output_tokens), 0),
        func.count() - func.count(c.cost_usd),
        *usd_sums(c.cost_usd),
    ).group_by(literal_column("1"), c.estimated)
    for row in connection.execute(_limited(query, c, since, key_id)):
        label, estimated, calls, bad, into, out, unpriced, *usd = row
        cost = usd_of(*usd)
        sums.add(
            _label(label, by),
            attempts=int(calls),
            failed=int(bad),
            input_tokens=int(into),
            output_tokens=int(out),
            unpriced=int(unpriced),
            cost_usd=cost,
            estimated_usd=cost if estimated else Decimal(0),
        )


def _add_requests(
    sums: _Sums, connection: Connection, by: By, *, since: float | None, key_id: str | None
) -> None:
    c = decisions.c
    query = select(_name(by), func.count()).group_by(literal_column("1"))
    for label, requests in connection.execute(_limited(query, c, since, key_id)):
        sums.add(_label(label, by), requests=int(requests))


def _add_losses(
    sums: _Sums, connection: Connection, by: By, *, since: float | None, key_id: str | None
) -> None:
    c = losses.c
    name = {"key": c.key_id, "model": c.reason, "day": _day(c.at)}[by]
    query = select(name, func.sum(c.records), *usd_sums(c.cost_usd)).group_by(literal_column("1"))
    for label, records, *usd in connection.execute(_limited(query, c, since, key_id)):
        shown = f"(lost: {label})" if by == "model" else _label(label, by)
        sums.add(shown, lost=int(records), cost_usd=usd_of(*usd))


def _add_savings(
    sums: _Sums,
    connection: Connection,
    by: By,
    baseline: str,
    *,
    since: float | None,
    key_id: str | None,
) -> None:
    c = decisions.c
    expected = c.expected_cost[baseline].as_float()
    query = (
        select(_name(by), func.count(), func.sum(expected), *usd_sums(c.cost_usd))
        .where(c.served.is_not(None), expected.is_not(None))
        .group_by(literal_column("1"))
    )
    for label, requests, would, *usd in connection.execute(_limited(query, c, since, key_id)):
        sums.add(
            _label(label, by),
            compared=int(requests),
            baseline_usd=float(would),
            saved_usd=float(would) - float(usd_of(*usd)),
        )


def _name(by: By) -> ColumnElement[Any]:
    c = decisions.c
    names: dict[By, ColumnElement[Any]] = {"key": c.key_id, "model": c.served, "day": _day(c.at)}
    return names[by]


def _day(at: ColumnElement[float]) -> ColumnElement[int]:
    """Return the number of a UTC day; times are after 1970, so that cutting off rounds down."""
    return cast(func.floor(at / _DAY_S), BigInteger)


def _label(value: object, by: By) -> str:
    if by == "day":
        return datetime.fromtimestamp(int(str(value)) * _DAY_S, UTC).date().isoformat()
    return NO_ANSWER if value is None else str(value)


def _limited(query: Select[Any], columns: Any, since: float | None, key_id: str | None) -> Any:
    if since is not None:
        query = query.where(columns.at >= since)
    return query if key_id is None else query.where(columns.key_id == key_id)


def _total(lines: Iterable[Spending]) -> Spending:
    sums = _Sums()
    names = [name for name in Spending.__dataclass_fields__ if name != "name"]
    for line in lines:
        sums.add("", **{name: getattr(line, name) for name in names})
    total = sums.values[""]
    for name in ("baseline_usd", "saved_usd"):
        total[name] = math.fsum(getattr(line, name) for line in lines)
    return Spending("total", **total)
