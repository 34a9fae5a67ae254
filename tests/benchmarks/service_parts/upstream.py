"""An upstream that costs next to nothing: fixed answers over raw sockets, with usage.

Run as ``python -m service_parts.upstream '{"core": 1, "chunks": 20}'``; prints its URL and serves
until its standard input closes. A request whose body has ``"stream":true`` (or with a blank) gets
``chunks`` events, each written on its own; any other gets one JSON answer. ``delay_s`` is waited
before the answer.
"""

from __future__ import annotations

import asyncio
import json
import sys

from labelling_parts.machine import pin

_USAGE = {"prompt_tokens": 20, "completion_tokens": 20, "total_tokens": 40}


def _answer() -> bytes:
    body = json.dumps(
        {
            "id": "chatcmpl-0",
            "object": "chat.completion",
            "created": 0,
            "model": "fixed",
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": "word " * 20},
                    "finish_reason": "stop",
                }
            ],
            "usage": _USAGE,
        }
    ).encode()
    head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
    return head.encode() + b"\r\n" + body


def _events(chunks: int) -> list[bytes]:
    shared = {"id": "chatcmpl-0", "object": "chat.completion.chunk", "created": 0, "model": "fixed"}
    deltas = [{"role": "assistant", "content": ""}, *[{"content": "word "}] * (chunks - 1)]
    bodies = [
        {**shared, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]}
        for delta in deltas
    ]
    bodies.append({**shared, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    bodies.append({**shared, "choices": [], "usage": _USAGE})
    texts = [f"data: {json.dumps(body)}\n\n" for body in bodies] + ["data: [DONE]\n\n"]
    return [f"{len(text):x}\r\n{text}\r\n".encode() for text in texts] + [b"0\r\n\r\n"]


_STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
)


class _Upstream(asyncio.Protocol):
    def __init__(self, answer: bytes, events: list[bytes], delay_s: float) -> None:
        self._answer = answer
        self._events = events
        self._delay_s = delay_s
        self._data = b""
        self._loop = asyncio.get_running_loop()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._data += data
        while True:
            head, found, rest = self._data.partition(b"\r\n\r\n")
            if not found:
                return
            at = head.lower().find(b"content-length:")
            length = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
            if len(rest) < length:
                return
            body, self._data = rest[:length], rest[length:]
            streamed = b'"stream":true' in body or b'"stream": true' in body
            if self._delay_s:
                self._loop.call_later(self._delay_s, self._reply, streamed)
            else:
                self._reply(streamed)

    def _reply(self, streamed: bool) -> None:
        if not streamed:
            self._transport.write(self._answer)
            return
        self._transport.write(_STREAM_HEAD)
        self._next(0)

    def _next(self, at: int) -> None:
        if self._transport.is_closing():
            return
        self._transport.write(self._events[at])
        if at + 1 < len(self._events):
            self._loop.call_soon(self._next, at + 1)


async def _serve(chunks: int, delay_s: float, port: int) -> None:
    answer, events = _answer(), _events(chunks)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: _Upstream(answer, events, delay_s), "127.0.0.1", port, backlog=2048
    )
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await loop.run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    import uvloop

    settings = json.loads(sys.argv[1])
    pin(settings.get("core"))
    uvloop.run(
        _serve(settings.get("chunks", 20), settings.get("delay_s", 0.0), settings.get("port", 0))
    )
