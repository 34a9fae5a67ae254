"""Calling candidates from a program: whole answers and streams, over the same plan as the service.

A ranking comes from a router's decision; the forwarders from ``forward.build_forwarders``.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from router_runtime.targets.answers import read_completion
from router_runtime.targets.base import ChatCall, Completion
from router_runtime.targets.breaker import Breaker
from router_runtime.targets.dispatch import Rules, adispatch
from router_runtime.targets.forward import Forwarder
from router_runtime.targets.replies import Path
from router_runtime.targets.sse import EventCutter, is_error, json_of, split_events
from router_runtime.targets.streams import Stream
from router_runtime.targets.wholes import Whole
from router_runtime.types import Json

_CHAT: Final[Path] = "chat/completions"


@dataclass(frozen=True, slots=True)
class StreamPart:
    """A part of a streamed answer.

    Parameters
    ----------
    model_id : str
        Who answers.
    text : str
        What the first choice gains by it; may be empty.
    raw : mapping
        The event.
    """

    model_id: str
    text: str = field(repr=False)
    raw: Mapping[str, Json] = field(repr=False)


async def acomplete(
    ranking: Sequence[str],
    forwarders: Mapping[str, Forwarder],
    body: Mapping[str, Json],
    *,
    rules: Rules = Rules(),
    breakers: Mapping[str, Breaker] | None = None,
) -> Completion:
    """Return the first whole answer of the candidates.

    Parameters
    ----------
    ranking : sequence of str
        Candidates, best first.
    forwarders : mapping of model to Forwarder
    body : mapping
        ``messages`` and whatever else is to be sent.
    rules : Rules
    breakers : mapping of model to Breaker, optional

    Raises
    ------
    AllTargetsFailedError
        Every candidate that was tried failed.
    TargetError
        The request itself was refused, or the answer has no text for want of tokens.
    RequestError, NoEligibleModelError
        No candidate could be tried.
    """
    sent = {**body, "stream": False}
    if "stream" not in body:
        del sent["stream"]
    dispatched = await adispatch(ranking, forwarders, _CHAT, sent, rules=rules, breakers=breakers)
    answer = dispatched.answer
    if not isinstance(answer, Whole):
        raise dispatched.error()
    return read_completion(
        answer.asked,
        answer.body,
        model_id=answer.model_id,
        call=ChatCall(tuple(body.get("messages", ()))),
        seconds=dispatched.tried[-1].seconds,
        headers=answer.headers,
    )


def complete(
    ranking: Sequence[str],
    forwarders: Mapping[str, Forwarder],
    body: Mapping[str, Json],
    *,
    rules: Rules = Rules(),
    breakers: Mapping[str, Breaker] | None = None,
) -> Completion:
    """Return what ``acomplete`` returns, for programs without an event loop or inside of one.

    It runs in one thread of the process, in which connections live on from call to call.
    """
    work = acomplete(ranking, forwarders, body, rules=rules, breakers=breakers)
    return asyncio.run_coroutine_threadsafe(work, _background()).result()


async def astream(
    ranking: Sequence[str],
    forwarders: Mapping[str, Forwarder],
    body: Mapping[str, Json],
    *,
    rules: Rules = Rules(),
    breakers: Mapping[str, Breaker] | None = None,
) -> AsyncIterator[StreamPart]:
    """Yield an answer as it comes, from the first candidate that begins one.

    Raises
    ------
    AllTargetsFailedError, RequestError, NoEligibleModelError
        As ``acomplete``.
    TargetError
        The same, or the stream broke; then what came before is no whole answer.
    """
    sent = {**body, "stream": True}
    dispatched = await adispatch(
        ranking, forwarders, _CHAT, sent, rules=rules, breakers=breakers, asks_usage=False
    )
    stream = dispatched.answer
    if not isinstance(stream, Stream):
        raise dispatched.error()
    cutter = EventCutter()
    try:
        async for data in stream.chunks():
            for event in split_events(cutter.feed(data) or b""):
                chunk = json_of(event)
                if chunk is not None and not is_error(chunk):
                    yield StreamPart(stream.model_id, _text_of(chunk), chunk)
        if stream.cut is not None:
            raise stream.cut
    finally:
        await stream.aclose()


def _text_of(chunk: Mapping[str, Json]) -> str:
    choices = chunk.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    delta = first.get("delta") if isinstance(first, dict) and not first.get("index") else None
    text = delta.get("content") if isinstance(delta, dict) else None
    return text if isinstance(text, str) else ""


_loop: asyncio.AbstractEventLoop | None = None
_starting: Final = threading.Lock()


def _background() -> asyncio.AbstractEventLoop:
    """Return the event loop of the thread in which ``complete`` works."""
    global _loop
    with _starting:
        if _loop is None:
            _loop = asyncio.new_event_loop()
            threading.Thread(
                target=_loop.run_forever, name="model-router-calls", daemon=True
            ).start()
        return _loop
