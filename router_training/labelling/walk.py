"""From a data set to evaluation records: read, ask the candidates, judge, tabulate.

Every stage can be run again: samples are read once, answers and verdicts are asked for once, and
records are computed from what is kept. What is stopped, by Ctrl-C, ``kill``, the budget or a target
that refuses, goes on where it was when the same is run again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import TypeAlias

from router_runtime.types import Progress
from router_training.labelling.answer_store import AnswerStore
from router_training.labelling.ask_local import (
    COLLECT,
    JUDGE,
    Asked,
    Stage,
    ask_local,
    build_targets,
)
from router_training.labelling.ask_ray import ask_ray
from router_training.labelling.cells import cell_reader
from router_training.labelling.config import LabelConfig
from router_training.labelling.progress import Unwatched, Watch
from router_training.labelling.samples_stage import (
    iter_samples,
    keep_samples,
    n_samples,
    read_manifest,
)
from router_training.labelling.scoring import check_names
from router_training.labelling.tabulate import Tabulated, tabulate, writes_folder
from router_training.ray_cluster import ray_module

Watching: TypeAlias = Callable[[], AbstractContextManager[Watch]]
"""Opens what is told while targets are asked."""

Bar: TypeAlias = Callable[[str], AbstractContextManager[Progress]]
"""Opens a progress bar with a label."""


def _unwatched() -> AbstractContextManager[Watch]:
    return nullcontext(Unwatched())


def _no_bar(_label: str) -> AbstractContextManager[Progress]:
    return nullcontext(lambda _done, _total: None)


@dataclass(frozen=True)
class Screen:
    """Who is shown what goes on; by default nobody.

    Parameters
    ----------
    watching : callable
        Opens a ``Watch``, such as ``LabelProgress``, while targets are asked.
    bar : callable
        Opens a progress bar, such as ``console.progress_bar``, for everything else.
    """

    watching: Watching = _unwatched
    bar: Bar = _no_bar


@dataclass(frozen=True)
class Labelled:
    """What a run did.

    Parameters
    ----------
    samples : Path
        The folder of the samples.
    n_samples : int
    asked : Asked
    spent_usd : Decimal
        Exact, of this run.
    total_usd : Decimal
        Exact, of all runs with this work folder.
    estimated_usd : Decimal
        What calls of unknown cost may have cost at most, over all runs.
    tabulated : Tabulated or None
        None where no records were wanted, or something is missing that may still come.
    """

    samples: Path
    n_samples: int
    asked: Asked
    spent_usd: Decimal
    total_usd: Decimal
    estimated_usd: Decimal
    tabulated: Tabulated | None


def collect(config: LabelConfig, *, screen: Screen = Screen()) -> Labelled:
    """Ask every candidate about every sample that it can serve, and keep the answers.

    Parameters
    ----------
    config : LabelConfig
    screen : Screen

    Raises
    ------
    ConfigError
        A key is not set, or another run writes into the same work folder.
    DataError
        The source cannot be read.
    RouterError
        The work folder cannot be written.
    """
    return _run(config, (COLLECT,), screen=screen, records=False, partial_records=False)


def judge(config: LabelConfig, *, screen: Screen = Screen(), partly: bool = False) -> Labelled:
    """Judge the answers that are kept, and write the records.

    Parameters
    ----------
    config : LabelConfig
    screen : Screen
    partly : bool
        Write records also while answers or verdicts are missing that may still come.

    Raises
    ------
    ConfigError
        As ``collect``; a scorer or rubric cannot be had; the output cannot be written.
    """
    return _run(config, (JUDGE,), screen=screen, records=True, partial_records=partly)


def label(config: LabelConfig, *, screen: Screen = Screen(), partly: bool = False) -> Labelled:
    """Collect and judge, and write the records; as ``collect`` and ``judge`` together."""
    return _run(config, (COLLECT, JUDGE), screen=screen, records=True, partial_records=partly)


def kept_samples(config: LabelConfig, *, screen: Screen = Screen()) -> Path:
    """Return the folder of the samples, reading the source first where that was not done."""
    with screen.bar("reading samples") as progress:
        return keep_samples(config, progress=progress)


def _run(
    config: LabelConfig,
    stages: Collection[Stage],
    *,
    screen: Screen,
    records: bool,
    partial_records: bool,
) -> Labelled:
    if records:
        writes_folder(config.output)  # what is wrong with it is said before anybody is paid
    with AnswerStore.open(config.work_dir, holder=f"router-train {_command(stages)}") as store:
        cell_reader(config, store)  # likewise: scorers, rubric, names
        ask = _engine(config, stages)
        folder = kept_samples(config, screen=screen)
        if JUDGE in stages:
            asked_for = read_manifest(folder).scorers  # likewise
            check_names(asked_for, config.scoring, judged=config.judge is not None)
        before = store.spent()
        with screen.watching() as watch:
            asked = ask(config, folder, store, watch)
        tabulated = None
        if records and (partial_records or not asked.pending):
            with screen.bar("writing records") as progress:
                tabulated = tabulate(config, folder, store, progress=progress)
        return Labelled(
            samples=folder,
            n_samples=n_samples(folder),
            asked=asked,
            spent_usd=store.spent() - before,
            total_usd=store.spent(),
            estimated_usd=store.estimated(),
            tabulated=tabulated,
        )


def _engine(
    config: LabelConfig, stages: Collection[Stage]
) -> Callable[[LabelConfig, Path, AnswerStore, Watch], Asked]:
    """Return what asks; what it lacks here is said before the source is read."""
    if config.engine == "ray":
        ray_module()
        return lambda config, folder, store, watch: ask_ray(
            config, folder, store, stages=stages, watch=watch
        )
    targets = build_targets(config, stages)
    return lambda config, folder, store, watch: ask_local(
        config,
        partial(iter_samples, folder),
        store,
        targets=targets,
        stages=stages,
        n_samples=n_samples(folder),
        watch=watch,
    )


def _command(stages: Collection[Stage]) -> str:
    return "label" if len(stages) > 1 else next(iter(stages))
