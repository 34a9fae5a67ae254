"""Write routing data: ``train.jsonl``, ``val.jsonl``, ``eval.jsonl``, ``metadata.json``, pictures.

A row is a row of an adapter's data set with the adapter's name and number:

``{"id", "image" (or "images"), "conversations", "metadata", "label", "adapter"}``

The conversation is the source's, answer included: readers route on the request alone. What is added
to ``metadata`` stands under ``routing``: the source's id and row, and the group, which rows with a
common picture share. The folder appears whole or not at all.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from router_runtime import __version__
from router_runtime.errors import ConfigError, RouterError
from router_runtime.types import Json
from router_training.formats import write_json
from router_training.labels import OnBadRow
from router_training.routing.checks import RoutingCheck, check_routing
from router_training.routing.dividing import Parts, Wanted, divide
from router_training.routing.options import AdapterOptions
from router_training.routing.sources import (
    AdapterData,
    AdapterRow,
    BadRow,
    PictureStore,
    read_adapter,
)

FORMAT_VERSION: Final = 1
METADATA: Final = "metadata.json"


@dataclass(frozen=True)
class RoutingOptions:
    """What is made.

    Parameters
    ----------
    adapters : tuple of AdapterOptions
        Their order is that of the labels 0, 1, 2 and of a router's candidates.
    train_share : float
        Of the rows that are not held out, those in ``train.jsonl``; the others go to ``val.jsonl``.
    balanced, stratified : bool
        As in ``dividing.divide``.
    seed : int
    on_bad_row : {"error", "skip"}
        ``skip`` leaves rows that cannot be used out, counted and listed in ``metadata.json``.

    Raises
    ------
    ConfigError
        A share outside (0, 1) or a negative seed.
    """

    adapters: tuple[AdapterOptions, ...]
    train_share: float = 0.8
    balanced: bool = False
    stratified: bool = True
    seed: int = 0
    on_bad_row: OnBadRow = "error"

    def __post_init__(self) -> None:
        if not 0 < self.train_share < 1:
            raise ConfigError(f"train_share is {self.train_share:g}; it must lie in (0, 1).")
        if self.seed < 0:
            raise ConfigError(f"seed is {self.seed}; it must be at least 0.")


@dataclass(frozen=True)
class Generated:
    """What was written.

    Parameters
    ----------
    folder : Path
    check : RoutingCheck
        Measured on the files as written.
    bad : tuple of BadRow
        Rows that were left out.
    unused : mapping
        Rows per adapter that could be used and were not wanted.
    """

    folder: Path
    check: RoutingCheck
    bad: tuple[BadRow, ...]
    unused: Mapping[str, int]


def generate(
    options: RoutingOptions, *, output_dir: str | Path = "datasets", now: datetime
) -> Generated:
    """Read the adapters' data sets and write ``output_dir/routing_<date>_<time>/``.

    Parameters
    ----------
    options : RoutingOptions
    output_dir : path
    now : datetime
        Names the folder.

    Raises
    ------
    DataError
        Naming file, row and field of what cannot be used, or the adapter that has too few rows.
    ConfigError
        The folder exists.
    """
    folder = Path(output_dir) / f"routing_{now:%Y%m%d_%H%M%S}"
    if folder.exists():
        raise ConfigError(f"'{folder}' exists; wait a second, or give another --output-dir.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        made = _write(staging, options, now)
        staging.chmod(0o755)
        os.replace(staging, folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return Generated(folder, *made)


def _write(
    folder: Path, options: RoutingOptions, now: datetime
) -> tuple[RoutingCheck, tuple[BadRow, ...], dict[str, int]]:
    store = PictureStore(folder / "images")
    read = {
        one.adapter: read_adapter(one, store=store, on_bad_row=options.on_bad_row)
        for one in options.adapters
    }
    rows = [row for data in read.values() for row in data.rows]
    parts = divide(
        rows,
        {one.adapter: Wanted(one.train, one.held_out) for one in options.adapters},
        train_share=options.train_share,
        balanced=options.balanced,
        stratified=options.stratified,
        seed=options.seed,
    )
    labels = {one.adapter: at for at, one in enumerate(options.adapters)}
    written = {"train": parts.train, "val": parts.val, "eval": parts.held_out}
    used: set[str] = set()
    for name, places in written.items():
        if places or name != "eval":
            write_json(folder / f"{name}.jsonl", _records(rows, parts, places, labels))
            used.update(picture for at in places for picture in rows[at].pictures)
    store.keep_only(used)
    check = check_routing(folder)
    if check.leaks:
        raise RouterError(f"The parts share rows: {check.leaks[0]}. Nothing was written.")
    bad = tuple(row for data in read.values() for row in data.bad)
    taken = Counter(rows[at].adapter for places in written.values() for at in places)
    unused = {name: len(data.rows) - taken[name] for name, data in read.items()}
    metadata = _metadata(options, read, check, bad, unused, now)
    (folder / METADATA).write_text(
        json.dumps(metadata, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    return check, bad, unused


def _records(
    rows: Sequence[AdapterRow], parts: Parts, places: Sequence[int], labels: Mapping[str, int]
) -> Iterator[dict[str, Json]]:
    for at in places:
        row = rows[at]
        record: dict[str, Json] = {"id": f"{row.adapter}_{row.number:05d}"}
        names: list[Json] = [f"images/{name}" for name in row.pictures]
        if len(names) == 1:
            record["image"] = names[0]
        elif names:
            record["images"] = names
        routing = {
            "source_id": row.source_id,
            "source_row": row.number,
            "group": f"group-{parts.bunch_of[at]:06d}",
        }
        record["conversations"] = row.conversations
        record["metadata"] = {**row.metadata, "routing": routing}
        record["label"] = labels[row.adapter]
        record["adapter"] = row.adapter
        yield record


def _metadata(
    options: RoutingOptions,
    read: Mapping[str, AdapterData],
    check: RoutingCheck,
    bad: Sequence[BadRow],
    unused: Mapping[str, int],
    now: datetime,
) -> dict[str, Json]:
    return {
        "format_version": FORMAT_VERSION,
        "made_by": f"model-router {__version__}",
        "created": now.isoformat(timespec="seconds"),
        "seed": options.seed,
        "adapters": [one.adapter for one in options.adapters],
        "labels": {one.adapter: at for at, one in enumerate(options.adapters)},
        "options": {
            "train_share": options.train_share,
            "balanced": options.balanced,
            "stratified": options.stratified,
            "on_bad_row": options.on_bad_row,
        },
        "sources": [
            {
                "adapter": one.adapter,
                "dataset": one.dataset,
                "kind": read[one.adapter].kind,
                "digest": read[one.adapter].sha256,
                "rows": len(read[one.adapter].rows),
                "bad_rows": len(read[one.adapter].bad),
                "unused_rows": unused[one.adapter],
                "train": asdict(one.train),
                "eval": asdict(one.held_out),
            }
            for one in options.adapters
        ],
        "rows": {part: dict(counts) for part, counts in check.rows.items()},
        "pictures": dict(check.pictures),
        "check": {
            "compared": "pictures by the sha256 of their files, and groups",
            "leaks": list(check.leaks),
            "contradictions": check.contradictions,
        },
        "left_out": [asdict(row) for row in bad],
    }
