"""The ``x-router-*`` headers: what is read of a request's, and what an answer carries.

Nothing that comes in is passed on to a candidate or back to the client. Of the prefix only
``x-router-debug`` means anything in a request; an answer's headers are all made here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache
from typing import Final
from urllib.parse import quote

from router_runtime.service.values import Routed

SCHEMA_VERSION: Final = b"1"
_LOOPBACK_HOSTS: Final = frozenset({"localhost", "127.0.0.1", "[::1]", "::1"})


def debug_asked(headers: Mapping[bytes, bytes]) -> bool:
    """Tell whether ``x-router-debug: true`` was sent."""
    return headers.get(b"x-router-debug", b"").strip().lower() == b"true"


def session_of(headers: Mapping[bytes, bytes], name: str) -> str | None:
    """Return what a client calls its conversation, None where it does not say."""
    value = headers.get(name.encode(), b"").strip()
    return value.decode("latin-1")[:256] or None


def named_loopback(headers: Mapping[bytes, bytes]) -> bool:
    """Tell whether ``Host`` names this machine, as it must where anybody is served.

    A page whose name was made to point here (DNS rebinding) still sends its own name.
    """
    host = headers.get(b"host", b"").decode("latin-1").strip().lower()
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
    return name in _LOOPBACK_HOSTS


@dataclass(frozen=True, slots=True)
class Told:
    """What an answer's headers say.

    Parameters
    ----------
    decision_id : str
    model_id : str or None
        The candidate that answered; None where none did.
    routed : Routed or None
    attempts : int
        Candidates that were asked.
    cost_usd : Decimal or float or None
        What the request cost, or is expected to.
    overhead_s : float
        Seconds that were not spent waiting for candidates.
    """

    decision_id: str
    model_id: str | None = None
    routed: Routed | None = None
    attempts: int = 0
    cost_usd: Decimal | float | None = None
    overhead_s: float = 0.0


def answer_headers(told: Told, *, debug: bool) -> list[tuple[bytes, bytes]]:
    """Return the headers of an answer; the details only where ``debug``."""
    headers = [
        (b"x-router-schema-version", SCHEMA_VERSION),
        (b"x-router-decision-id", told.decision_id.encode()),
    ]
    if told.model_id is not None:
        headers.append((b"x-router-model", _value(told.model_id)))
    routed = told.routed
    if routed is None:
        return headers
    headers.append((b"x-router-reason", _value(routed.reason)))
    headers.append((b"x-router-attempts", b"%d" % told.attempts))
    if routed.reason == "router_failure":
        headers.append((b"x-router-fallback", b"router_failure"))
    if debug:
        headers += _details(told, routed)
    return headers


def _details(told: Told, routed: Routed) -> list[tuple[bytes, bytes]]:
    details = [(b"x-router-overhead-ms", f"{told.overhead_s * 1000:.3f}".encode())]
    if routed.policy is not None:
        details.append((b"x-router-policy", _value(routed.policy)))
    model = told.model_id or routed.model_id
    if routed.decision is not None and model in routed.decision.probabilities:
        probability = routed.decision.probabilities[model]
        details.append((b"x-router-probability", f"{probability:.6f}".encode()))
    if told.cost_usd is not None:
        details.append((b"x-router-cost-usd", f"{told.cost_usd:.9f}".encode()))
    return details


@lru_cache(maxsize=1024)
def _value(text: str) -> bytes:
    """Return a configured name as a header may carry it: what is not plain ASCII is quoted."""
    return quote(text, safe="/:@+-_.,;=()[] ").encode()
