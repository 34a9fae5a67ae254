"""Files of records as streams of rows: JSON list, JSON lines and CSV (also gzipped), and Parquet.

A line that cannot be read is a row that holds its own error, so that the caller decides whether one
bad line ends the reading. Writing is atomic: a file is there wholly or not at all.
"""

from __future__ import annotations

import csv
import gzip
import importlib
import io
import json
import os
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from router_runtime.errors import DataError, MissingDependencyError
from router_runtime.types import Json

SUFFIXES = (".json", ".jsonl", ".json.gz", ".jsonl.gz", ".parquet", ".csv", ".csv.gz")
_CELL_LIMIT = 2**31 - 1  # characters; the csv module's default of 131,072 cuts long prompts off


class Row(NamedTuple):
    """One record with its number (records from 1, lines from 1 in JSON lines) or why it is none."""

    number: int
    value: Mapping[str, Any] | DataError


def kind_of(path: Path) -> str:
    """Return the file's kind, one of ``SUFFIXES`` without ``.gz``.

    Raises
    ------
    DataError
        The suffix is not known, or the file is a pickle.
    """
    name = path.name.lower()
    for suffix in SUFFIXES:
        if name.endswith(suffix):
            return suffix.removesuffix(".gz")
    if name.endswith((".pkl", ".pickle", ".joblib")):
        raise DataError(
            "A pickle runs code when it is opened and is never read here. Export it on a machine "
            "that may run it, for example with pandas.read_pickle(...).to_parquet(...).",
            file=str(path),
        )
    raise DataError(f"The suffix is unknown; known: {', '.join(SUFFIXES)}.", file=str(path))


def read_rows(path: Path) -> Iterator[Row]:
    """Yield the records of a file in order.

    Raises
    ------
    DataError
        The file is missing, unreadable or empty, or not of the kind its suffix says.
    """
    kind = kind_of(path)
    if not path.is_file():
        raise DataError("There is no such file.", file=str(path))
    if kind == ".parquet":
        yield from _parquet_rows(path)
        return
    text = _text(path)
    if not text.strip():
        raise DataError("The file is empty.", file=str(path))
    if kind == ".csv":
        yield from _csv_rows(text, path)
    elif text.lstrip().startswith("["):
        yield from _list_rows(text, path)
    else:
        yield from _line_rows(text)


def write_json(path: Path, records: Iterable[Json]) -> None:
    """Write records as a JSON list or, by suffix ``.jsonl``, one a line; gzipped by ``.gz``.

    NaN is refused by ``json``: whoever calls says null for a missing value.
    """
    lines = kind_of(path) == ".jsonl"
    with atomic_file(path) as raw, _compressed(raw, path) as file:
        if not lines:
            file.write(b"[")
        for at, record in enumerate(records):
            text = json.dumps(record, ensure_ascii=False, allow_nan=False)
            file.write(("" if lines else ",\n" if at else "\n").encode())
            file.write(text.encode() + (b"\n" if lines else b""))
        if not lines:
            file.write(b"\n]\n")


def write_parquet(path: Path, records: Iterable[Json], *, columns: Mapping[str, Json]) -> None:
    """Write records as Parquet; ``columns`` as in ``parquet.write``."""
    module = _parquet_module()
    with atomic_file(path) as file:
        module.write(file, records, columns)


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file that appears under ``path`` only when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@contextmanager
def _compressed(raw: BinaryIO, path: Path) -> Iterator[io.BufferedIOBase | BinaryIO]:
    if not path.name.lower().endswith(".gz"):
        yield raw
        return
    # No name and no time in the header: equal records give equal bytes.
    with gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0) as file:
        yield file


def _text(path: Path) -> str:
    try:
        data = path.read_bytes()
        if path.name.lower().endswith(".gz"):
            data = gzip.decompress(data)
        return data.decode("utf-8-sig")
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise DataError(f"The gzip file is damaged: {error}.", file=str(path)) from error
    except OSError as error:
        raise DataError(f"The file cannot be read: {error.strerror}.", file=str(path)) from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"The file is not UTF-8 (byte {error.start:,}); save it as UTF-8.", file=str(path)
        ) from error


def _list_rows(text: str, path: Path) -> Iterator[Row]:
    try:
        items = _loads(text)
    except json.JSONDecodeError as error:
        raise DataError(
            f"Invalid JSON in line {error.lineno}: {error.msg}.", file=str(path)
        ) from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"Invalid JSON: {error}.", file=str(path)) from None
    if not items:
        raise DataError("The file holds an empty list.", file=str(path))
    for number, item in enumerate(items, start=1):
        yield Row(number, _record(item))


def _line_rows(text: str) -> Iterator[Row]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            yield Row(number, _record(_loads(line)))
        except json.JSONDecodeError as error:
            yield Row(number, DataError(f"Invalid JSON in line {number}: {error.msg}."))
        except (ValueError, RecursionError) as error:
            yield Row(number, DataError(f"Invalid JSON in line {number}: {error}."))


def _loads(text: str) -> Json:
    value = json.loads(text, object_pairs_hook=_unique)
    return _encodable(value) if "\\ud" in text or "\\uD" in text else value


def _encodable(value: Json) -> Json:
    """Replace lone surrogates: only JSON escapes can carry them, and no file can hold them."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, list):
        return [_encodable(item) for item in value]
    if isinstance(value, dict):
        return {_encodable(key): _encodable(item) for key, item in value.items()}
    return value


def _unique(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        repeated = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"the key {repeated[0]!r} is repeated in one object")
    return found


def _record(item: Json) -> Mapping[str, Any] | DataError:
    if isinstance(item, dict):
        return item
    return DataError(f"The record is {type(item).__name__}; it must be an object.")


def _csv_rows(text: str, path: Path) -> Iterator[Row]:
    csv.field_size_limit(_CELL_LIMIT)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = next(reader)
        if repeated := sorted({name for name in header if header.count(name) > 1}):
            raise DataError(f"The column {repeated[0]!r} occurs twice.", file=str(path), row=1)
        number = 0
        for cells in reader:
            if not cells:
                continue
            number += 1
            if len(cells) == len(header):
                yield Row(number, dict(zip(header, cells, strict=True)))
            else:
                message = f"The row has {len(cells)} cells and the header {len(header)}."
                yield Row(number, DataError(message))
    except csv.Error as error:
        raise DataError(
            f"Invalid CSV near line {reader.line_num}: {error}.", file=str(path)
        ) from error
    if not number:
        raise DataError("The file has a header and no rows.", file=str(path))


def _parquet_rows(path: Path) -> Iterator[Row]:
    empty = True
    for number, record in enumerate(_parquet_module().read(path), start=1):
        empty = False
        yield Row(number, record)
    if empty:
        raise DataError("The file has no rows.", file=str(path))


def _parquet_module() -> Any:
    try:
        return importlib.import_module("router_training.parquet")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "pyarrow":
            raise
        raise MissingDependencyError("pyarrow", "train") from error
