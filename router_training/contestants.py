"""Artifacts, runtime configs and training configs as contestants on the same records.

What each of them takes is measured on a router as it serves: of a training config, one that is
saved for the moment and loaded again.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

import numpy as np

from router_runtime.artifact_folder import find_folder
from router_runtime.config import RuntimeConfig
from router_runtime.errors import ConfigError, DataError, TargetError
from router_runtime.model_router import ModelRouter
from router_runtime.prediction.prompted import PromptedConfig, PromptedPredictor
from router_runtime.types import Int, Query
from router_runtime.yaml_config import read_yaml
from router_training.compare import Comparison, Contestant, compare
from router_training.config import load_training_config
from router_training.footprint import TIMED, Footprint, footprint, machine, timed
from router_training.held_out import held_out
from router_training.labels import Evaluations, OnBadRow
from router_training.learners import runtime_of
from router_training.pipeline import Walk
from router_training.served import Served, read_records
from router_training.stages import Watch

_Serving: TypeAlias = AbstractContextManager[tuple[ModelRouter, Path]]


@dataclass(frozen=True, eq=False)
class _Entry:
    """Something to compare: its records, which of them it never saw, and how to ask it.

    ``serving`` opens it as a router, with the folder of its artifact.
    """

    name: str
    records: Evaluations
    rows: Int
    trained_here: bool
    ask: Callable[[Int], Contestant]
    serving: Callable[[], _Serving]
    message: str = ""

    @property
    def ids(self) -> dict[str, int]:
        """The row of each held-out record, by id."""
        return {self.records.samples[row].id: int(row) for row in self.rows}


@dataclass(frozen=True, eq=False)
class Compared:
    """A comparison, and what the user should know about its rows."""

    comparison: Comparison
    messages: tuple[str, ...]


def compare_files(
    paths: Sequence[Path],
    *,
    data: Path | None = None,
    image_root: Path | None = None,
    on_bad_row: OnBadRow | None = None,
    all_rows: bool = False,
    seed: int = 0,
    n_timed: int = TIMED,
    watch: Watch | None = None,
) -> Compared:
    """Compare artifacts and configs on the records that none of them was trained on.

    Parameters
    ----------
    paths : sequence of path
        Artifact folders, runtime configs (with the key ``artifact``) and training configs. A
        training config is walked up to its artifact; nothing stays but its work folder.
    data : path, optional
        The records. Replaces ``data.path`` of training configs; needed by everything else.
    image_root, on_bad_row
        As in ``importers.import_file``; replace those of training configs.
    all_rows : bool
        Let artifacts answer records that they were trained on.
    seed : int
        Of the bootstrap.
    n_timed : int
        Queries on which decisions are timed; 0: none.
    watch : callable, optional
        As in ``Walk``.

    Raises
    ------
    ConfigError
        Fewer than two paths, or no records are named.
    DataError
        The routers have no held-out rows in common, or training configs have other test rows.
    """
    if len(paths) < 2:
        raise ConfigError("Name at least two artifacts or configs to compare.")
    entries = []
    for path, name in zip(paths, _names(paths), strict=True):
        if path.is_file() and path.suffix in (".yml", ".yaml"):
            content = read_yaml(path)
            if "artifact" not in content:
                entries.append(_walked(path, name, data, image_root, on_bad_row, watch))
                continue
            router = ModelRouter.from_config(path)
        else:
            router = ModelRouter.from_config(RuntimeConfig(artifact=path))
        entries.append(_served(router, name, data, image_root, on_bad_row, all_rows))
    common = _common_ids(entries)
    first = entries[0]
    contestants, messages = [], [f"{e.name}: {e.message}" for e in entries if e.message]
    for entry in entries:
        rows = np.array([entry.ids[key] for key in common])
        queries = entry.records.take(rows).queries
        taken, message = _taken(entry, queries, n_timed)
        contestants.append(replace(entry.ask(rows), footprint=taken))
        messages += [f"{entry.name}: {message}"] if message else []
    groups = first.records.take([first.ids[key] for key in common]).groups
    found = compare(contestants, groups=groups, seed=seed, machine=machine() if n_timed else "")
    return Compared(found, tuple(messages))


def _taken(entry: _Entry, queries: Sequence[Query], n_timed: int) -> tuple[Footprint, str]:
    """Return what a router takes, and why its decisions could not be timed, if so."""
    with entry.serving() as (router, folder):
        found = footprint(router, folder)
        try:
            return replace(found, latency=timed(router, queries, most=n_timed)), ""
        except TargetError as error:
            return found, f"its decisions could not be timed: {error}"


def _names(paths: Sequence[Path]) -> list[str]:
    """Return short names; the paths as they were given where those are not unique."""
    short = [path.stem if path.suffix in (".yml", ".yaml") else path.name for path in paths]
    return short if len(set(short)) == len(short) else [str(path) for path in paths]


def _served(
    router: ModelRouter,
    name: str,
    data: Path | None,
    image_root: Path | None,
    on_bad_row: OnBadRow | None,
    all_rows: bool,
) -> _Entry:
    if data is None:
        raise ConfigError("Name the records with --data FILE.")
    records = read_records(router, data, image_root=image_root, on_bad_row=on_bad_row or "error")
    kept = held_out(router.artifact.training, records, all_rows=all_rows)

    def ask(rows: Int) -> Contestant:
        return Contestant(name=name, **Served(router, records.take(rows)).known)

    def serving() -> _Serving:
        return nullcontext((router, find_folder(router.config.artifact)))

    return _Entry(name, records, kept.rows, False, ask, serving, kept.message)


def _walked(
    path: Path,
    name: str,
    data: Path | None,
    image_root: Path | None,
    on_bad_row: OnBadRow | None,
    watch: Watch | None,
) -> _Entry:
    given = {"data.path": data, "data.image_root": image_root, "data.on_bad_row": on_bad_row}
    overrides = {key: value for key, value in given.items() if value is not None}
    walk = Walk(load_training_config(path, overrides=overrides), watch=watch)

    def ask(rows: Int) -> Contestant:
        return Contestant(name=name, **walk.known(rows))

    return _Entry(name, walk.data, walk.split.test, True, ask, lambda: _saved(walk))


@contextmanager
def _saved(walk: Walk) -> Iterator[tuple[ModelRouter, Path]]:
    """Save a walk's artifact for the moment, and load the router that its config would serve."""
    config = walk.config
    runtime = config.encoder
    if isinstance(config.predictor, PromptedConfig):
        runtime = runtime_of(config.predictor, runtime)
    known = tuple(entry for entry in config.candidates if entry.id in walk.data.model_ids)
    with tempfile.TemporaryDirectory(prefix="compare-") as temporary:
        folder = Path(temporary)
        walk.keep(folder=folder)
        router = ModelRouter.from_config(
            RuntimeConfig(artifact=folder, candidates=known, encoder=runtime)
        )
        with ExitStack() as closing:
            if isinstance(router.predictor, PromptedPredictor):
                closing.callback(router.predictor.close)
            yield router, folder


def _common_ids(entries: Sequence[_Entry]) -> list[str]:
    """Return the ids of the records that are held out for everyone, in the first one's order.

    Raises
    ------
    DataError
        There are none, or two training configs test on other rows.
    """
    trained = [entry for entry in entries if entry.trained_here]
    for other in trained[1:]:
        shared = trained[0].ids.keys() & other.ids.keys()
        if len(shared) < max(len(trained[0].ids), len(other.ids)):
            raise DataError(
                f"'{trained[0].name}' tests on {len(trained[0].ids)} rows and '{other.name}' on "
                f"{len(other.ids)}, of which {len(shared)} are the same. Give both the same data, "
                "split, limit and seed."
            )
    kept = [entry.ids.keys() for entry in entries[1:]]
    common = [key for key in entries[0].ids if all(key in ids for ids in kept)]
    if not common:
        raise DataError(
            "No record is held out for all of "
            f"{', '.join(entry.name for entry in entries)}: each was trained on what the others "
            "are tested on. Compare on other records, or pass --all-rows."
        )
    return common
