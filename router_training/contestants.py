"""Artifacts, runtime configs and training configs as contestants on the same records."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from router_runtime.config import RuntimeConfig
from router_runtime.errors import ConfigError, DataError
from router_runtime.model_router import ModelRouter
from router_runtime.types import Int
from router_runtime.yaml_config import read_yaml
from router_training.compare import Comparison, Contestant, compare
from router_training.config import load_training_config
from router_training.held_out import held_out
from router_training.labels import Evaluations, OnBadRow
from router_training.pipeline import Walk, Watch
from router_training.served import Served, read_records


@dataclass(frozen=True, eq=False)
class _Entry:
    """Something to compare: its records, which of them it never saw, and how to ask it."""

    name: str
    records: Evaluations
    rows: Int
    trained_here: bool
    ask: Callable[[Int], Contestant]
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
    watch: Watch | None = None,
) -> Compared:
    """Compare artifacts and configs on the records that none of them was trained on.

    Parameters
    ----------
    paths : sequence of path
        Artifact folders, runtime configs (with the key ``artifact``) and training configs. A
        training config is walked up to its predictions; nothing is saved but its work folder.
    data : path, optional
        The records. Replaces ``data.path`` of training configs; needed by everything else.
    image_root, on_bad_row
        As in ``importers.import_file``; replace those of training configs.
    all_rows : bool
        Let artifacts answer records that they were trained on.
    seed : int
        Of the bootstrap.
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
    contestants = [entry.ask(np.array([entry.ids[key] for key in common])) for entry in entries]
    groups = first.records.take([first.ids[key] for key in common]).groups
    found = compare(contestants, groups=groups, seed=seed)
    return Compared(found, tuple(f"{e.name}: {e.message}" for e in entries if e.message))


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

    return _Entry(name, records, kept.rows, False, ask, kept.message)


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

    return _Entry(name, walk.data, walk.split.test, True, ask)


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
