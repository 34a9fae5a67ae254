"""What all command lines share: errors in one line, exit statuses, JSON, progress.

Results go to stdout, everything else to stderr. With ``--json`` stdout holds one JSON object and
nothing else; where a command fails (status 2) it is empty. On a terminal text is wrapped and
coloured (not with ``NO_COLOR`` or ``TERM=dumb``); elsewhere a line is as long as what it says.
Names of models and files come from data: no console reads markup in them, and what would steer the
terminal is left out.
"""

from __future__ import annotations

import errno
import importlib
import json
import math
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from numbers import Integral
from typing import Any, Final, NoReturn

import typer
from pydantic import ValidationError
from rich import box
from rich.console import Console, ConsoleDimensions, ConsoleOptions, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from router_runtime import types
from router_runtime.errors import MissingDependencyError, RouterError

_TURNING = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
_STEERING = dict.fromkeys(
    [*(code for code in range(0xA0) if not 0x20 <= code < 0x7F and chr(code) not in "\t\n")]
    + [ord(mark) for mark in _TURNING]
)
_BLANKS = re.compile(r" +$", re.MULTILINE)
_UNLIMITED = 10_000
"""Columns where no terminal shows the output: nothing is wrapped or cut there."""


class SafeConsole(Console):
    """Prints no control character and no mark that turns text around, but for its own styles.

    A model's or a data set's name could otherwise clear the screen, retitle the window or pose as
    another line of output.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        if options.get("width") is None:
            self._width = None  # COLUMNS is read when something is printed, not now

    @property
    def size(self) -> ConsoleDimensions:
        found = super().size
        if self._width is None and not self.is_terminal and "COLUMNS" not in os.environ:
            return ConsoleDimensions(_UNLIMITED, found.height)
        return found

    @size.setter
    def size(self, new_size: tuple[int, int]) -> None:
        self._width, self._height = new_size

    def _render_buffer(self, buffer: Iterable[Segment]) -> str:
        """Return the text; where no terminal shows it, without the blanks that fill up a table."""
        text = super()._render_buffer(buffer)
        return text if self.is_terminal else _BLANKS.sub("", text)

    def on_broken_pipe(self) -> None:
        self.quiet = True
        _leave_unread()

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            if segment.control is None and not segment.text.isprintable():
                yield Segment(segment.text.translate(_STEERING), segment.style)
            else:
                yield segment


def plain_table(title: str) -> Table:
    """Return an empty table that leaves room for long model names on 80 columns."""
    return Table(
        title=Text(title, style="bold"),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )


out = SafeConsole(highlight=False, markup=False)
err = SafeConsole(stderr=True, highlight=False, markup=False)

EXIT_DONE: Final = 0
EXIT_FOUND: Final = 1
EXIT_INPUT: Final = 2
EXIT_DEFECT: Final = 70
EXIT_INTERRUPTED: Final = 130
EXIT_UNREAD: Final = 141

EXIT_STATUSES: Final = {
    EXIT_DONE: "done",
    EXIT_FOUND: "it ran, and there is something to act on: doctor found a problem, check-encoder "
    "did not accept, check-routing-data found leaks, labels are still missing",
    EXIT_INPUT: "the command, its input or its configuration is wrong, or something it needs "
    "cannot be had; one line on stderr says what and the remedy",
    EXIT_DEFECT: "a defect of this program, with a traceback; please report it",
    EXIT_INTERRUPTED: "interrupted with Ctrl-C",
    EXIT_UNREAD: "the program that read its output ended before it, such as head",
}
"""What the exit status of every command says; ``--help`` and the documentation list it."""

_DISTRIBUTIONS = {"sklearn": "scikit-learn", "xgboost": "xgboost-cpu"}
_REMEDIES = {
    errno.EACCES: "change its permissions, or name another path",
    errno.EPERM: "change its permissions, or name another path",
    errno.EROFS: "name another path",
    errno.ENOENT: "check the path",
    errno.ENOTDIR: "check the path",
    errno.EISDIR: "name a file",
    errno.EEXIST: "remove it, or name another path",
    errno.ENAMETOOLONG: "name a shorter path",
    errno.ENOSPC: "make room, or name a path on another disk",
    errno.EDQUOT: "make room, or name a path on another disk",
    errno.EADDRINUSE: "end the program that listens there, or choose another port",
    errno.EMFILE: "allow more open files (ulimit -n)",
    errno.ECONNREFUSED: "start the server, or correct its address",
}


_USAGE_ERROR: type[Exception] = typer.BadParameter.__mro__[1]  # typer exports no name for it


def run_app(app: Callable[..., object]) -> NoReturn:
    """Run a typer application, or what starts one, and end the process with the right status.

    Parameters
    ----------
    app : callable
        Takes typer's ``standalone_mode`` and returns what the application returned.
    """
    status: object = EXIT_INTERRUPTED
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a name may hold what the encoding cannot tell
            stream.reconfigure(errors="backslashreplace")
    with suppress(KeyboardInterrupt):  # while it was being imported; later typer returns the status
        try:
            status = app(standalone_mode=False)
            sys.stdout.flush()
        except _USAGE_ERROR as error:
            _refuse(_usage(error))
        except RouterError as error:
            _refuse(_told(error))
        except BrokenPipeError:
            _leave_unread()
        except OSError as error:
            _refuse(_failed(error))
        except Exception:
            traceback.print_exc()
            sys.exit(EXIT_DEFECT)
    if status == EXIT_INTERRUPTED:
        err.print("interrupted; run the same command again to continue")
    sys.exit(status if isinstance(status, int) else EXIT_DONE)


def _usage(error: Exception) -> str:
    """Say what is wrong with the command; empty where typer has already shown the help."""
    message = str(getattr(error, "format_message", error.__str__)())
    said = str(getattr(error, "message", ""))
    similar: list[str] | None = getattr(error, "possibilities", None)
    if similar:
        message = f"{said}. Did you mean {' or '.join(similar)}?"
    if isinstance(error.__cause__, ValidationError) and said:
        message = message.replace(said, _problem(error.__cause__))
    context: typer.Context | None = getattr(error, "ctx", None)
    if not message or context is None:
        return message
    end = "" if message.endswith((".", "?")) else "."
    return f"{message}{end} Try: {context.command_path} --help"


def _problem(error: ValidationError) -> str:
    """Say what is wrong with the value of an option, and the value."""
    entry = error.errors(include_url=False)[0]
    if entry["type"] == "value_error":
        return entry["msg"].removeprefix("Value error, ")
    return f"{entry['msg'].partition(', unable')[0]}, not {entry['input']!r:.80}"


def _told(error: RouterError) -> str:
    """Return the message; where it repeats what the system said, with the remedy for that."""
    message, cause = str(error), error.__cause__
    if isinstance(cause, OSError):
        return message.replace(str(cause), _why(cause))
    return message


def _failed(error: OSError) -> str:
    """Name the file, what the system says of it, and the remedy."""
    names = [str(name) for name in (error.filename, error.filename2) if name is not None]
    return f"{' -> '.join(names) or 'input or output'}: {_why(error)}"


def _why(error: OSError) -> str:
    said = error.strerror or str(error)
    remedy = _REMEDIES.get(error.errno or 0)
    return f"{said}; {remedy}" if remedy else said


def _leave_unread() -> NoReturn:
    """End quietly; what is still in the buffer goes nowhere, else Python would complain of it."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(EXIT_UNREAD)


def _refuse(message: str) -> NoReturn:
    """End the process with status 2 and one line on stderr; without a line if that is empty."""
    if message:
        line = Text.assemble(("error:", "red"), " ", " ".join(message.split()))
        err.print(line, soft_wrap=True)
    sys.exit(EXIT_INPUT)


def print_json(content: types.Json) -> None:
    """Print one JSON object on stdout; a number that is none (NaN, infinite) becomes null."""
    try:
        sys.stdout.write(json.dumps(_plain(content), indent=2, allow_nan=False) + "\n")
    except BrokenPipeError:
        _leave_unread()


def _plain(content: types.Json) -> types.Json:
    match content:
        case Mapping():
            return {str(key): _plain(value) for key, value in content.items()}
        case list() | tuple():
            return [_plain(value) for value in content]
        case float():
            return float(content) if math.isfinite(content) else None
        case None | bool() | str():
            return content
        case Integral():
            return int(content)
        case _:  # paths, decimals and times as text
            return str(content)


@contextmanager
def explained_imports(extra: str) -> Iterator[None]:
    """Turn a missing third-party module into the error that names the extra which brings it."""
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "router_runtime", "router_training"):
            raise
        raise MissingDependencyError(_DISTRIBUTIONS.get(package, package), extra) from error


def require(module: str, *, extra: str) -> None:
    """Import ``module``; where that needs a missing ``extra``, end the process and say so."""
    try:
        with explained_imports(extra):
            importlib.import_module(module)
    except MissingDependencyError as error:
        _refuse(str(error))


@contextmanager
def progress_bar(label: str) -> Iterator[types.Progress]:
    """Show a progress bar on a terminal that can, and a plain line at each tenth elsewhere.

    Yields
    ------
    callable
        To be called with (done, total).
    """
    if not err.is_terminal or err.is_dumb_terminal:
        yield _plain_progress(label)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err, transient=True) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _plain_progress(label: str) -> types.Progress:
    shown = -1

    def report(done: int, total: int) -> None:
        nonlocal shown
        tenth = 10 * done // max(total, 1)
        if tenth > shown:
            shown = tenth
            err.print(f"{label}: {done}/{total}")

    return report
