"""Server-sent events as bytes: where they end, what they carry, and nothing rewritten.

A stream is relayed as it came. Therefore events are cut out of the bytes with their terminators,
whatever the chunks in which they arrive, and parsed only where something must be known of them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

import orjson

from router_runtime.types import Json

DONE: Final = b"[DONE]"
_END: Final = re.compile(rb"(?>\r\n|\n|\r)(?>\r\n|\n|\r)")
_LINE: Final = re.compile(rb"\r\n|\n|\r")
_FIELDS: Final = (b":", b"data", b"event:", b"id", b"retry:")
_LONGEST_END: Final = 4


class EventCutter:
    """Cuts a stream of bytes where its events end; the same for any chunking.

    Parameters
    ----------
    max_bytes : int
        Longest event; what is longer is refused rather than kept.
    """

    __slots__ = ("_max_bytes", "_scanned", "_tail")

    def __init__(self, *, max_bytes: int = 16 * 2**20) -> None:
        self._max_bytes = max_bytes
        self._tail = b""
        self._scanned = 0

    def feed(self, data: bytes) -> bytes | None:
        """Return all whole events that there are now, joined; None if one is too long."""
        if self._tail:
            data = self._tail + data
        end = _last_end(data, self._scanned)
        self._tail = tail = data[end:] if end else data
        self._scanned = max(0, len(tail) - _LONGEST_END + 1)
        if len(tail) > self._max_bytes:
            self._tail = b""
            return None
        return data if end == len(data) else data[:end]

    def rest(self) -> bytes:
        """Return what follows the last whole event."""
        return self._tail


def _last_end(data: bytes, start: int) -> int:
    r"""Return where the last whole event ends, 0 if none does.

    A ``\r`` at the very end may be half of a ``\r\n``, so such an end waits for the next byte.
    """
    if b"\r" not in data and b"\n\n\n" not in data:
        at = data.rfind(b"\n\n", start)
        return at + 2 if at >= 0 else 0
    end = 0
    for found in _END.finditer(data, start):
        if found.end() < len(data) or data[-1:] != b"\r":
            end = found.end()
    return end


def split_events(data: bytes) -> list[bytes]:
    """Return whole events as they are, each with its terminator; a rest is the last entry."""
    if b"\r" not in data and b"\n\n\n" not in data:
        *whole, rest = data.split(b"\n\n")
        events = [event + b"\n\n" for event in whole]
        return [*events, rest] if rest else events
    events, start = [], 0
    for found in _END.finditer(data):
        events.append(data[start : found.end()])
        start = found.end()
    if start < len(data):
        events.append(data[start:])
    return events


def data_of(event: bytes) -> bytes | None:
    """Return the ``data`` of an event, its lines joined; None for a comment or an empty one."""
    lines = []
    for line in _LINE.split(event):
        if line.startswith(b"data:"):
            lines.append(line[6:] if line[5:6] == b" " else line[5:])
    return b"\n".join(lines) if lines else None


def json_of(event: bytes) -> Mapping[str, Json] | None:
    """Return the JSON object that an event carries, None where it carries none."""
    data = data_of(event)
    if data is None or data.strip() == DONE:
        return None
    try:
        body = orjson.loads(data)
    except orjson.JSONDecodeError:
        return None
    return body if isinstance(body, dict) else None


def is_event(event: bytes) -> bool:
    """Return whether bytes between blank lines are an event, a comment or blank, and no garbage."""
    return all(not line or line.startswith(_FIELDS) for line in _LINE.split(event))


def is_done(event: bytes) -> bool:
    """Return whether an event is the ``[DONE]`` that ends OpenAI's streams."""
    if DONE not in event:
        return False
    data = data_of(event)
    return data is not None and data.strip() == DONE


def says_nothing(chunk: Mapping[str, Json]) -> bool:
    """Return whether a chunk brings nothing of an answer: a role, empty texts, an end, usage.

    An end for want of tokens or by a filter (``length``, ``content_filter``) does say something:
    the answer is as short as that.
    """
    choices = chunk.get("choices")
    for choice in choices if isinstance(choices, list) else ():
        if not isinstance(choice, dict):
            continue
        if choice.get("finish_reason") in ("length", "content_filter") or choice.get("text"):
            return False
        delta = choice.get("delta")
        if isinstance(delta, dict) and any(v for k, v in delta.items() if k != "role"):
            return False
    return True


_USAGE: Final = re.compile(rb'"usage"\s*:\s*\{')
_FINISH: Final = re.compile(rb'"finish_reason"\s*:\s*"')

_TEXTS: Final = re.compile(
    rb'"(?:content|text|arguments|reasoning_content|reasoning|refusal)"\s*:\s*'
    rb'"([^"\\]*(?:\\.[^"\\]*)*)"',
    re.DOTALL,
)


def _first_mark(data: bytes) -> int:
    """Return where something stands that events are parsed for, -1 if nowhere.

    Within a JSON text quotes are escaped, so no answer's words are taken for a mark. Each pattern
    begins with a literal, which makes this three times as fast as one pattern of alternatives.
    """
    found = [data.find(DONE), data.find(b'"error"')]
    found += [mark.start() for mark in (_USAGE.search(data), _FINISH.search(data)) if mark]
    return min((at for at in found if at >= 0), default=-1)


class StreamScan:
    """Follows a stream of chat or text completions as it passes.

    What is forwarded are the bytes as they came, in whole events; only the event that tells the
    usage is left out where the client did not ask for it, and ``[DONE]`` is kept back for the
    caller to send when all is accounted for. Ordinary events are not parsed.

    Parameters
    ----------
    hides_usage : bool
    max_event_bytes : int
        Longest event.

    Attributes
    ----------
    usage : mapping or None
        As the last event that told it says.
    finish : str or None
        The last ``finish_reason``.
    done : bool
        ``[DONE]`` came.
    error : mapping or None
        The event by which the server itself says that it failed.
    too_long : bool
        An event was longer than allowed; nothing more is forwarded.
    text_bytes : int
        Length of the texts, for an estimate where no usage comes.
    ending : bytes
        ``[DONE]`` and what followed it.
    """

    __slots__ = (
        "_cutter",
        "_hides_usage",
        "done",
        "ending",
        "error",
        "finish",
        "text_bytes",
        "too_long",
        "usage",
    )

    def __init__(self, *, hides_usage: bool = False, max_event_bytes: int = 16 * 2**20) -> None:
        self._cutter = EventCutter(max_bytes=max_event_bytes)
        self._hides_usage = hides_usage
        self.usage: Mapping[str, Json] | None = None
        self.finish: str | None = None
        self.done = False
        self.error: Mapping[str, Json] | None = None
        self.too_long = False
        self.text_bytes = 0
        self.ending = b""

    @property
    def complete(self) -> bool:
        """Whether the answer came to its end; some servers send no ``[DONE]``."""
        ended = self.done or self.finish is not None
        return ended and self.error is None and not self.too_long

    @property
    def over(self) -> bool:
        """Whether nothing more is to be expected or believed."""
        return self.done or self.error is not None or self.too_long

    def feed(self, data: bytes) -> bytes:
        """Take bytes in; return those that may be forwarded."""
        events = self._cutter.feed(data)
        if events is None:
            self.too_long = True
            return b""
        return self._passed(events) if events else b""

    def close(self) -> bytes:
        """Take in that no more bytes come; return what may be forwarded of an unfinished event.

        A last event without the blank line after it counts if it is whole.
        """
        rest = self._cutter.rest()
        if not rest or self.too_long:
            return b""
        whole = data_of(rest) is None or is_done(rest) or json_of(rest) is not None
        return self._passed(rest) if whole else b""

    def _passed(self, events: bytes) -> bytes:
        self.text_bytes += text_bytes(events)
        mark = 0 if self.over else _first_mark(events)
        if mark < 0:
            return events
        start = 0
        if b"\r" not in events and b"\n\n\n" not in events:
            start = events.rfind(b"\n\n", 0, mark) + 2
            start = start if start > 1 else 0  # 1: there is no event before the mark
        passed = [event for event in split_events(events[start:]) if self._passes(event)]
        return events[:start] + b"".join(passed)

    def _passes(self, event: bytes) -> bool:
        if self.done or is_done(event):
            self.done = True
            self.ending += event
            return False
        if self.error is not None:
            return False
        chunk = json_of(event) if _first_mark(event) >= 0 else None
        if chunk is None:
            return True
        if is_error(chunk):
            self.error = chunk
            return True
        choices = chunk.get("choices")
        for choice in choices if isinstance(choices, list) else ():
            reason = choice.get("finish_reason") if isinstance(choice, dict) else None
            self.finish = reason if isinstance(reason, str) else self.finish
        if isinstance(usage := chunk.get("usage"), dict):
            self.usage = usage
            return not (self._hides_usage and not choices)
        return True


def text_bytes(data: bytes) -> int:
    """Return the length of the answer's texts within JSON, without parsing it."""
    return sum(text.end(1) - text.start(1) for text in _TEXTS.finditer(data))


def is_error(body: Mapping[str, Json]) -> bool:
    """Return whether a JSON object is an error and no part of an answer."""
    return bool(body.get("error")) or body.get("object") == "error"
