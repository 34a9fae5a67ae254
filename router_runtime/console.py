"""What both command lines share: errors in one line, exit statuses, progress.

Exit statuses: 0 done, 2 the input or the configuration is wrong (one line says what and how to mend
it), 130 interrupted with Ctrl-C. Anything else is a defect of this program and shows its traceback.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from router_runtime import types
from router_runtime.errors import MissingDependencyError, RouterError

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

EXIT_INPUT = 2
EXIT_INTERRUPTED = 130

_DISTRIBUTIONS = {"sklearn": "scikit-learn", "xgboost": "xgboost-cpu"}


def run_app(app: Callable[[], None]) -> None:
    """Run a typer application, or what starts one, and end the process with the right status."""
    try:
        app()
    except RouterError as error:
        _refuse(str(error))
    except OSError as error:
        _refuse(f"{error.filename or 'I/O'}: {error.strerror or error}")
    except SystemExit as stop:  # typer makes this of a KeyboardInterrupt
        if stop.code == EXIT_INTERRUPTED:
            err.print("interrupted; run the same command again to continue")
        raise


def _refuse(message: str) -> NoReturn:
    err.print(f"[red]error:[/red] {escape(' '.join(message.split()))}", soft_wrap=True)
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
