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
    └── AllTargetsFailedError    every attempt failed; ``attempts`` lists them          (HTTP 502)

Messages name the thing, the value and the remedy. Nothing else in the project defines an
exception class, and command lines turn a ``RouterError`` into one line and exit status 2.
"""

from __future__ import annotations

from collections.abc import Sequence


class RouterError(Exception):
    """Base of every deliberate error."""


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
    """A call to a candidate failed.

    Parameters
    ----------
    retryable : bool
        True for timeouts, connection failures and 429/5xx answers: the next candidate may be tried.
    """

    def __init__(self, message: str, *, retryable: bool) -> None:
        super().__init__(message)
        self.retryable = retryable


class AllTargetsFailedError(RouterError):
    """Every candidate that was tried failed."""

    def __init__(self, message: str, *, attempts: Sequence[object] = ()) -> None:
        super().__init__(message)
        self.attempts = tuple(attempts)
