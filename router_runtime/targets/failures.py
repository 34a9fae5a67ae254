"""What a failed call means, said without anything of what was asked.

Three things follow from a failure: whether the same call may succeed later, whether every other
call to the target would fail alike, and how long the server asks to wait. ``verdict_of`` decides
the first two, alike for HTTP statuses and for error bodies under status 200.

Providers like to quote the request, and the key, in what they complain about. A message shows the
status, the provider's error codes, and of its own words at most ``SHOWN_CHARS`` characters without
quotations; and nothing of them where they repeat as much as ``ECHO_CHARS`` characters of the call,
or are not ASCII, where that cannot be told. Words for failures that pass are left out altogether.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final, NamedTuple

from router_runtime.errors import TargetProtocolError, TargetStatusError
from router_runtime.targets.base import ChatCall
from router_runtime.types import Json

SHOWN_CHARS: Final = 160
ECHO_CHARS: Final = 14

_DEAD_CODES: Final = frozenset(
    {
        "access_terminated",
        "account_deactivated",
        "billing_hard_limit_reached",
        "billing_not_active",
        "deploymentnotfound",
        "exceeded_current_quota_error",
        "insufficient_balance",
        "insufficient_quota",
        "invalid_api_key",
        "model_not_found",
    }
)
"""Codes that say that no call to this target can succeed."""

_CONTENT_CODES: Final = frozenset(
    {
        "content_filter",
        "content_policy_violation",
        "moderation",
        "moderation_blocked",
        "responsibleaipolicyviolation",
    }
)
"""Codes that say that this call's content is refused."""

_STATUS_OF_CODE: Final = {
    "api_error": 500,
    "authentication_error": 401,
    "content_filter": 400,
    "content_policy_violation": 400,
    "context_length_exceeded": 400,
    "insufficient_quota": 429,
    "internal_error": 500,
    "internal_server_error": 500,
    "invalid_api_key": 401,
    "invalid_request_error": 400,
    "model_not_found": 404,
    "not_found_error": 404,
    "overloaded_error": 503,
    "permission_error": 403,
    "rate_limit_error": 429,
    "rate_limit_exceeded": 429,
    "resource_exhausted": 429,
    "server_error": 500,
    "service_unavailable": 503,
    "timeout": 504,
    "unavailable": 503,
}
"""The status that a code stands for, where a body comes with status 200."""

_WHOLE_TARGET: Final = frozenset({401, 402, 403, 404, 405, 407, 410})
_PASSING: Final = frozenset({408, 409, 425, 429})
_REMEDIES: Final = {
    401: "Check the key that 'api_key_env' names.",
    402: "Check the account's credit.",
    403: "Check what the key that 'api_key_env' names may use.",
    404: "Check 'model', and the URL (it usually ends in /v1).",
    405: "Check the URL (it usually ends in /v1).",
    429: "Lower 'requests_per_minute', 'tokens_per_minute' or 'max_concurrency' if this goes on.",
}
_CODE: Final = re.compile(r"[A-Za-z][A-Za-z0-9_.:-]{0,63}")
_QUOTED: Final = re.compile(r"([\"'`]).*?\1|\S{33,}|\S*(?:data:|sk-|\*\*)\S*")
_WORDS: Final = re.compile(r"\w+")


class Complaint(NamedTuple):
    """What an error body says.

    Parameters
    ----------
    status : int or None
        The HTTP status that it names.
    codes : tuple of str
        Its codes and types, the most special first.
    message : str
        The provider's words; may quote the call.
    about_content : bool
        It says that this call's content is refused.
    """

    status: int | None = None
    codes: tuple[str, ...] = ()
    message: str = ""
    about_content: bool = False


class Verdict(NamedTuple):
    """Whether to ask again, and whether to ask the target anything at all."""

    retryable: bool
    whole_target: bool


@dataclass(frozen=True)
class Asked:
    """Names what was asked in messages, and knows what no message may show.

    Parameters
    ----------
    who : str
        The candidate and its server, as messages name them.
    private : tuple of str
        The key and the texts of the call.
    """

    who: str
    private: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"Asked({self.who!r})"

    def protocol_error(
        self, problem: str, *, retryable: bool = True, whole_target: bool = False
    ) -> TargetProtocolError:
        """Return the error of an answer that is not what the API promises."""
        return TargetProtocolError(
            f"{self.who} {problem}", retryable=retryable, whole_target=whole_target
        )

    def status_error(
        self, status: int, complaint: Complaint, *, headers: Mapping[str, str]
    ) -> TargetStatusError:
        """Return the error of a status that is not success.

        Parameters
        ----------
        status : int
            Of the answer; where that is 200, the complaint's own goes before it.
        complaint : Complaint
            What the body says.
        headers : mapping
            Of the answer, with lower-case names.
        """
        if status == 200:
            named = (_STATUS_OF_CODE.get(code.lower()) for code in complaint.codes)
            status = complaint.status or next((found for found in named if found), 200)
        retryable, whole_target = verdict_of(status, complaint)
        told = f"answered {'an error under ' if status == 200 else ''}status {status}"
        codes = ", ".join(dict.fromkeys(c for c in complaint.codes if self._sayable(c)))
        words = "" if retryable else self._shown(complaint.message)
        told += (f" ({codes})" if codes else "") + (f": {words}" if words else "")
        return TargetStatusError(
            f"{self.who} {told.rstrip('.')}. {_REMEDIES.get(status, '')}".rstrip(),
            status=status,
            retryable=retryable,
            whole_target=whole_target,
            retry_after_s=retry_after_s(headers),
        )

    def _sayable(self, code: str) -> bool:
        return code.lower() in _STATUS_OF_CODE or not self._echoed(code)

    def _shown(self, message: str) -> str:
        plain = " ".join(_QUOTED.sub("...", message).split())
        if not (plain.isascii() and plain.isprintable()) or self._echoed(plain):
            return ""
        return plain if len(plain) <= SHOWN_CHARS else plain[: SHOWN_CHARS - 3] + "..."

    def _echoed(self, words: str) -> bool:
        shown = _folded(words)
        pieces = {shown[at : at + ECHO_CHARS] for at in range(len(shown) - ECHO_CHARS + 1)}
        for text in self.private:
            secret = _folded(text)
            if len(secret) < ECHO_CHARS + 2:
                if secret.strip() and secret in shown:
                    return True
            elif any(piece in secret for piece in pieces):
                return True
        return False


def _folded(text: str) -> str:
    """Return the words alone, each between blanks, so that case and punctuation hide no echo."""
    return f" {' '.join(_WORDS.findall(text.casefold()))} "


def verdict_of(status: int, complaint: Complaint) -> Verdict:
    """Return what follows from a status and what the body says.

    400, 413, 422 and the like are about this call alone. A 403 is about the key, unless the body
    says that the content was refused. A 429 for want of credit does not pass by waiting.
    """
    codes = {code.lower() for code in complaint.codes}
    if status < 500 and codes & _DEAD_CODES:
        return Verdict(retryable=False, whole_target=True)
    if status in _WHOLE_TARGET:
        refused = status == 403 and (complaint.about_content or bool(codes & _CONTENT_CODES))
        return Verdict(retryable=False, whole_target=not refused)
    passing = status in _PASSING or status >= 500 or status == 200
    return Verdict(retryable=passing, whole_target=False)


def complaint_of(body: Json) -> Complaint:
    """Return what an error body of one of the usual forms says; nothing of any other.

    They are ``{"error": {"message", "type", "code"}}``, the same in a list, ``{"error": "..."}``,
    the inner object alone, and ``{"detail": "..."}``.
    """
    if isinstance(body, list) and len(body) == 1:
        body = body[0]
    if not isinstance(body, Mapping):
        return Complaint()
    error = body.get("error") or body
    if isinstance(error, str):
        return Complaint(codes=_codes(error), message=error)
    if not isinstance(error, Mapping):
        return Complaint()
    inner = error.get("innererror")
    metadata = error.get("metadata")
    message = error.get("message", error.get("detail"))
    named = [error.get("code"), error.get("status"), error.get("type")]
    if isinstance(inner, Mapping):
        named.insert(0, inner.get("code"))
    return Complaint(
        status=_status(error.get("code")),
        codes=tuple(code for value in named for code in _codes(value)),
        message=message if isinstance(message, str) else "",
        about_content=isinstance(metadata, Mapping) and "flagged_input" in metadata,
    )


def _codes(value: Json) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) and _CODE.fullmatch(value) else ()


def _status(code: Json) -> int | None:
    if isinstance(code, str) and re.fullmatch(r"[45]\d\d", code):
        return int(code)
    return code if type(code) is int and 400 <= code < 600 else None


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that a server asks to wait, None where it says nothing that can be read.

    ``retry-after-ms`` goes before ``Retry-After``, which holds seconds or an HTTP date; a date is
    counted from the answer's own ``Date``, so that a clock that is wrong here does no harm. Times
    gone by are 0.
    """
    milliseconds = _seconds(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return milliseconds / 1000
    value = headers.get("retry-after")
    seconds = _seconds(value)
    if seconds is not None:
        return seconds
    until = _date(value)
    if until is None:
        return None
    now = _date(headers.get("date")) or datetime.now(UTC)
    return max(0.0, (until - now).total_seconds())


def _seconds(value: str | None) -> float | None:
    try:
        number = float(value or "")
    except ValueError:
        return None
    return number if 0 <= number < math.inf else None


def _date(value: str | None) -> datetime | None:
    try:
        date = parsedate_to_datetime(value or "")
    except (ValueError, OverflowError):
        return None
    return date.replace(tzinfo=UTC) if date.tzinfo is None else date


def texts_of(call: ChatCall) -> Iterator[str]:
    """Yield every text of a call's messages, without roles, types and pictures."""
    for message in call.messages:
        for name, value in message.items():
            if name not in ("role", "type"):
                yield from _texts(value)


def _texts(value: Json) -> Iterator[str]:
    if isinstance(value, str):
        if not value.startswith("data:"):
            yield value
    elif isinstance(value, Mapping):
        for name, entry in value.items():
            if name != "type":
                yield from _texts(entry)
    elif isinstance(value, list | tuple):
        for entry in value:
            yield from _texts(entry)
