"""Figures for TensorBoard while a network learns; only on request."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, TypeAlias

from router_runtime.errors import ConfigError, MissingDependencyError

Record: TypeAlias = Callable[[Mapping[str, float], int], None]  # (figures by name, step)


class Recorder:
    """One run's folder, ``router_<date>_<time>``, with a folder per network that is fitted.

    Parameters
    ----------
    folder : Path or None
        Where runs are kept, created when missing; None: nothing is recorded.

    Raises
    ------
    MissingDependencyError
        The ``tensorboard`` package is not installed.
    """

    def __init__(self, folder: Path | None) -> None:
        self._make = None if folder is None else _writer_class()
        self._run = None if folder is None else _run_folder(folder)
        self._numbers = itertools.count(1)

    @contextmanager
    def network(self) -> Iterator[Record]:
        """Record one network: figures by name at a step; no text and no picture of the data.

        Raises
        ------
        ConfigError
            The folder cannot be written.
        """
        if self._make is None or self._run is None:
            yield _unrecorded
            return
        folder = self._run / f"network-{next(self._numbers)}"
        try:
            writer = self._make(log_dir=str(folder))
        except OSError as error:
            raise ConfigError(
                f"head.tensorboard: '{folder}' cannot be written: {error.strerror}. Give another "
                "folder."
            ) from error

        def record(figures: Mapping[str, float], step: int) -> None:
            for name, value in figures.items():
                writer.add_scalar(name, value, step)

        try:
            yield record
        finally:
            writer.close()


def _unrecorded(figures: Mapping[str, float], step: int) -> None:
    """Record nothing."""


def _run_folder(folder: Path) -> Path:
    """Return a folder that no earlier run has, so that no two runs are drawn as one."""
    name = f"router_{datetime.now():%Y%m%d_%H%M%S}"
    numbered = (folder / (f"{name}_{n}" if n else name) for n in itertools.count())
    return next(path for path in numbered if not path.exists())


def _writer_class() -> Any:
    try:
        found: Any = importlib.import_module("torch.utils.tensorboard")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "tensorboard":
            raise
        raise MissingDependencyError("tensorboard", "tensorboard") from error
    return found.SummaryWriter
