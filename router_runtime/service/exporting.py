"""Decisions with content and feedback become evaluation records, to train and evaluate on.

A record knows one score: that of the model that answered. The others are null, which training
reads as unscored and never as bad; ``propensity`` and ``policy`` say how the one came to be chosen.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import orjson
from sqlalchemy import ColumnElement, Engine, Select, func, select

from router_runtime.service.store.tables import attempts, content, decisions, feedback
from router_runtime.types import Json

_AT_A_TIME: Final = 200
_OF_DECISIONS: Final = (
    "decision_id",
    "at",
    "endpoint",
    "served",
    "session",
    "policy",
    "reason",
    "artifact_id",
    "propensity",
    "ranking",
    "probabilities",
)
_TOKENS: Final = ("input_tokens", "output_tokens", "cached_input_tokens")
_OF_ATTEMPTS: Final = (*_TOKENS, "seconds", "estimated", "cost_usd")


@dataclass(frozen=True, slots=True)
class Exported:
    """What became of the feedback that was asked for.

    Parameters
    ----------
    records : int
        Written.
    without_content : int
        Left out: the messages were not kept, or are deleted.
    not_served : int
        Left out: no model answered, or the request was no chat.
    """

    records: int
    without_content: int
    not_served: int


def export_feedback(
    engine: Engine, output: Path, *, key_id: str | None = None, since: float | None = None
) -> Exported:
    """Write a record for each decision with feedback, completely or not at all.

    Parameters
    ----------
    engine : Engine
    output : Path
        JSON lines.
    key_id : str or None
        Only of this key.
    since : float or None
        Only of decisions from then on, in seconds since the epoch.
    """
    counts = {"records": 0, "without_content": 0, "not_served": 0}
    output.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=output.parent, prefix=f".{output.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            for row in _rows(engine, key_id=key_id, since=since):
                kind = _kind(row)
                counts[kind] += 1
                if kind == "records":
                    file.write(orjson.dumps(_record(row)) + b"\n")
        os.replace(name, output)  # readable by its owner only: it holds what users wrote
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return Exported(**counts)


def _query(key_id: str | None, since: float | None) -> Select[Any]:
    last = (
        select(attempts.c.decision_id, func.max(attempts.c.number).label("number"))
        .where(attempts.c.error.is_(None) | (attempts.c.error == "cut"))
        .group_by(attempts.c.decision_id)
        .subquery()
    )
    answered = attempts.join(
        last,
        (attempts.c.decision_id == last.c.decision_id) & (attempts.c.number == last.c.number),
    )
    columns: list[ColumnElement[Any]] = [
        *(decisions.c[name] for name in _OF_DECISIONS),
        *(attempts.c[name] for name in _OF_ATTEMPTS),
        feedback.c.score,
        content.c.messages,
    ]
    query = (
        select(*columns)
        .join(feedback, feedback.c.decision_id == decisions.c.decision_id)
        .join(content, content.c.decision_id == decisions.c.decision_id, isouter=True)
        .join(answered, attempts.c.decision_id == decisions.c.decision_id, isouter=True)
        .order_by(decisions.c.at, decisions.c.decision_id)
    )
    if key_id is not None:
        query = query.where(decisions.c.key_id == key_id)
    return query if since is None else query.where(decisions.c.at >= since)


def _rows(
    engine: Engine, *, key_id: str | None, since: float | None
) -> Iterator[Mapping[str, Any]]:
    with engine.connect() as connection:
        streaming = connection.execution_options(yield_per=_AT_A_TIME)
        for row in streaming.execute(_query(key_id, since)):
            yield dict(row._mapping)


def _kind(row: Mapping[str, Any]) -> str:
    if row["served"] is None or row["endpoint"] != "chat":
        return "not_served"
    return "records" if row["messages"] is not None else "without_content"


def _record(row: Mapping[str, Any]) -> dict[str, Json]:
    served = row["served"]
    candidates = dict.fromkeys([*row["probabilities"], *row["ranking"], served])
    known = {
        "model_costs": _of(served, None if row["cost_usd"] is None else float(row["cost_usd"])),
        "model_usage": _of(served, _usage(row)),
        "model_seconds": _of(served, row["seconds"]),
    }
    return {
        "idx": row["decision_id"],
        "messages": orjson.loads(row["messages"]),
        "model_scores": {**candidates, served: row["score"]},
        **{name: value for name, value in known.items() if value},
        # Turns of one conversation must not part between training and test.
        **({"group": row["session"]} if row["session"] else {}),
        "dataset": "feedback",
        "at": row["at"],
        "policy": row["policy"],
        "reason": row["reason"],
        "propensity": row["propensity"],
        "artifact_id": row["artifact_id"],
    }


def _of(model_id: str, value: Json) -> dict[str, Json]:
    return {} if value is None else {model_id: value}


def _usage(row: Mapping[str, Any]) -> dict[str, int] | None:
    """Return reported tokens; estimates are not what costs are learned from."""
    if row["input_tokens"] is None or row["estimated"]:
        return None
    return {name: row[name] for name in _TOKENS}
