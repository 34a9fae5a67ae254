"""A server on loopback whose answers are written byte by byte, as a test wants them."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager, suppress

import pytest


class Upstream:
    """Answers each request with the next of its replies; the last one is repeated.

    A reply is bytes or ``async (reader, writer) -> None``. ``Connection: close`` in a reply ends
    the connection, else it is kept.
    """

    def __init__(self, *replies):
        self.replies = list(replies)
        self.requests = []
        self.connections = 0
        self.hung_up = asyncio.Event()
        self.url = ""

    @property
    def bodies(self):
        return [json.loads(body) for _, _, body in self.requests]

    async def handle(self, reader, writer):
        self.connections += 1
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                pairs = (line.partition(":") for line in head[1:] if line)
                headers = {name.lower(): value.strip() for name, _, value in pairs}
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                self.requests.append((head[0], headers, body))
                reply = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
                if not isinstance(reply, bytes):
                    await reply(reader, writer)
                    break
                writer.write(reply)
                await writer.drain()
                if b"connection: close" in reply.lower():
                    break
        self.hung_up.set()
        writer.close()


def http(status, body, *headers, media_type="application/json"):
    """Return a whole response as bytes."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(data)}", f"Content-Type: {media_type}"]
    return "\r\n".join([*lines, *headers, "", ""]).encode() + data


def sse(*events, done=True, whole=True):
    """Return a streamed response as bytes; ``whole`` False leaves out its last chunk."""
    datas = [event if isinstance(event, str) else json.dumps(event) for event in events]
    datas += ["[DONE]"] if done else []
    body = b"".join(chunked(f"data: {data}\n\n".encode()) for data in datas)
    end = b"0\r\n\r\n" if whole else b""
    return SSE_HEAD + body + end


SSE_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)


def chunked(data):
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


def delta(content=None, *, finish=None, index=0, **more):
    found = {} if content is None else {"content": content}
    choice = {"index": index, "delta": {**found, **more}, "finish_reason": finish}
    return {"id": "c", "object": "chat.completion.chunk", "choices": [choice]}


@asynccontextmanager
async def serving(*replies):
    upstream = Upstream(*replies)
    listening = await asyncio.start_server(upstream.handle, "127.0.0.1", 0)
    upstream.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/v1"
    try:
        yield upstream
    finally:
        listening.close()


class Kit:
    """The functions above, for tests that cannot import this file."""

    http = staticmethod(http)
    sse = staticmethod(sse)
    chunked = staticmethod(chunked)
    delta = staticmethod(delta)
    serving = staticmethod(serving)
    sse_head = SSE_HEAD


@pytest.fixture(scope="session")
def kit():
    return Kit
