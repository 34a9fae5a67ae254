"""Logs as JSON lines on stderr, without what users say.

Everything goes through ``logging``: a message that is a constant, and facts as ``extra`` fields.
Requests that failed or fell back are told at WARNING; the others at INFO, which is off by default.
Fields of a request come from a fixed list. What clients chose freely (a model that does not exist,
a body) and what exceptions say of it is never among them: of an exception its type is told, and the
places in the code that it passed.
"""

from __future__ import annotations

import logging
import math
import sys
import time
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import Final, TextIO

import orjson
import structlog
from structlog.typing import EventDict, WrappedLogger

from router_runtime.errors import OVERLOADED, ConfigError
from router_runtime.service.values import RouteEvent
from router_runtime.types import Json

_log = logging.getLogger(__name__)

LEVELS: Final = ("debug", "info", "warning", "error")
_OWN: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message"}
_DEEPEST: Final = 20
_LONGEST: Final = 200
_QUIET: Final = ("uvicorn.access",)
_SHED_EVERY_S: Final = 1.0


def configure_logs(level: str = "warning", *, stream: TextIO | None = None) -> None:
    """Write every log record of this process as one JSON line.

    Parameters
    ----------
    level : {"debug", "info", "warning", "error"}
        Of this project's own records; those of libraries are told from WARNING on, since below it
        some of them show what they send.
    stream : text file or None
        None: stderr.

    Raises
    ------
    ConfigError
        There is no such level.
    """
    if level not in LEVELS:
        raise ConfigError(f"There is no log level '{level}' (known: {', '.join(LEVELS)}).")
    handler = logging.StreamHandler(sys.stderr if stream is None else stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[
                structlog.stdlib.add_log_level,
                structlog.stdlib.add_logger_name,
                structlog.processors.TimeStamper(fmt="iso", utc=True),
                _first_line,
                _add_fields,
                _tell_exception,
            ],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(serializer=_dumps),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("router_runtime").setLevel(level.upper())
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)


class Logs:
    """One line per request that did not go smoothly, and per request at INFO; a ``Sink``.

    Of requests shed under overload one line a second tells how many they were: a line for each
    would take a third of the time that shedding takes.

    Parameters
    ----------
    clock : callable
        Seconds that grow.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._shed = 0
        self._shed_told_at = -math.inf

    def record(self, event: RouteEvent) -> None:
        if event.error == OVERLOADED:
            self._record_shed()
            return
        rough = event.status >= 400 or event.error is not None or _fell_back(event)
        level = logging.WARNING if rough else logging.INFO
        if _log.isEnabledFor(level):
            message = "request failed" if event.status >= 400 or event.error else "request"
            if message == "request" and rough:
                message = "request fell back"
            _log.log(level, message, extra=facts(event))

    def _record_shed(self) -> None:
        self._shed += 1
        now_s = self._clock()
        if now_s - self._shed_told_at >= _SHED_EVERY_S:
            _log.warning("requests shed", extra={"error": OVERLOADED, "requests": self._shed})
            self._shed, self._shed_told_at = 0, now_s


def facts(event: RouteEvent) -> dict[str, Json]:
    """Return what may be told of a request; what the client spelt is not part of it."""
    served, routed = event.served, event.routed
    found: dict[str, Json] = {
        "decision_id": event.decision_id,
        "key_id": event.key_id,
        "endpoint": event.endpoint,
        "status": event.status,
        "stream": event.stream,
        "error": event.error,
        "total_s": round(event.total_s, 6),
        "attempts": [{"model": a.model_id, "error": a.error} for a in event.attempts],
        "served": None if served is None else served.model_id,
        "cost_usd": str(event.cost_usd),
    }
    if routed is not None:
        found |= {"chosen": routed.model_id, "reason": routed.reason, "policy": routed.policy}
    return found


def _fell_back(event: RouteEvent) -> bool:
    return len(event.attempts) > 1 or (
        event.routed is not None and event.routed.reason == "router_failure"
    )


def _add_fields(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Add what was passed as ``extra``."""
    record = event.get("_record")
    if isinstance(record, logging.LogRecord):
        event.update({k: v for k, v in vars(record).items() if k not in _OWN})
    return event


def _first_line(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Cut what libraries say to its first line; on others asyncio shows tasks and their errors."""
    record = event.get("_record")
    if isinstance(record, logging.LogRecord) and not record.name.startswith("router_runtime"):
        event["event"] = str(event.get("event", "")).partition("\n")[0][:_LONGEST]
    return event


def _tell_exception(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Replace an exception by its type and the code that it passed; its message may quote."""
    record = event.get("_record")
    event.pop("exc_info", None)
    error = (
        record.exc_info[1] if isinstance(record, logging.LogRecord) and record.exc_info else None
    )
    if error is not None:
        event["error_type"] = type(error).__qualname__
        event["traceback"] = _places(error.__traceback__)
    return event


def _places(start: TracebackType | None) -> list[str]:
    frames = traceback.extract_tb(start)[-_DEEPEST:]
    return [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames]


def _dumps(content: Json, **_options: object) -> str:
    return orjson.dumps(content, default=_plain, option=orjson.OPT_NON_STR_KEYS).decode()


def _plain(value: object) -> str:
    """Show what is no JSON by its type; its own text may be anything."""
    return f"<{type(value).__name__}>"
