"""The samples to label, read from their source once and kept as Parquet in the work folder.

Reading checks every row and every picture. What is kept is our record format without scores
(``samples``), so that asking, judging and tabulating walk it as often as they like: from the start
or from any shard, always in one order, with one batch of rows in memory.
"""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final

from router_runtime.errors import DataError, RouterError
from router_runtime.images import DEFAULT_LIMITS, load_image
from router_runtime.messages import TextRule
from router_runtime.types import Image, Json, Progress
from router_training.formats import Row, parquet_module
from router_training.labelling.config import LabelConfig
from router_training.labelling.samples import LabelSample
from router_training.labelling.sources import Source, describe, locate, read_located
from router_training.labels import SkippedRow
from router_training.pictures import Pictures
from router_training.samples import Sample, read_record
from router_training.sharded import PartWriter, part_name
from router_training.store import StageStore

MANIFEST_FILE: Final = "manifest.json"
ROWS_PER_SHARD: Final = 1000

_FORMAT: Final = 2  # raise when the files or the reading of rows change their meaning
_LISTED: Final = 1000  # skipped rows that the manifest lists; all are counted
_REMEMBERED: Final = 64  # pictures that rows in a row may share
_COLUMNS: Final[Mapping[str, Json]] = {
    "idx": "string",
    "prompt": "string",
    "messages": "string",
    "images": ["binary"],
    "answer": "string",
    "group": "string",
    "dataset": "string",
    "choices": ["string"],
    "scorer": ["string"],
}


@dataclass(frozen=True)
class SamplesManifest:
    """What a folder of samples holds.

    Parameters
    ----------
    shards : tuple of int
        Samples per shard.
    skipped : tuple of SkippedRow
        The first rows of the source that were left out.
    n_skipped : int
        All that were left out.
    reasons : mapping
        How many were left out per reason.
    source : mapping
        The source's settings and its state; see ``sources.describe``.
    scorers : mapping
        Scorers that samples ask for by name, and the first sample that does.
    """

    shards: tuple[int, ...]
    skipped: tuple[SkippedRow, ...]
    n_skipped: int
    reasons: Mapping[str, int]
    source: Mapping[str, Json]
    scorers: Mapping[str, str]


def keep_samples(config: LabelConfig, *, progress: Progress | None = None) -> Path:
    """Return the folder of a run's samples, reading the source unless that was done before.

    Parameters
    ----------
    config : LabelConfig
        ``data``, ``seed`` and ``work_dir`` matter here.
    progress : callable, optional
        Called with the rows that were read and ``data.limit``, or 0 where there is none.

    Raises
    ------
    DataError
        As ``sources.read_located``; a bad row unless those are skipped; no usable row.
    RouterError
        The work folder cannot be written, or what it keeps is damaged.
    """
    source = locate(config.data)
    seed = config.seed if config.data.shuffle else None
    inputs = {"format": _FORMAT, "source": describe(source), "seed": seed}

    def make(folder: Path) -> None:
        _Keeper(source, folder, progress).keep(seed=config.seed)

    def load(folder: Path) -> Path:
        read_manifest(folder)
        return folder

    return StageStore(config.work_dir).stage("samples", inputs, make=make, load=load)


def read_manifest(folder: Path) -> SamplesManifest:
    """Return what a folder of samples holds.

    Raises
    ------
    RouterError
        It is none, or a shard is missing.
    """
    try:
        content = json.loads((folder / MANIFEST_FILE).read_bytes())
        shards = tuple(int(rows) for rows in content["shards"])
        skipped = tuple(SkippedRow(**row) for row in content["skipped"])
        n_skipped, reasons = int(content["n_skipped"]), dict(content["reasons"])
        source, scorers = dict(content["source"]), dict(content["scorers"])
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise RouterError(f"'{folder}' holds no samples that can be read: {error}.") from error
    for at in range(len(shards)):
        if not (folder / part_name(at)).is_file():
            raise RouterError(f"'{part_name(at)}' is missing from the samples in '{folder}'.")
    return SamplesManifest(shards, skipped, n_skipped, reasons, source, scorers)


def n_samples(folder: Path) -> int:
    """Return how many samples a folder holds."""
    return sum(read_manifest(folder).shards)


def n_shards(folder: Path) -> int:
    """Return how many shards a folder's samples are in."""
    return len(read_manifest(folder).shards)


def iter_samples(folder: Path, *, shard: int | None = None) -> Iterator[LabelSample]:
    """Yield the samples of a folder in order, or of one of its shards, counted from 0.

    Raises
    ------
    RouterError
        The folder holds no samples, has no such shard, or one is damaged.
    """
    count = n_shards(folder)
    if shard is not None and not 0 <= shard < count:
        raise RouterError(f"There is no shard {shard} in '{folder}'; it has {count}.")
    for at in range(count) if shard is None else [shard]:
        yield from samples_in(folder / part_name(at))


def samples_in(file: Path, start: int = 0, stop: int | None = None) -> Iterator[LabelSample]:
    """Yield the samples of one shard's file, or of a range of its rows, counted from 0.

    Raises
    ------
    RouterError
        The file is missing or damaged.
    """
    pictures = _CheckedPictures(file.parent)
    rows = islice(parquet_module().read(file), start, stop)
    for number, row in enumerate(rows, start=start + 1):
        yield _label_sample(row, number, pictures)


class _Keeper:
    """Writes the usable rows of a source and counts the others."""

    def __init__(self, source: Source, folder: Path, progress: Progress | None) -> None:
        self._source = source
        self._folder = folder
        self._progress = progress
        self._pictures = _RecentPictures(source.image_root)
        self._skipped: list[SkippedRow] = []
        self._reasons: Counter[str] = Counter()
        self._scorers: dict[str, str] = {}

    def keep(self, *, seed: int) -> None:
        total = self._source.config.limit or 0
        parts = PartWriter(self._folder, _COLUMNS, rows_per_part=ROWS_PER_SHARD)
        with _id_table(self._folder) as ids, parts:
            rows = read_located(self._source, seed=seed)
            for done, row in enumerate(rows, start=1):
                if (record := self._attempt(row, ids)) is not None:
                    parts.write(record)
                if self._progress is not None:
                    self._progress(done, total)
        if not parts.rows:
            first = self._skipped[0]
            raise DataError(
                f"No usable row: all {self._reasons.total()} were left out, the first (row "
                f"{first.row}) because: {first.reason}",
                file=self._source.config.path,
            )
        self._write_manifest(parts.rows)

    def _attempt(self, row: Row, ids: sqlite3.Connection) -> dict[str, Json] | None:
        """Return a row as it is kept, None where it is skipped."""
        try:
            if isinstance(row.value, DataError):
                raise row.value
            return self._kept(row.value, row.number, ids)
        except DataError as error:
            if error.file is not None:  # a whole file or tar is bad, not this row
                raise
            if self._source.config.on_bad_row == "error":
                raise DataError(
                    error.reason, file=self._source.config.path, row=row.number, field=error.field
                ) from error
            known = error.reason in self._reasons or len(self._reasons) < _LISTED
            self._reasons[error.reason if known else "other reasons"] += 1
            if len(self._skipped) < _LISTED:
                self._skipped.append(SkippedRow(row.number, error.field, error.reason))
            return None

    def _kept(
        self, value: Mapping[str, Any], number: int, ids: sqlite3.Connection
    ) -> dict[str, Json]:
        sample = _sample(value, number, self._pictures)
        name = self._unique(sample.id, number, ids)
        for scorer in value["scorer"] or ():
            self._scorers.setdefault(scorer, name)
        return {
            "idx": name,
            "prompt": sample.prompt,
            "messages": _json(sample.messages),
            "images": [image.data for image in sample.query.images],
            "answer": sample.reference,
            "group": sample.group,
            "dataset": sample.dataset,
            "choices": value["choices"],
            "scorer": value["scorer"],
        }

    def _unique(self, name: str, number: int, ids: sqlite3.Connection) -> str:
        """Return a row's id; one that repeats is made unique where nobody said that it were one."""
        if _is_new(name, ids):
            return name
        if self._source.config.columns.id is not None:
            raise DataError(
                "The id is already that of another row; name another column as data.columns.id, "
                "or none.",
                field="id",
            )
        name = f"{name}#{number}"
        if not _is_new(name, ids):
            raise DataError("The id is already that of another row.", field="id")
        return name

    def _write_manifest(self, shards: tuple[int, ...]) -> None:
        manifest = {
            "format": _FORMAT,
            "rows": sum(shards),
            "shards": shards,
            "columns": list(_COLUMNS),
            "source": describe(self._source),
            "scorers": self._scorers,
            "n_skipped": self._reasons.total(),
            "reasons": dict(self._reasons.most_common()),
            "skipped": [asdict(row) for row in self._skipped],
        }
        text = json.dumps(manifest, indent=1, ensure_ascii=False)
        (self._folder / MANIFEST_FILE).write_text(text + "\n", encoding="utf-8")


class _RecentPictures(Pictures):
    """Pictures of a source, of which only the last are remembered."""

    def load(self, source: Any) -> Image:
        if len(self._by_digest) >= _REMEMBERED:
            self._by_digest.clear()
            self._by_name.clear()
        return super().load(source)


class _CheckedPictures(Pictures):
    """Pictures that were decoded when they were kept, and are not decoded again."""

    def load(self, source: Any) -> Image:
        return load_image(source, limits=DEFAULT_LIMITS, allow_paths=False)


def _sample(value: Mapping[str, Any], number: int, pictures: Pictures) -> Sample:
    # A record's shape is told by its scores; there are none yet.
    row = {**value, "model_scores": {}}
    return read_record(row, number=number, pictures=pictures, rule=TextRule()).sample


def _label_sample(row: Mapping[str, Any], number: int, pictures: Pictures) -> LabelSample:
    sample = _sample(row, number, pictures)
    return LabelSample(sample, tuple(row["scorer"] or ()), tuple(row["choices"] or ()))


def _json(messages: tuple[Mapping[str, Any], ...] | None) -> str | None:
    try:
        return None if messages is None else json.dumps(messages)
    except TypeError as error:
        raise DataError(f"A turn holds what JSON cannot: {error}.", field="messages") from None


@contextmanager
def _id_table(folder: Path) -> Iterator[sqlite3.Connection]:
    """Open a table of the ids seen so far, on disk: of millions they would fill the memory."""
    path = folder / ".ids.sqlite"
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode=OFF")
        connection.execute("PRAGMA synchronous=OFF")
        connection.execute("CREATE TABLE ids (id TEXT PRIMARY KEY) WITHOUT ROWID")
        connection.execute("BEGIN")
        yield connection
    path.unlink(missing_ok=True)


def _is_new(name: str, ids: sqlite3.Connection) -> bool:
    inserted = ids.execute("INSERT OR IGNORE INTO ids VALUES (?)", (name,))
    return inserted.rowcount == 1
