"""Errors as OpenAI's clients expect them: ``{"error": {message, type, param, code}}`` and a status.

This is the one place where an exception becomes an HTTP answer. What is not a ``RouterError`` is a
defect of ours: the caller is told so without any detail, since a message may quote the request.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import orjson

from router_runtime.errors import (
    AllTargetsFailedError,
    NoEligibleModelError,
    QueryError,
    RequestError,
    TargetError,
)
from router_runtime.types import Json

_TYPES: Final[Mapping[int, str]] = {
    401: "authentication_error",
    402: "insufficient_quota",
    403: "permission_error",
    429: "rate_limit_error",
}


@dataclass(frozen=True, slots=True)
class Refusal:
    """An error as the caller gets it.

    Parameters
    ----------
    status : int
    code : str
        Machine-readable.
    message : str
    param : str or None
        The field of the body that is wrong.
    retry_after_s : float or None
        Told as ``Retry-After`` in whole seconds, rounded up.
    headers : mapping
        More headers, such as ``allow``.
    """

    status: int
    code: str
    message: str
    param: str | None = None
    retry_after_s: float | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    def body(self) -> bytes:
        """Return the envelope as JSON."""
        return orjson.dumps({"error": self.error()})

    def error(self) -> dict[str, Json]:
        """Return what stands under ``error``."""
        kind = _TYPES.get(self.status, "server_error" if self.status >= 500 else None)
        return {
            "message": self.message,
            "type": kind or "invalid_request_error",
            "param": self.param,
            "code": self.code,
        }

    def header_list(self) -> list[tuple[bytes, bytes]]:
        """Return the headers that go with the envelope, the body's length left out."""
        named = {"content-type": "application/json", **self.headers}
        if self.retry_after_s is not None:
            named["retry-after"] = str(max(1, math.ceil(self.retry_after_s)))
        return [(name.encode(), value.encode()) for name, value in named.items()]


def refusal_of(error: BaseException) -> Refusal:
    """Return what the caller is told about an exception."""
    message = str(error)
    match error:
        case RequestError():
            return Refusal(
                error.status,
                error.code,
                message,
                param=error.param,
                retry_after_s=error.retry_after_s,
            )
        case QueryError():
            return Refusal(400, "invalid_request", message, param="messages")
        case NoEligibleModelError():
            return Refusal(422, "no_eligible_model", message)
        case AllTargetsFailedError():
            return Refusal(502, "all_targets_failed", message)
        case TargetError():
            # Its words name servers inside of the network.
            return Refusal(502, "target_failed", "The candidate gave no answer to pass on.")
    return Refusal(500, "internal_error", "The service failed; the request may be sent again.")


def error_event(refusal: Refusal) -> bytes:
    """Return a server-sent event that ends a stream which broke after its first byte."""
    return b"data: " + refusal.body() + b"\n\n"
