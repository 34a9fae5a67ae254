"""Rows of a data set as they are, one reader per kind of source; only here ``datasets`` is used.

JSON and CSV files are read by ``formats`` and not by the library, whose readers guess types and
change values: "2024-01-01" becomes a time, "007" the number 7, "NA" nothing. Pictures are never
decoded on the way: their bytes arrive as they are stored. No code of a data set is run.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain, islice
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np

from router_runtime.errors import DataError, MissingDependencyError, RouterError
from router_training.formats import Row, read_rows
from router_training.labelling.config import SourceConfig

T = TypeVar("T")

_SHUFFLE_ROWS: Final = 1000  # held while a stream is shuffled; pictures make rows heavy
_BATCH_ROWS: Final = 64  # of Parquet, for the same reason
_NOT_HERE: Final = (
    " There is no file or folder of that name either: check the path, or, if it is a hub id, the "
    "name, the network and your access."
)


def library() -> Any:
    """Return the module ``datasets``.

    Raises
    ------
    MissingDependencyError
        It is not installed.
    """
    try:
        return importlib.import_module("datasets")
    except ModuleNotFoundError as error:
        if error.name != "datasets":
            raise
        raise MissingDependencyError("datasets", "label") from error


def file_rows(config: SourceConfig, files: tuple[Path, ...], *, seed: int) -> Iterator[Row]:
    """Yield rows of JSON or CSV files, the rows of several numbered through."""

    def read(file: Path) -> Iterator[Row]:
        for row in read_rows(file):
            if isinstance(row.value, DataError) and len(files) > 1:
                reason = f"{row.value.reason} (row {row.number} of {file.name})"
                yield Row(row.number, DataError(reason, field=row.value.field))
            else:
                yield row

    def rows() -> Iterator[Row]:
        return chain.from_iterable(map(read, files))

    for at, row in _taken(rows(), config, seed=seed, count=lambda: sum(1 for _ in rows())):
        yield row if len(files) == 1 else Row(at + 1, row.value)


def parquet_rows(config: SourceConfig, files: tuple[Path, ...], *, seed: int) -> Iterator[Row]:
    """Yield rows of Parquet files, streamed by the library."""
    paths = [str(file) for file in files]
    stream = _called(
        config,
        lambda: library().load_dataset(
            "parquet", data_files=paths, split="train", streaming=True, batch_size=_BATCH_ROWS
        ),
    )

    def count() -> int:
        metadata = importlib.import_module("pyarrow.parquet").read_metadata
        return sum(int(metadata(path).num_rows) for path in paths)

    values = _values(config, stream)
    for at, value in _taken(values, config, seed=seed, count=lambda: _called(config, count)):
        yield Row(at + 1, value)


def disk_rows(config: SourceConfig, *, seed: int) -> Iterator[Row]:
    """Yield rows of a folder that ``save_to_disk`` wrote."""
    loaded = _called(config, lambda: library().load_from_disk(config.path))
    if isinstance(loaded, library().DatasetDict):
        loaded = loaded[_split(config, list(loaded))]
    elif config.split is not None:
        raise DataError("The saved data set has no splits; remove data.split.", file=config.path)
    return _map_rows(config, loaded, seed=seed)


def hub_rows(config: SourceConfig, *, revision: str | None, seed: int) -> Iterator[Row]:
    """Yield rows of a hub data set, or of a folder that is read like one."""
    module = library()
    hint = "" if Path(config.path).exists() else _NOT_HERE
    split = config.split or _split(
        config,
        _called(
            config,
            lambda: module.get_dataset_split_names(config.path, config.name, revision=revision),
            hint=hint,
        ),
    )
    loaded = _called(
        config,
        lambda: module.load_dataset(
            config.path, config.name, split=split, revision=revision, streaming=config.streaming
        ),
        hint=hint,
    )
    if not config.streaming:
        return _map_rows(config, loaded, seed=seed)
    if config.shuffle:
        loaded = loaded.shuffle(seed=seed, buffer_size=_SHUFFLE_ROWS)
    values = islice(_values(config, loaded), config.limit)
    return (Row(at, value) for at, value in enumerate(values, start=1))


def _map_rows(config: SourceConfig, loaded: Any, *, seed: int) -> Iterator[Row]:
    """Yield rows of a data set that is on disk, where any row can be had."""
    places: Iterable[int] = range(len(loaded))
    if config.limit is not None and config.limit < len(loaded):
        places = _chosen(len(loaded), config, seed) if config.shuffle else range(config.limit)
        loaded = loaded.select(places)
    stream = loaded.with_format(None).to_iterable_dataset()
    for at, value in zip(places, _values(config, stream), strict=True):
        yield Row(int(at) + 1, value)


def _taken(
    rows: Iterator[T], config: SourceConfig, *, seed: int, count: Callable[[], int]
) -> Iterator[tuple[int, T]]:
    """Yield the rows that ``limit`` takes with their places; ``count`` says how many there are."""
    placed = enumerate(rows)
    if config.limit is None or not config.shuffle:
        yield from islice(placed, config.limit)
        return
    wanted = iter(_chosen(count(), config, seed))
    following = next(wanted, None)
    for at, row in placed:
        if at == following:
            yield at, row
            following = next(wanted, None)
        if following is None:
            return


def _chosen(n_rows: int, config: SourceConfig, seed: int) -> list[int]:
    """Return the places of ``limit`` rows at random, ascending."""
    order = np.random.default_rng(seed).permutation(n_rows)[: config.limit]
    return [int(at) for at in np.sort(order)]


def _split(config: SourceConfig, names: list[str]) -> str:
    if config.split in names:
        return str(config.split)
    if config.split is None and len(names) == 1:
        return names[0]
    raise DataError(
        f"Choose a split with data.split; there are {', '.join(names)}.", file=config.path
    )


def _values(config: SourceConfig, stream: Any) -> Iterator[Mapping[str, Any]]:
    """Yield the rows of an ``IterableDataset``: pictures as bytes, classes by their names."""
    features = stream.features
    classes: dict[str, tuple[str, ...]] = {}
    if features is not None:
        stream = stream.cast(library().Features(_undecoded(dict(features))))
        classes = {
            name: tuple(feature.names)
            for name, feature in features.items()
            if type(feature).__name__ == "ClassLabel"
        }
    rows = iter(stream)
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        except Exception as error:  # the library raises those of everything below it
            raise DataError(
                f"The data set cannot be read on ({type(error).__name__}); a file may be damaged, "
                "or of another form than the first.",
                file=config.path,
            ) from error
        yield {**row, **{name: _class(row[name], names) for name, names in classes.items()}}


def _undecoded(feature: Any) -> Any:
    """Return a feature whose pictures (and sounds) stay encoded; JSON stays decoded."""
    if isinstance(feature, dict):
        return {name: _undecoded(inner) for name, inner in feature.items()}
    if isinstance(feature, list):
        return [_undecoded(inner) for inner in feature]
    if hasattr(feature, "feature"):
        return dataclasses.replace(feature, feature=_undecoded(feature.feature))
    if hasattr(feature, "decode") and type(feature).__name__ != "Json":
        return dataclasses.replace(feature, decode=False)
    return feature


def _class(value: Any, names: tuple[str, ...]) -> str | None:
    """Return a class's name; -1 stands for none."""
    return names[value] if isinstance(value, int) and 0 <= value < len(names) else None


def _called(config: SourceConfig, call: Callable[[], Any], *, hint: str = "") -> Any:
    """Return what the library returns, and say in one line why it does not."""
    try:
        return call()
    except RouterError:
        raise
    except Exception as error:  # the library raises those of everything below it
        words = " ".join(str(error).split())[:300].rstrip(".")
        raise DataError(
            f"The data set cannot be read ({type(error).__name__}): {words}.{hint}",
            file=config.path,
        ) from error
