"""One piece of work, done in one process: a study of one table with one seed.

Results are kept in the work folder under a digest of all that they depend on, code included, so
that an interrupted run continues and a changed one does not show old figures.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np

import router_runtime
import router_training
from quality_parts.ablation import ablations, learning_curve
from quality_parts.baselines import baselines
from quality_parts.intervals import drawn_figures, draws_of
from quality_parts.measures import Judged, measure, selection_shares
from quality_parts.systems import (
    Bench,
    Predictions,
    System,
    code_digest,
    digest_of_files,
    question_only,
    recipe,
    with_minilm,
)
from quality_parts.tables import Table
from router_runtime.types import F64, Json
from router_training.config import TrainingConfig
from router_training.store import StageStore

Study = Literal["systems", "ablation", "learning_curve", "left_out", "add_model"]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Work:
    """A study of one table with one seed.

    Parameters
    ----------
    table : Table
    study : str
    seed : int
    data, folder : Path
        Where the records are, and where results are kept.
    limit : int or None
        Take that many random rows only.
    resamples : int
        Draws of the bootstrap.
    minilm : bool
        Also the recipe with the ``sentence`` encoder.
    """

    table: Table
    study: Study
    seed: int
    data: Path
    folder: Path
    limit: int | None = None
    resamples: int = 1000
    minilm: bool = False


@dataclass(frozen=True, eq=False)
class Measured:
    """One system on one table with one seed.

    Parameters
    ----------
    system : str
    title : str
    figures, shares, seconds : mapping
        As in ``report.SystemResult``.
    draws : mapping
        Figures in each draw of the bootstrap, (n_resamples,) each.
    binding : bool
        See ``System``.
    """

    system: str
    title: str
    figures: Mapping[str, float]
    shares: Mapping[str, float]
    seconds: Mapping[str, float]
    draws: Mapping[str, F64]
    binding: bool


@dataclass(frozen=True, eq=False)
class Done:
    """The result of one piece of work: of systems, or of another study."""

    work: Work
    rows: int
    measured: tuple[Measured, ...] = ()
    found: Json = None


def do(work: Work, say: Say) -> Done:
    """Do a piece of work.

    Parameters
    ----------
    work : Work
    say : callable
        Told what is begun.
    """
    config = _config(work)
    bench = Bench(config, hidden_model=work.table.hidden_model)
    if work.study in ("left_out", "add_model"):
        say(work.study)
        return Done(work, len(bench.walk.data), found=_other_study(bench, work.study))
    return Done(work, len(bench.walk.data), _measured(bench, work, systems_of(work, bench), say))


def systems_of(work: Work, bench: Bench) -> tuple[System, ...]:
    """Return what a study compares, the default recipe first."""
    pictures = work.table.images is not None
    minilm = (with_minilm(_config(work, minilm=True)),) if work.minilm else ()
    if work.study == "learning_curve":
        return learning_curve()
    if work.study == "ablation":
        return (*ablations(bench.config, pictures=pictures), *minilm)
    return (recipe(), *baselines(), *((question_only(),) if pictures else ()), *minilm)


def _config(work: Work, *, minilm: bool = False) -> TrainingConfig:
    """Return the run, whose work folder is of this code alone; only embeddings outlive a change."""
    folder = work.folder / code_digest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    shared, link = work.folder / "embedding-cache", folder / "embedding-cache"
    shared.mkdir(exist_ok=True)
    with suppress(FileExistsError):
        link.symlink_to(shared, target_is_directory=True)
    return work.table.config(
        work.data, seed=work.seed, work=folder, limit=work.limit, minilm=minilm
    )


def _measured(
    bench: Bench, work: Work, systems: Sequence[System], say: Say
) -> tuple[Measured, ...]:
    split = bench.walk.split
    rows = Judged(bench.part(split.calibration), bench.part(split.test))
    store = StageStore(bench.config.work_dir)
    results = []
    for system in systems:
        say(system.title)

        def make(folder: Path, system: System = system) -> None:
            _measure_into(folder, bench, rows, system, work.resamples)

        def load(folder: Path, system: System = system) -> Measured:
            return _read_measured(folder, system)

        inputs = {
            "run": bench.identity,
            "system": system.settings,
            "policy": [system.thresholds, system.constant_cost],
            "resamples": work.resamples,
            "code": _measuring_digest(),
        }
        results.append(store.stage("measured", inputs, make=make, load=load))
    return tuple(results)


def _measure_into(
    folder: Path, bench: Bench, rows: Judged, system: System, n_resamples: int
) -> None:
    found = bench.predictions(system)
    if system.constant_cost:
        found = constant_cost(found)
    content = {
        "figures": measure(rows, found, thresholds=system.thresholds),
        "shares": selection_shares(rows, found, thresholds=system.thresholds),
        "seconds": found.seconds,
    }
    (folder / "measured.json").write_text(json.dumps(content), encoding="utf-8")
    walk = bench.walk
    resamples = draws_of(walk.data.groups, walk.split.test, n_resamples=n_resamples)
    np.savez(folder / "draws.npz", **drawn_figures(rows, found, resamples))


def _read_measured(folder: Path, system: System) -> Measured:
    content = json.loads((folder / "measured.json").read_text(encoding="utf-8"))
    with np.load(folder / "draws.npz", allow_pickle=False) as draws:
        return Measured(
            system.key, system.title, **content, draws=dict(draws), binding=system.binding
        )


def constant_cost(found: Predictions) -> Predictions:
    """Replace every expected cost by its model's mean over the calibration rows."""
    mean = np.nanmean(found.cost_calibration, axis=0)
    return replace(
        found,
        cost_calibration=np.broadcast_to(mean, found.cost_calibration.shape),
        cost_test=np.broadcast_to(mean, found.cost_test.shape),
    )


def _other_study(bench: Bench, study: Study) -> Json:
    def make(folder: Path) -> None:
        # Imported here, so that one study does not need what only the other does.
        module = importlib.import_module(f"quality_parts.{study}")
        (folder / "found.json").write_text(json.dumps(module.run(bench)), encoding="utf-8")

    def load(folder: Path) -> Json:
        return json.loads((folder / "found.json").read_text(encoding="utf-8"))

    inputs = {"run": bench.identity, "code": _measuring_digest()}
    return StageStore(bench.config.work_dir).stage(study, inputs, make=make, load=load)


@cache
def _measuring_digest() -> str:
    here, training = Path(__file__).parent, Path(router_training.__file__).parent
    names = ("bootstrap", "curves", "evaluate", "leave_out", "metrics", "trade_off", "tune")
    return digest_of_files(
        Path(router_runtime.__file__).parent / "policy.py",
        *(training / f"{name}.py" for name in names),
        *(here / f"{name}.py" for name in ("add_model", "intervals", "left_out", "measures")),
        Path(__file__),
    )
