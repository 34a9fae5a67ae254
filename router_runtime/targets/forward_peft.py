"""Requests answered by LoRA experts in this process, with the bytes that a server would send.

The model works in a thread of its own; here its events become an answer or a stream in the event
loop of whoever asked.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path as FilePath
from typing import Final

from router_runtime.errors import (
    RequestError,
    TargetError,
    TargetStatusError,
    TargetTimeoutError,
)
from router_runtime.experts.batches import End, Piece
from router_runtime.experts.chat import Answers, ChatRequest, Lines, error_body
from router_runtime.experts.service import Experts, Running
from router_runtime.pricing import estimate_tokens
from router_runtime.target_config import PeftTargetConfig
from router_runtime.targets.failures import Asked, complaint_of
from router_runtime.targets.forward_base import ForwarderBase
from router_runtime.targets.peft import PROCESS, SharedExperts, check_served, failure_of
from router_runtime.targets.replies import Path, Refused, too_slow
from router_runtime.types import Json

_JSON: Final = "application/json"
_EVENTS: Final = "text/event-stream; charset=utf-8"


class LocalReply:
    """An answer of this process, as whoever reads a ``Reply`` wants it.

    Parameters
    ----------
    asked : Asked
    data : bytes
        What there is of the body.
    content_type : str
    running : Running or None
        Tells the rest, as a stream; None where ``data`` is all.
    lines : Lines or None
        Writes it.
    deadline : float
        On the event loop's clock; until then the stream must begin.
    idle_s : float
        Longest silence once ``began`` was called.
    """

    def __init__(
        self,
        asked: Asked,
        data: bytes,
        content_type: str,
        *,
        running: Running | None = None,
        lines: Lines | None = None,
        deadline: float,
        idle_s: float,
    ) -> None:
        self.asked = asked
        self.content_type = content_type
        self._data = data
        self._running = running
        self._lines = lines
        self._deadline: float | None = deadline
        self._idle_s = idle_s
        self._on_close: list[Callable[[], None]] = []

    @property
    def status(self) -> int:
        return 200

    @property
    def headers(self) -> dict[str, str]:
        return {}

    def began(self) -> None:
        self._deadline = None

    def complained(self, body: Mapping[str, Json]) -> TargetStatusError:
        return self.asked.status_error(200, complaint_of(body), headers={})

    async def read(self) -> bytes:
        parts = []
        while chunk := await self.chunk():
            parts.append(chunk)
        self.close()
        return b"".join(parts)

    async def chunk(self) -> bytes:
        data, self._data = self._data, b""
        if data or self._running is None or self._lines is None:
            return data
        failure: TargetError
        now = asyncio.get_running_loop().time
        try:
            async with asyncio.timeout_at(self._deadline or now() + self._idle_s):
                event: Piece | End | None = await self._running.next()
            while isinstance(event, Piece):
                data += self._lines.of(event)
                event = self._running.next_at_hand()
            if isinstance(event, End):
                data += self._lines.of(event)
                self._running = None
            return data
        except TimeoutError:
            failure = too_slow(self.asked) if self._deadline is not None else self._silent()
        except RequestError as error:
            failure = failure_of(self.asked, error)
        self.close()
        raise failure

    async def drain(self) -> None:
        self.close()

    def close(self) -> None:
        if self._running is not None:
            self._running.cancel()
            self._running = None
        told, self._on_close = self._on_close, []
        for callback in told:
            callback()

    def when_closed(self, told: Callable[[], None]) -> None:
        self._on_close.append(told)

    def _silent(self) -> TargetTimeoutError:
        return TargetTimeoutError(
            f"{self.asked.who} was silent for {self._idle_s:g} s in the middle of its answer. "
            "Raise 'stream_idle_s' if the model is slow.",
            retryable=True,
        )


class PeftForwarder(ForwarderBase):
    """Passes requests on to one expert in this process.

    Parameters
    ----------
    model_id : str
        The candidate's id.
    config : PeftTargetConfig
    experts : Experts
        With those that other candidates pass on to.
    give_back : callable
        Says that this one is done with them; called once.
    max_in_flight : int or None
        Calls at a time; None: no bound but the queue's.

    Raises
    ------
    ConfigError
        The model is none of the experts.
    """

    def __init__(
        self,
        model_id: str,
        config: PeftTargetConfig,
        experts: Experts,
        *,
        give_back: Callable[[], None],
        max_in_flight: int | None = None,
    ) -> None:
        check_served(model_id, config, experts)
        super().__init__(
            model_id,
            config,
            who=f"'{model_id}' in this process",
            identity=f"{config.experts.resolve()} {config.model or model_id}",
            max_in_flight=max_in_flight,
        )
        self._asked = Asked(self._who)
        self._experts = experts
        self._give_back: Callable[[], None] | None = give_back

    @property
    def busy(self) -> bool:
        return super().busy or self._experts.full

    async def open(
        self, path: Path, body: bytes, *, timeout_s: float, idle_s: float
    ) -> LocalReply | Refused:
        if super().busy:
            raise self._too_busy()
        if self._quota is not None:
            self._quota.count(estimate_tokens(len(body)))
        deadline = asyncio.get_running_loop().time() + timeout_s
        place = object()
        self._places.add(place)
        try:
            reply = await self._answer(path, body, deadline, timeout_s, idle_s)
        except BaseException as error:
            self._places.discard(place)
            if isinstance(error, RequestError):
                return self._refused(error)
            raise
        reply.when_closed(lambda: self._places.discard(place))
        return reply

    async def aclose(self) -> None:
        """Let the experts go; with the last who does, the model is forgotten."""
        give_back, self._give_back = self._give_back, None
        if give_back is not None:
            await asyncio.to_thread(give_back)

    async def _answer(
        self, path: Path, body: bytes, deadline: float, timeout_s: float, idle_s: float
    ) -> LocalReply:
        if path != "chat/completions":
            raise RequestError(
                "Experts in this process answer chats only.", status=404, code="not_found"
            )
        request = self._experts.read(json.loads(body))
        running = None
        try:
            async with asyncio.timeout_at(deadline):
                running = await self._experts.ask(request)
                event = await running.next()
                while isinstance(event, Piece) and not request.stream:
                    event = await running.next()
        except BaseException as error:
            if running is not None:
                running.cancel()
            if not isinstance(error, TimeoutError):
                raise
        else:
            return self._reply(request, running, event, deadline, idle_s)
        raise too_slow(self._asked, timeout_s)

    def _reply(
        self,
        request: ChatRequest,
        running: Running,
        event: Piece | End,
        deadline: float,
        idle_s: float,
    ) -> LocalReply:
        answers = Answers(request.model)
        if isinstance(event, End) and not request.stream:
            whole = json.dumps(answers.whole(event), separators=(",", ":")).encode()
            return LocalReply(self._asked, whole, _JSON, deadline=deadline, idle_s=idle_s)
        lines = Lines(answers, include_usage=request.include_usage)
        return LocalReply(
            self._asked,
            lines.of(event),
            _EVENTS,
            running=running if isinstance(event, Piece) else None,
            lines=lines,
            deadline=deadline,
            idle_s=idle_s,
        )

    def _refused(self, error: RequestError) -> Refused:
        body = json.dumps(error_body(error)).encode()
        return Refused(failure_of(self._asked, error), (error.code.lower(),), body, _JSON)


def build_peft_forwarders(
    experts: Mapping[FilePath, Mapping[str, tuple[PeftTargetConfig, int | None]]],
    *,
    shared: SharedExperts = PROCESS,
) -> dict[str, PeftForwarder]:
    """Return forwarders to experts, which are loaded as far as they are not; blocks meanwhile.

    Parameters
    ----------
    experts : mapping of path to mapping of model to (PeftTargetConfig, int or None)
        The candidates of each experts config, each with its ``max_in_flight``.
    shared : SharedExperts

    Raises
    ------
    RouterError
        They cannot be loaded, or a model is none of theirs; nothing stays loaded then.
    """
    built: dict[str, PeftForwarder] = {}
    taken: list[Experts] = []
    try:
        for file, targets in experts.items():
            found = shared.take(file, users=len(targets))
            taken += [found] * len(targets)
            for model_id, (config, bound) in targets.items():
                built[model_id] = PeftForwarder(
                    model_id,
                    config,
                    found,
                    give_back=partial(shared.give_back, found),
                    max_in_flight=bound,
                )
    except BaseException:
        for found in taken:
            shared.give_back(found)
        raise
    return built
