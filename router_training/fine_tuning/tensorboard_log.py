"""Figures to files that TensorBoard shows; nothing leaves the machine."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from router_runtime.errors import MissingDependencyError, RouterError
from router_runtime.types import Json
from router_training.fine_tuning.recording import Recorder


@contextmanager
def tensorboard_run(folder: Path, *, settings: Mapping[str, Json]) -> Iterator[Recorder]:
    """Record one run into a folder: settings as text, then figures per epoch.

    Parameters
    ----------
    folder : Path
        What ``tensorboard --logdir`` is given.
    settings : mapping
        What is chosen.

    Raises
    ------
    MissingDependencyError
        The ``tensorboard`` package is not installed.
    RouterError
        The folder cannot be written.
    """
    try:
        module: Any = importlib.import_module("torch.utils.tensorboard")
    except ModuleNotFoundError as error:
        if error.name != "tensorboard":
            raise
        raise MissingDependencyError("tensorboard", "tensorboard") from error
    try:
        writer = module.SummaryWriter(log_dir=str(folder))
    except OSError as error:
        raise RouterError(f"'{folder}' cannot be written: {error.strerror or error}.") from error
    rows = "\n".join(f"| {name} | {value} |" for name, value in settings.items())
    writer.add_text("settings", f"| setting | value |\n|---|---|\n{rows}")

    def record(figures: Mapping[str, float], *, step: int) -> None:
        for name, value in figures.items():
            writer.add_scalar(name, value, global_step=step)
        writer.flush()

    try:
        yield record
    finally:
        writer.close()
