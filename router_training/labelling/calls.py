"""What was asked and how it ended: the values that asking, judging and tabulating share.

A call is named by a digest of all that its answer depends on, so an answer that is paid for is
found again whenever the same is asked: in a resumed run, after rows were added or moved, or by a
judge whose rubric did not change. Candidates and judges are asked alike, and their answers are kept
alike; scores are computed from what is kept, never stored beside it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from typing import Protocol

from router_runtime.pricing import Usage
from router_runtime.targets.base import ChatCall
from router_runtime.types import Json


class Status(StrEnum):
    """How a call ended."""

    ANSWERED = "answered"
    REFUSED = "refused"  # for good: asking the same again would fail again
    FAILED = "failed"  # every try failed, another run may succeed
    PENDING = "pending"  # not asked, or not to the end: a stopped target, the budget, Ctrl-C


@dataclass(frozen=True)
class Outcome:
    """How one call ended.

    Parameters
    ----------
    key : str
        Names the call, see ``call_key``.
    model_id : str
        The candidate or judge that was asked.
    status : Status
    text : str or None
        The answer; None unless answered.
    reason : str or None
        Why there is no answer, short and without content of the call.
    finish_reason : str or None
        As the provider says.
    usage : Usage or None
        As reported; None where nothing was reported.
    cost_usd : Decimal or None
        Of ``usage`` at the configured price, all tries together; None where either is unknown.
    seconds : float or None
        Of the try that answered.
    tries : int
        How often it was sent.
    """

    key: str
    model_id: str
    status: Status
    text: str | None = None
    reason: str | None = None
    finish_reason: str | None = None
    usage: Usage | None = None
    cost_usd: Decimal | None = None
    seconds: float | None = None
    tries: int = 0


class Asker(Protocol):
    """Gets a call's outcome: from what is kept, or by asking."""

    async def ask(self, model_id: str, call: ChatCall, *, repeat: int = 0) -> Outcome:
        """Return how the call ended.

        Parameters
        ----------
        model_id : str
            A candidate or judge of the config.
        call : ChatCall
        repeat : int
            Tells apart calls that are asked several times on purpose; part of the key.
        """
        ...


class Keeping(Protocol):
    """Keeps how calls ended, for all who ask: in this process, or for a cluster."""

    def claimed(self, key: str) -> AbstractAsyncContextManager[Outcome | None]:
        """Give the outcome that is kept, or None: then nobody else asks the same in the block."""
        ...

    async def append(self, outcome: Outcome, *, estimated_usd: Decimal | None = None) -> None:
        """Keep an ended call, and what it may have cost; return when it is durable."""
        ...


def call_key(model_id: str, model: str, call: ChatCall, *, repeat: int = 0) -> str:
    """Return the hex digest that names a call.

    Where the target is (URL, key, limits) is no part of it: a server that moved, or a key that
    changed, asks nothing again. The model that the server is asked for, the messages with their
    pictures and every parameter are.
    """
    content: Mapping[str, Json] = {
        "model_id": model_id,
        "model": model,
        "messages": list(call.messages),
        "parameters": dict(call.parameters),
        "repeat": repeat,
    }
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
