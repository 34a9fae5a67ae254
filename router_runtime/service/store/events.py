"""A request as a line of the journal, and that line as rows of the tables.

A line is ``CRC32 JSON``, the checksum as eight hex digits over the JSON: what a crash has cut or a
disk has changed is told from what is whole, and the next line is found again. The JSON holds the
rows nearly as the tables do, so that turning it into them needs no knowledge of what made it, and a
replay by a later version needs none either. ``v`` changes when that is no longer so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from zlib import crc32

import orjson

from router_runtime.service.store.tables import to_pico
from router_runtime.service.values import Attempt, RouteEvent
from router_runtime.types import Json

_VERSION: Final = 1
_OPTIONS: Final = orjson.OPT_SERIALIZE_NUMPY


@dataclass(frozen=True, slots=True)
class Rows:
    """What one request adds to the tables, as these keep it: dollars in whole 10^-12.

    Parameters
    ----------
    decision : dict
    attempts : list of dict
    content : dict or None
    """

    decision: dict[str, Any]
    attempts: list[dict[str, Any]]
    content: dict[str, Any] | None

    @property
    def key_id(self) -> str:
        """Who asked."""
        return str(self.decision["key_id"])

    @property
    def at(self) -> float:
        """When, in seconds since the epoch."""
        return float(self.decision["at"])

    @property
    def cost_pico(self) -> int:
        """What all attempts cost, in 10^-12 dollars."""
        return int(self.decision["cost_usd"])


def cost_pico(event: RouteEvent) -> int:
    """Return what all attempts cost, in 10^-12 dollars: the sum of what is kept of each."""
    return sum(to_pico(a.cost_usd) for a in event.attempts if a.cost_usd is not None)


def encode(event: RouteEvent, *, content: bool) -> bytes:
    """Return the event as a line; messages only with ``content``."""
    attempts = [_attempt(attempt) for attempt in event.attempts]
    record = {
        "v": _VERSION,
        "decision": _decision(event, cost_pico=sum(a["cost_usd"] or 0 for a in attempts)),
        "attempts": attempts,
        "messages": event.messages if content else None,
    }
    try:
        text = orjson.dumps(record, default=_plain, option=_OPTIONS)
    except TypeError:  # a lone surrogate, in a name that a client sent or in a message
        text = orjson.dumps(_repaired(record), default=_plain, option=_OPTIONS)
    if b"\\u0000" in text:  # PostgreSQL holds no such text
        text = orjson.dumps(_repaired(record), default=_plain, option=_OPTIONS)
    return b"%08x %b\n" % (crc32(text), text)


def checked(line: bytes) -> bytes | None:
    """Return the JSON of a line; None where the line is cut or changed."""
    text = line[9:-1]
    whole = line[-1:] == b"\n" and line[:9] == b"%08x " % crc32(text)
    return text if whole else None


def decode(text: bytes) -> Rows | None:
    """Return what a line's JSON adds to the tables; None where another version wrote it."""
    try:
        record = orjson.loads(text)
        if record["v"] != _VERSION:
            return None
        decision = record["decision"]
        own = {name: decision[name] for name in ("decision_id", "at", "key_id")}
        attempts = [
            own | {"number": number} | attempt for number, attempt in enumerate(record["attempts"])
        ]
        messages = record["messages"]
    except (ValueError, LookupError, TypeError):
        return None
    if messages is None:
        return Rows(decision, attempts, None)
    kept = {
        "decision_id": decision["decision_id"],
        "at": decision["at"],
        "messages": orjson.dumps(messages).decode(),
    }
    return Rows(decision, attempts, kept)


def _decision(event: RouteEvent, *, cost_pico: int) -> dict[str, Json]:
    routed, served = event.routed, event.served
    decision = None if routed is None else routed.decision
    chosen = None if routed is None else routed.model_id
    return {
        "decision_id": event.decision_id,
        "at": event.at,
        "key_id": event.key_id,
        "endpoint": event.endpoint,
        "requested": event.requested,
        "chosen": chosen,
        "served": None if served is None else served.model_id,
        "reason": None if routed is None else str(routed.reason),
        "policy": None if routed is None else routed.policy,
        "artifact_id": "" if routed is None else routed.artifact_id,
        "config_sha256": event.config_sha256,
        "features_sha256": "" if routed is None else routed.features_sha256,
        "session": "" if routed is None else routed.session,
        "cached": routed is not None and routed.cached,
        "novelty": None if decision is None else decision.novelty,
        # The choice is deterministic: given what was predicted, no other was possible.
        "propensity": None if decision is None else 1.0,
        "ranking": () if routed is None else routed.ranking,
        "probabilities": {} if decision is None else decision.probabilities,
        "expected_cost": {} if routed is None else routed.expected_cost,
        "thresholds": {} if routed is None else routed.thresholds,
        "ineligible": {} if decision is None else decision.ineligible,
        "steps": [] if routed is None else [(step.name, step.reason) for step in routed.steps],
        "status": event.status,
        "stream": event.stream,
        "error": event.error,
        "total_s": event.total_s,
        "decide_s": 0.0 if routed is None else routed.decide_s,
        "encode_s": 0.0 if routed is None else routed.encode_s,
        "upstream_s": event.upstream_s,
        "estimated": any(attempt.estimated for attempt in event.attempts),
        "cost_usd": cost_pico,
    }


def _attempt(attempt: Attempt) -> dict[str, Json]:
    usage = attempt.usage
    return {
        "model_id": attempt.model_id,
        "error": attempt.error,
        "seconds": attempt.seconds,
        "first_byte_s": attempt.first_byte_s,
        "input_tokens": None if usage is None else usage.input_tokens,
        "output_tokens": None if usage is None else usage.output_tokens,
        "cached_input_tokens": None if usage is None else usage.cached_input_tokens,
        "images": None if usage is None else usage.images,
        "estimated": attempt.estimated,
        "cost_usd": None if attempt.cost_usd is None else to_pico(attempt.cost_usd),
    }


def _plain(value: object) -> Json:
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, set | frozenset):
        return sorted(value)
    raise TypeError(f"{type(value).__name__} has no place in a record")


def _repaired(value: Json) -> Json:
    """Replace what JSON can carry and UTF-8 or a database cannot."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode().replace("\0", "\ufffd")
    if isinstance(value, Mapping):
        return {_repaired(key): _repaired(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_repaired(item) for item in value]
    return value
