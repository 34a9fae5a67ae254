"""What all command lines share: errors in one line, exit statuses, progress.

Exit statuses: 0 done, 2 the input, the configuration or the command itself is wrong (one line says
what and how to mend it), 130 interrupted with Ctrl-C. Anything else is a defect of this program and
shows its traceback. Names of models and files come from data: no console reads markup in them, and
what would steer the terminal is left out.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn

import typer
from rich import box
from rich.console import Console, ConsoleOptions, RenderableType
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


class SafeConsole(Console):
    """Prints no control character and no mark that turns text around, but for its own styles.

    A model's or a data set's name could otherwise clear the screen, retitle the window or pose as
    another line of output.
    """

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

EXIT_INPUT = 2
EXIT_INTERRUPTED = 130

_DISTRIBUTIONS = {"sklearn": "scikit-learn", "xgboost": "xgboost-cpu"}


_USAGE_ERROR: type[Exception] = typer.BadParameter.__mro__[1]  # typer exports no name for it


def run_app(app: Callable[..., object]) -> NoReturn:
    """Run a typer application, or what starts one, and end the process with the right status.

    Parameters
    ----------
    app : callable
        Takes typer's ``standalone_mode`` and returns what the application returned.
    """
    status: object = EXIT_INTERRUPTED
    with suppress(KeyboardInterrupt):  # while it was being imported; later typer returns the status
        try:
            status = app(standalone_mode=False)
        except _USAGE_ERROR as error:
            _refuse(_usage(error))
        except RouterError as error:
            _refuse(str(error))
        except OSError as error:
            _refuse(f"{error.filename or 'I/O'}: {error.strerror or error}")
    if status == EXIT_INTERRUPTED:
        err.print("interrupted; run the same command again to continue")
    sys.exit(status if isinstance(status, int) else 0)


def _usage(error: Exception) -> str:
    """Say what is wrong with the command; empty where typer has already shown the help."""
    message = str(getattr(error, "format_message", error.__str__)())
    context: typer.Context | None = getattr(error, "ctx", None)
    if not message or context is None:
        return message
    return f"{message} Try: {context.command_path} --help"


def _refuse(message: str) -> NoReturn:
    """End the process with status 2 and one line on stderr; without a line if that is empty."""
    if message:
        line = Text.assemble(("error:", "red"), " ", " ".join(message.split()))
        err.print(line, soft_wrap=True)
    sys.exit(EXIT_INPUT)


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
    """Show a progress bar on a terminal, and a plain line at each tenth elsewhere.

    Yields
    ------
    callable
        To be called with (done, total).
    """
    if not err.is_terminal:
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
