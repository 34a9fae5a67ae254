"""Every error that this project raises on purpose.

::

    RouterError
    ├── ConfigError              a configuration value is unknown, repeated or contradictory
    ├── DataError                a row of training data is unusable (names file, row and field)
    ├── ArtifactError            an artifact folder cannot be used
    │   ├── ArtifactVersionError     written by a format this version does not read
    │   └── ArtifactIntegrityError   a file is missing, changed or extra
    ├── QueryError               a request's text or pictures cannot be routed          (HTTP 400)
    ├── NoEligibleModelError     no candidate can serve the query                       (HTTP 422)
    ├── EncoderError             weights or an embedding server cannot be had
    ├── MissingDependencyError   an optional dependency is not installed (gives the pip command)
    ├── TargetError              a call to a candidate failed; ``retryable`` says whether to go on
    │   ├── TargetTimeoutError       no whole answer in time
    │   ├── TargetConnectionError    no connection, or it broke
    │   ├── TargetStatusError        an HTTP status that is not success (``status``)
    │   └── TargetProtocolError      an answer that is not what the API promises
    ├── AllTargetsFailedError    every attempt failed; ``attempts`` lists them          (HTTP 502)
    └── RequestError             the service refuses a request; ``status`` and ``code`` say how

Messages name the thing, the value and the remedy. Nothing else in the project defines an
exception class, and command lines turn a ``RouterError`` into one line and exit status 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

OVERLOADED: Final = "overloaded"
"""``RequestError.code`` where there are more requests than are taken at a time."""


class RouterError(Exception):
    """Base of every deliberate error."""

    def __reduce__(self) -> tuple[object, ...]:
        """Cross to another process whole, whatever the constructor asks for."""
        return _unpickled, (type(self), self.args), self.__dict__


def _unpickled(kind: type[RouterError], args: tuple[object, ...]) -> RouterError:
    return kind.__new__(kind, *args)


class ConfigError(RouterError):
    """A configuration value is missing, unknown, repeated or contradictory."""


class DataError(RouterError):
    """A row of training data is unusable.

    Parameters
    ----------
    message : str
        What is wrong and how to mend it.
    file, row, field : optional
        Where; ``row`` counts records from 1, and lines from 1 in line-based files.
    """

    def __init__(
        self,
        message: str,
        *,
        file: str | None = None,
        row: int | None = None,
        field: str | None = None,
    ) -> None:
        where = ", ".join(
            part
            for part in (
                file or "",
                f"row {row}" if row is not None else "",
                f"field '{field}'" if field else "",
            )
            if part
        )
        super().__init__(f"{where}: {message}" if where else message)
        self.reason = message
        self.file = file
        self.row = row
        self.field = field


class ArtifactError(RouterError):
    """An artifact folder cannot be used."""


class ArtifactVersionError(ArtifactError):
    """The artifact's format version is not one that this version reads."""


class ArtifactIntegrityError(ArtifactError):
    """A file of the artifact is missing, changed or extra."""


class QueryError(RouterError):
    """A request's text or pictures cannot be routed."""


class NoEligibleModelError(RouterError):
    """No candidate can serve the query; the message gives each candidate's reason."""


class EncoderError(RouterError):
    """An encoder's weights or its server cannot be had, or answered nonsense."""


class MissingDependencyError(RouterError):
    """An optional dependency is not installed.

    Parameters
    ----------
    package : str
        The distribution that is missing.
    extra : str
        The extra of ``model-router`` that brings it.
    """

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(
            f"'{package}' is not installed. Install it with: pip install 'model-router[{extra}]'"
        )
        self.package = package
        self.extra = extra


class TargetError(RouterError):
    """A call to a target failed.

    Parameters
    ----------
    retryable : bool
        True for timeouts, connection failures and 429/5xx answers: the same call may succeed later,
        and the next candidate may be tried now.
    whole_target : bool
        True where every other call to this target would fail alike: a bad key, no such model.
    retry_after_s : float or None
        How long the server asks to wait; None where it does not say.
    """

    def __init__(
        self,
        message: str,
        *,
        retryable: bool,
        whole_target: bool = False,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.retryable = retryable
        self.whole_target = whole_target
        self.retry_after_s = retry_after_s


class TargetTimeoutError(TargetError):
    """No whole answer came in time."""


class TargetConnectionError(TargetError):
    """No connection could be made, or it broke before the answer was whole."""


class TargetStatusError(TargetError):
    """The server answered with an HTTP status that is not success.

    Parameters
    ----------
    status : int
        The HTTP status; of an error body under status 200 the one that the body names, or 200.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int,
        retryable: bool,
        whole_target: bool = False,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(
            message,
            retryable=retryable,
            whole_target=whole_target,
            retry_after_s=retry_after_s,
        )
        self.status = status


class TargetProtocolError(TargetError):
    """The answer is not what the API promises: no JSON, no choices, too large, a redirect."""


class AllTargetsFailedError(RouterError):
    """Every candidate that was tried failed."""

    def __init__(self, message: str, *, attempts: Sequence[object] = ()) -> None:
        super().__init__(message)
        self.attempts = tuple(attempts)


class RequestError(RouterError):
    """The service refuses a request.

    Parameters
    ----------
    status : int
        HTTP status: 400, 401, 402, 403, 404, 409, 413, 415, 422, 429, 503, 504.
    code : str
        Machine-readable, such as ``invalid_api_key``, ``budget_exceeded``.
    param : str or None
        The field of the body that is wrong.
    retry_after_s : float or None
        Told as ``Retry-After``.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int,
        code: str,
        param: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param
        self.retry_after_s = retry_after_s
