"""A closed loop of HTTP requests over raw sockets, so that the client is never the bottleneck.

Run as ``python -m service_parts.load SETTINGS``; prints what it measured as JSON. Every connection
sends its next request when the last answer is whole. Prompts differ, so that no cache of answers
or features helps.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from labelling_parts.machine import pin

_CODE = re.compile(rb'"code": ?"(\w+)"')
_WORDS = "sum river paper engine cloud table ladder signal forest number copper window".split()


@dataclass
class Settings:
    """What is sent: ``requests`` in all over ``connections``, after ``warm_up`` untimed ones.

    With a ``rate`` (requests per second) a connection waits for the next place in the schedule;
    without one it sends at once. ``seconds`` ends the load early. ``mixed`` streams every other
    request. Answers are judged: whole, an error as OpenAI words it, or broken.
    """

    host: str
    port: int
    model: str
    requests: int
    connections: int
    stream: bool = False
    warm_up: int = 50
    key: str | None = None
    core: int | None = None
    timeout_s: float = 60.0
    seconds: float | None = None
    rate: float | None = None
    mixed: bool = False
    nice: int = 0


@dataclass
class _Tally:
    statuses: Counter[int] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    seconds_ok: list[float] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)
    codes: Counter[str] = field(default_factory=Counter)
    cut: int = 0
    left: int = 0
    number: int = 0
    next_at: float = 0.0


class _Connection(asyncio.Protocol):
    def __init__(self, settings: Settings, tally: _Tally, done: asyncio.Event) -> None:
        self._settings, self._tally, self._done = settings, tally, done
        self._data = bytearray()
        self._started = 0.0
        self._waiting = False
        self.finished = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._send()

    def connection_lost(self, _: Exception | None) -> None:
        if not self.finished.done():
            self._tally.cut += not self._waiting
            self.finished.set_result(None)

    def data_received(self, data: bytes) -> None:
        self._data += data
        end = self._data.find(b"\r\n\r\n")
        if end < 0:
            return
        head = bytes(self._data[:end]).lower()
        at = head.find(b"content-length:")
        if at >= 0:
            if len(self._data) < end + 4 + int(head[at + 15 :].split(b"\r\n", 1)[0]):
                return
        elif not self._data.endswith(b"0\r\n\r\n") or len(self._data) == end + 4:
            return
        now = time.perf_counter()
        status = int(head[9:12])
        self._tally.statuses[status] += 1
        body = bytes(self._data[end + 4 :])
        kind = kind_of(status, body, streamed=at < 0)
        self._tally.kinds[kind] += 1
        if kind == "error":
            self._tally.codes[_code_of(body)] += 1
        self._tally.seconds.append(now - self._started)
        if status == 200:
            self._tally.seconds_ok.append(now - self._started)
        self._data.clear()
        self._send()

    def _send(self) -> None:
        if self._tally.left <= 0 or self._done.is_set():
            self._end()
            return
        self._tally.left -= 1
        if self._settings.rate is None:
            self._write()
            return
        now = time.perf_counter()
        at = max(self._tally.next_at, now)
        self._tally.next_at = at + 1 / self._settings.rate
        self._waiting = True
        asyncio.get_running_loop().call_later(at - now, self._write)

    def _write(self) -> None:
        self._waiting = False
        if self._done.is_set() or self._transport.is_closing():
            self._end()
            return
        self._tally.number += 1
        self._started = time.perf_counter()
        self._transport.write(_request(self._settings, self._tally.number))

    def _end(self) -> None:
        if not self.finished.done():
            self.finished.set_result(None)
        self._transport.close()


def kind_of(status: int, body: bytes, *, streamed: bool) -> str:
    """Return ``whole``, ``error`` (as OpenAI words it) or ``broken``."""
    if streamed:
        body = b"".join(_chunks(body))
        if status == 200:
            if body.endswith(b"data: [DONE]\n\n"):
                return "whole"
            last = body.rstrip().rpartition(b"\n\n")[2]
            return "error" if _is_error(last.removeprefix(b"data: ")) else "broken"
    if status != 200:
        return "error" if _is_error(body) else "broken"
    try:
        return "whole" if json.loads(body)["choices"] else "broken"
    except (ValueError, KeyError, TypeError):
        return "broken"


def _code_of(body: bytes) -> str:
    found = _CODE.search(body)
    return found[1].decode() if found else ""


def _is_error(body: bytes) -> bool:
    try:
        error = json.loads(body)["error"]
        return bool(error["message"]) and "code" in error and "type" in error
    except (ValueError, KeyError, TypeError):
        return False


def _chunks(body: bytes) -> Iterator[bytes]:
    while body:
        size, _, body = body.partition(b"\r\n")
        length = int(size, 16)
        yield body[:length]
        body = body[length + 2 :]


def _request(settings: Settings, number: int) -> bytes:
    words = " ".join(_WORDS[(number * 7 + i * i) % len(_WORDS)] for i in range(12))
    body = json.dumps(
        {
            "model": settings.model,
            "messages": [{"role": "user", "content": f"What is {number} + {number % 97}? {words}"}],
            **({"stream": True} if settings.stream or (settings.mixed and number % 2) else {}),
        },
        separators=(",", ":"),
    ).encode()
    key = f"authorization: Bearer {settings.key}\r\n" if settings.key else ""
    return (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: {settings.host}:{settings.port}\r\n"
        f"content-type: application/json\r\n{key}content-length: {len(body)}\r\n\r\n"
    ).encode() + body


async def _round(settings: Settings, requests: int, tally: _Tally) -> float:
    loop = asyncio.get_running_loop()
    tally.left = requests
    done = asyncio.Event()
    started = time.perf_counter()
    connections = []
    for _ in range(min(settings.connections, requests)):
        _, connection = await loop.create_connection(
            lambda: _Connection(settings, tally, done), settings.host, settings.port
        )
        connections.append(connection.finished)
    if settings.seconds is not None:
        loop.call_later(settings.seconds, done.set)
    await asyncio.wait_for(asyncio.gather(*connections), settings.timeout_s)
    return time.perf_counter() - started


async def measure(settings: Settings) -> dict[str, object]:
    """Return rate, percentiles of seconds, statuses and broken connections."""
    tally = _Tally()
    if settings.warm_up:
        await _round(settings, settings.warm_up, tally)
    for counted in (tally.statuses, tally.seconds, tally.seconds_ok, tally.kinds, tally.codes):
        counted.clear()
    elapsed = await _round(settings, settings.requests, tally)
    return {
        "rate": len(tally.seconds) / elapsed,
        "p50_s": _at(0.5, tally.seconds),
        "p95_s": _at(0.95, tally.seconds),
        "p99_s": _at(0.99, tally.seconds),
        "p99_ok_s": _at(0.99, tally.seconds_ok),
        "statuses": {str(status): n for status, n in tally.statuses.items()},
        "kinds": dict(tally.kinds),
        "codes": dict(tally.codes),
        "cut": tally.cut,
        "seconds": elapsed,
    }


def _at(share: float, seconds: list[float]) -> float | None:
    ordered = sorted(seconds)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else None


if __name__ == "__main__":
    import uvloop

    given = Settings(**json.loads(sys.argv[1]))
    pin(given.core)
    os.nice(given.nice)
    print(json.dumps(uvloop.run(measure(given))))
