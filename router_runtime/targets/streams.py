"""A stream on its way from a target to whoever asked, from its first word to its end.

``start_stream`` holds a stream back until it says something: until then it can still be given up
for another candidate. A ``Stream`` is what has begun. However it ends, that is told once: to the
target's breaker, and as a ``Tried``.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Final

import orjson

from router_runtime.errors import (
    TargetConnectionError,
    TargetError,
    TargetStatusError,
    TargetTimeoutError,
)
from router_runtime.targets.breaker import Permit
from router_runtime.targets.replies import HIDDEN_KEY, Reply
from router_runtime.targets.sse import (
    EventCutter,
    StreamScan,
    data_of,
    is_done,
    is_error,
    is_event,
    json_of,
    says_nothing,
    split_events,
)
from router_runtime.types import Json

_MAX_HEAD: Final = 256 * 2**10

EMPTY: Final = "empty"
CUT: Final = "cut"
CANCELLED: Final = "cancelled"


@dataclass(frozen=True, slots=True)
class Tried:
    """One candidate of a request, called or passed over.

    Parameters
    ----------
    model_id : str
    error : str or None
        None: it answered. Else ``timeout``, ``connection``, ``status_503``, ``protocol``,
        ``empty``, ``cut`` (the stream broke), ``cancelled`` (nobody waits any more); and, without
        a call, ``budget``, ``breaker_open``, ``busy``.
    seconds, first_byte_s : float
        Until the end, and until the first byte that could be passed on.
    usage : JSON-like
        The ``usage`` object of the answer, of a failed one too; None where there was none.
    text_bytes : int
        Length of the answer's texts, for an estimate where no usage was told.
    """

    model_id: str
    error: str | None
    seconds: float = 0.0
    first_byte_s: float = 0.0
    usage: Json = field(default=None, repr=False)
    text_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Failed:
    """A call that came to nothing.

    Parameters
    ----------
    error : TargetError
    code : str
        As in ``Tried``.
    usage : JSON-like
        What the server says that the nothing has used.
    """

    error: TargetError
    code: str
    usage: Json = field(default=None, repr=False)


def failed(error: TargetError, *, usage: Json = None, code: str = "") -> Failed:
    """Return an error as a failed call."""
    return Failed(error, code or code_of(error), usage)


def code_of(error: TargetError) -> str:
    """Return the short name of a failure, as ``Tried`` lists them."""
    if isinstance(error, TargetTimeoutError):
        return "timeout"
    if isinstance(error, TargetConnectionError):
        return "connection"
    return f"status_{error.status}" if isinstance(error, TargetStatusError) else "protocol"


class Stream:
    """A stream that has begun.

    Iterate over ``chunks``, send ``ending`` when all is accounted for, and ``aclose`` it in any
    case.

    Parameters
    ----------
    model_id : str
    reply : Reply
    head : bytes
        What was read to see that it begins.
    hides_usage : bool
        The client did not ask for usage.
    permit : Permit or None
        Of the target's breaker.
    tried : list of Tried
        Where its end is noted.
    started : float
        When the call began.
    clock : callable
        Seconds, only going forward.

    Attributes
    ----------
    cut : TargetError or None
        Why the stream broke.
    first_byte_s : float
        How long it took to begin.
    """

    def __init__(
        self,
        model_id: str,
        reply: Reply,
        head: bytes,
        *,
        hides_usage: bool,
        permit: Permit | None,
        tried: list[Tried],
        started: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.model_id = model_id
        self.scan = StreamScan(hides_usage=hides_usage)
        self.cut: TargetError | None = None
        self._reply = reply
        self._head = head
        self._permit = permit
        self._tried = tried
        self._started = started
        self._clock = clock
        self.first_byte_s = clock() - started
        self._told = False

    @property
    def status(self) -> int:
        """The HTTP status."""
        return self._reply.status

    @property
    def content_type(self) -> str:
        """The header as it came."""
        return self._reply.content_type

    @property
    def headers(self) -> dict[str, str]:
        """The headers that may be told on."""
        return self._reply.headers

    @property
    def ending(self) -> bytes:
        """What ends a whole stream, ``[DONE]``; empty for one that broke."""
        return self.scan.ending if self.scan.complete else b""

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield what is to be passed on; then either ``cut`` is set or the stream is whole."""
        scan, reply = self.scan, self._reply
        data, self._head = self._head, b""
        try:
            while data:
                if passed := scan.feed(data):
                    yield passed if scan.error is None else self._without_key(passed)
                if scan.over:
                    break
                data = await reply.chunk()
            else:
                if passed := scan.close():
                    yield passed if scan.error is None else self._without_key(passed)
        except TargetError as error:
            self.cut = error
        if self.cut is None and not scan.complete:
            self.cut = self._why()
        self._tell(None if self.cut is None else CUT)

    async def aclose(self) -> None:
        """Free the connection; a stream that was not at its end is broken off."""
        if not self._told:
            self._tell(CANCELLED)
        if self.cut is None and self.scan.done:
            await self._reply.drain()
        self._reply.close()

    def _without_key(self, data: bytes) -> bytes:
        """Return what a server says of its failure, without the key should it be quoted."""
        for secret in self._reply.asked.private:
            data = data.replace(secret.encode(), HIDDEN_KEY)
        return data

    def _why(self) -> TargetError:
        asked, scan = self._reply.asked, self.scan
        if scan.error is not None:
            return self._reply.complained(scan.error)
        if scan.too_long:
            return asked.protocol_error("sent an event that is too long.")
        return asked.protocol_error("ended its stream before its answer ended.")

    def _tell(self, error: str | None) -> None:
        self._told = True
        scan, permit = self.scan, self._permit
        if permit is not None:
            if error is None:
                permit.success()
            elif error == CUT:
                permit.failure()
            else:
                permit.cancel()
        self._tried.append(
            Tried(
                self.model_id,
                error,
                self._clock() - self._started,
                self.first_byte_s,
                scan.usage,
                scan.text_bytes,
            )
        )


async def start_stream(reply: Reply) -> bytes | Failed:
    """Return the bytes up to the first event that says something, or why there is none.

    A role, empty texts and comments say nothing yet, and nobody misses them meanwhile.
    """
    asked = reply.asked
    kind = reply.content_type.partition(";")[0].strip().lower()
    if kind != "text/event-stream":
        return await _no_stream(reply, kind)
    cutter, read, size = EventCutter(), [], 0
    usage: Json = None
    while data := await reply.chunk():
        read.append(data)
        size += len(data)
        for event in split_events(cutter.feed(data) or b""):
            chunk = json_of(event)
            if chunk is None:
                if is_done(event):
                    return _empty(reply, usage)
                if data_of(event) is not None or not is_event(event):
                    return failed(asked.protocol_error("streamed what is no JSON."), usage=usage)
                continue
            if is_error(chunk):
                return failed(reply.complained(chunk), usage=usage)
            usage = chunk.get("usage") or usage
            if not says_nothing(chunk):
                reply.began()
                return b"".join(read)
        if size > _MAX_HEAD:
            return failed(asked.protocol_error(f"sent {size:,} bytes that say nothing."))
    return _empty(reply, usage)


def _empty(reply: Reply, usage: Json) -> Failed:
    error = reply.asked.protocol_error("answered an empty stream.")
    return failed(error, usage=usage, code=EMPTY)


async def _no_stream(reply: Reply, kind: str) -> Failed:
    """Say what came instead: an error as plain JSON, mostly."""
    if kind == "application/json":
        try:
            body = orjson.loads(await reply.read())
        except orjson.JSONDecodeError:
            body = None
        if isinstance(body, dict) and is_error(body):
            return failed(reply.complained(body), usage=body.get("usage"))
    return failed(reply.asked.protocol_error("answered no stream where one was asked for."))
