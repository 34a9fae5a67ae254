"""Data sets to label: found, read, and their rows turned into records without scores.

===========  =======================================================================================
kind         what is read
===========  =======================================================================================
``hub``      a data set of the hub, or a folder of files, which is read as the hub's are (splits by
             file names, pictures in folders)
``disk``     a folder that ``save_to_disk`` wrote, also one with several splits
``parquet``  Parquet files, streamed; also a folder of records that ``sharded`` wrote
``json``     JSON lists and JSON lines, also gzipped
``csv``      CSV, also gzipped; an empty cell is a missing value
===========  =======================================================================================
"""

from __future__ import annotations

import glob
import hashlib
import importlib
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, Final

from router_runtime.errors import ConfigError, DataError
from router_runtime.types import Json
from router_training.formats import RECORDS_FILE, Row, kind_of, parquet_files
from router_training.labelling.config import SourceConfig
from router_training.labelling.source_columns import find_columns
from router_training.labelling.source_pictures import HubPictures
from router_training.labelling.source_readers import (
    disk_rows,
    file_rows,
    hub_rows,
    library,
    parquet_rows,
)
from router_training.labelling.source_rows import to_record

logger = logging.getLogger(__name__)

_KINDS: Final = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}
_ENDINGS: Final = tuple(suffix + end for suffix in _KINDS for end in ("", ".gz"))
_DISK_FILES: Final = ("state.json", "dataset_dict.json")
_HUB_ID: Final = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
_FIRST_ROWS: Final = 100  # in which columns are looked for
_ABSENT: Final = ("RepositoryNotFoundError", "RevisionNotFoundError", "GatedRepoError")


@dataclass(frozen=True)
class Source:
    """Where a data set is, and in which state.

    Parameters
    ----------
    config : SourceConfig
    kind : str
        ``hub``, ``disk``, ``parquet``, ``json`` or ``csv``.
    files : tuple of Path
        Files of the last three kinds, in the order in which they are read.
    state : str or None
        Another one means other rows: the commit of a hub data set, None where nobody can say; of
        local files a digest of their names, sizes and times.
    """

    config: SourceConfig
    kind: str
    files: tuple[Path, ...]
    state: str | None

    @property
    def is_local(self) -> bool:
        """Whether it is on this machine, cached copies aside."""
        return bool(self.files) or Path(self.config.path).is_dir()

    @property
    def dataset(self) -> str:
        """The data set's name for rows that give none."""
        return self.config.dataset or _name_of(self.config)

    @property
    def image_root(self) -> Path:
        """Where paths of pictures start: the source's folder unless configured."""
        if self.config.image_root is not None:
            return self.config.image_root
        path = Path(self.config.path)
        return self.files[0].parent if self.files and not path.is_dir() else path


def locate(config: SourceConfig) -> Source:
    """Find a data set without reading it.

    Raises
    ------
    DataError
        Nothing is there, or its kind is unknown.
    ConfigError
        A setting that would change nothing for a source of this kind, or a kind that it is not.
    """
    kind, files = _kind_and_files(config)
    folder = Path(config.path)
    local = bool(files) or folder.is_dir()
    _refuse_unused(config, kind, local=local)
    if not local:
        return Source(config, kind, (), _revision(config))
    return Source(config, kind, files, _stamp(files or _walked(folder)))


def read_source(config: SourceConfig, *, seed: int) -> Iterator[Row]:
    """Yield the rows of a data set as records without scores; as ``read_located``."""
    return read_located(locate(config), seed=seed)


def read_located(source: Source, *, seed: int) -> Iterator[Row]:
    """Yield the rows of a data set as records without scores.

    Parameters
    ----------
    source : Source
    seed : int
        Of ``shuffle``.

    Yields
    ------
    Row
        The number in the source from 1 (of a shuffled stream: in its order), and the record (see
        ``source_rows.to_record``) or what is wrong with the row.

    Raises
    ------
    DataError
        A column or split that is not there, a file that cannot be read, or no rows.
    MissingDependencyError
        ``datasets`` is not installed.
    """
    config = source.config
    shown, rows = _shown_and_all(source, seed)
    if (one := next(shown, None)) is None:
        yield from _some(rows, config)  # every one holds its error
        return
    try:
        columns = find_columns(config, chain([one], shown))
    except DataError as error:
        if error.file is not None:
            raise
        raise DataError(error.reason, file=config.path, field=error.field) from None
    pictures = HubPictures(config.path) if source.kind == "hub" else None
    for number, value in rows:
        if isinstance(value, DataError):
            yield Row(number, value)
            continue
        try:
            record = to_record(value, columns, dataset=source.dataset)
            if pictures is not None:
                record["images"] = pictures.resolved(record["images"])
            yield Row(number, record)
        except DataError as error:
            yield Row(number, error)


def _shown_and_all(source: Source, seed: int) -> tuple[Iterator[Mapping[str, Any]], Iterator[Row]]:
    """Return the values that tell which columns there are, to be read first, and all rows.

    Every row of JSON may have keys of its own, a picture's among them, so all of them tell; of
    other kinds the first, for all have the same columns. Files are read once more for that.
    """
    rows = _raw_rows(source, seed)
    if source.kind in ("json", "csv"):
        looked_at = _raw_rows(source, seed)
    else:
        first = list(islice(rows, _FIRST_ROWS))
        looked_at, rows = iter(first), chain(first, rows)
    values = (row.value for row in looked_at if isinstance(row.value, Mapping))
    return (values if source.kind == "json" else islice(values, _FIRST_ROWS)), rows


def _some(rows: Iterator[Row], config: SourceConfig) -> Iterator[Row]:
    """Yield the rows, of which there must be one."""
    first = next(rows, None)
    if first is None:
        raise DataError("The data set has no rows.", file=config.path)
    yield from chain([first], rows)


def _raw_rows(source: Source, seed: int) -> Iterator[Row]:
    config, files = source.config, source.files
    if source.kind == "hub":
        revision = None if source.is_local else source.state
        return hub_rows(config, revision=revision, seed=seed)
    if source.kind == "disk":
        return disk_rows(config, seed=seed)
    if source.kind == "parquet":
        return parquet_rows(config, files, seed=seed)
    rows = file_rows(config, files, seed=seed)
    return map(_without_empty, rows) if source.kind == "csv" else rows


def _without_empty(row: Row) -> Row:
    """Return a row of CSV with nothing for empty cells."""
    if isinstance(row.value, DataError):
        return row
    return Row(row.number, {name: cell or None for name, cell in row.value.items()})


def _kind_and_files(config: SourceConfig) -> tuple[str, tuple[Path, ...]]:
    path = Path(config.path)
    if _is_pattern(config.path):
        files = tuple(sorted(Path(name) for name in glob.glob(config.path, recursive=True)))
        if not files:
            raise DataError("No file matches the pattern.", file=config.path)
        return _kind_of_files(config, files), files
    if path.is_file():
        return _kind_of_files(config, (path,)), (path,)
    if path.is_dir():
        return _kind_of_folder(config, path)
    is_id = _HUB_ID.fullmatch(config.path) and not config.path.lower().endswith(_ENDINGS)
    if config.kind == "hub" or (config.kind == "auto" and is_id):
        return "hub", ()
    raise DataError("There is no such file or folder, and no such hub id.", file=config.path)


def _is_pattern(path: str) -> bool:
    return any(mark in path for mark in "*?[") and not Path(path).exists()


def _kind_of_files(config: SourceConfig, files: tuple[Path, ...]) -> str:
    found = sorted({_KINDS[kind_of(file)] for file in files})
    if len(found) > 1:
        raise DataError(f"The pattern matches files of {' and '.join(found)}.", file=config.path)
    if config.kind not in ("auto", found[0]):
        raise ConfigError(f"data.kind is '{config.kind}', and '{config.path}' is {found[0]}.")
    return found[0]


def _kind_of_folder(config: SourceConfig, folder: Path) -> tuple[str, tuple[Path, ...]]:
    kind: str = config.kind
    if kind == "auto":
        saved = any((folder / name).is_file() for name in _DISK_FILES)
        kind = "parquet" if (folder / RECORDS_FILE).is_file() else "disk" if saved else "hub"
    if kind in ("hub", "disk"):
        return kind, ()
    files = parquet_files(folder) if kind == "parquet" else _files_of(kind, folder)
    if not files:
        raise DataError(f"The folder holds no file of kind {kind}.", file=config.path)
    return kind, tuple(files)


def _files_of(kind: str, folder: Path) -> list[Path]:
    named = [path for path in folder.iterdir() if path.name.lower().endswith(_ENDINGS)]
    return sorted(path for path in named if path.name[0] != "." and _KINDS[kind_of(path)] == kind)


def _refuse_unused(config: SourceConfig, kind: str, *, local: bool) -> None:
    used = {
        "name": kind == "hub",
        "split": kind in ("hub", "disk"),
        "revision": kind == "hub" and not local,
        "streaming": kind == "hub",
    }
    for key, is_used in used.items():
        if getattr(config, key) and not is_used:
            raise ConfigError(
                f"data.{key} would change nothing: '{config.path}' is read as {kind}. Remove it."
            )


def _walked(folder: Path) -> Iterator[Path]:
    """Yield the files of a folder and its folders, in one order everywhere."""
    for root, folders, names in os.walk(folder):
        folders.sort()
        yield from (Path(root) / name for name in sorted(names))


def _stamp(files: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        state = file.stat()
        digest.update(f"{file}\0{state.st_size}\0{state.st_mtime_ns}\0".encode())
    return digest.hexdigest()


def _name_of(config: SourceConfig) -> str:
    if _is_pattern(config.path):
        parts = [part for part in Path(config.path).parts if not set(part) & set("*?[")]
        name = parts[-1].strip(os.sep) if parts else ""
    else:
        name = Path(config.path).name.removesuffix(".gz")
        name = next((name.removesuffix(end) for end in _KINDS if name.endswith(end)), name)
    return f"{name or 'data'}/{config.name}" if config.name else name or "data"


def _revision(config: SourceConfig) -> str | None:
    """Return the commit that will be read; where the hub does not answer, what the config says."""
    library()
    try:
        info = (
            importlib.import_module("huggingface_hub")
            .HfApi()
            .dataset_info(config.path, revision=config.revision, timeout=20)
        )
    except Exception as error:  # those of the hub and of several HTTP clients
        kinds = {kind.__name__ for kind in type(error).__mro__}
        if kinds & set(_ABSENT):
            raise DataError(
                "The hub has no such data set or revision, or does not let you read it "
                f"({type(error).__name__}).",
                file=config.path,
            ) from error
        logger.info("the hub does not answer (%s); reading what is kept", type(error).__name__)
        return config.revision
    sha: Any = info.sha
    return str(sha) if sha else config.revision


def describe(source: Source) -> dict[str, Json]:
    """Return all that the rows of a source depend on, but the seed of its shuffling."""
    return {"config": source.config.model_dump(mode="json"), "state": source.state}
