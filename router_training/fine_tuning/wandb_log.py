"""Figures to Weights & Biases while a classifier learns; only on request, since it sends data."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from router_runtime.errors import MissingDependencyError
from router_runtime.types import Json
from router_training.fine_tuning.recording import Recorder


@contextmanager
def wandb_run(project: str, *, settings: Mapping[str, Json]) -> Iterator[Recorder]:
    """Record one run: settings, then figures per epoch; no text of the data.

    Parameters
    ----------
    project : str
    settings : mapping
        What is chosen, for the run's page.

    Raises
    ------
    MissingDependencyError
        The ``wandb`` package is not installed.
    """
    try:
        wandb: Any = importlib.import_module("wandb")
    except ModuleNotFoundError as error:
        if error.name != "wandb":
            raise
        raise MissingDependencyError("wandb", "wandb") from error
    run = wandb.init(project=project, config=dict(settings))

    def record(figures: Mapping[str, float], *, step: int) -> None:
        run.log(dict(figures), step=step)

    try:
        yield record
    finally:
        run.finish()
