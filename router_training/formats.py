"""Files of records as streams of rows: JSON list, JSON lines and CSV (also gzipped), and Parquet.

A folder of Parquet files is read as one file, in the order of their names.

A line or record that cannot be read is a row that holds its own error, so that the caller decides
whether one bad row ends the reading. JSON lines and CSV are read line by line, so that memory does
not grow with the file. Writing is atomic: a file is there wholly or not at all.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import importlib
import io
import json
import os
import re
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeAlias

from router_runtime.errors import DataError, MissingDependencyError
from router_runtime.types import Json

_Bytes: TypeAlias = io.BufferedReader | gzip.GzipFile

RECORDS_FILE = "_records.json"
"""Lists the Parquet files of a folder that ``sharded`` wrote."""

SUFFIXES = (".json", ".jsonl", ".json.gz", ".jsonl.gz", ".parquet", ".csv", ".csv.gz")
_CELL_LIMIT = 2**31 - 1  # characters; the csv module's default of 131,072 cuts long prompts off
_BLANKS = re.compile(r"[ \t\n\r]*")


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
    """Yield the records of a file, or of a folder of Parquet files, in order.

    Raises
    ------
    DataError
        The file is missing, unreadable or empty, or not of the kind its suffix says; a folder
        without Parquet files, or without one that its list names.
    """
    if path.is_dir():
        yield from _folder_rows(path)
        return
    kind = kind_of(path)
    if not path.is_file():
        raise DataError("There is no such file.", file=str(path))
    if kind == ".parquet":
        yield from _parquet_rows(path)
        return
    with _reading(path) as file:
        if kind == ".csv":
            with io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as text:
                yield from _csv_rows(text, path)
        else:
            yield from _json_rows(file, path)


def parquet_files(folder: Path) -> list[Path]:
    """Return the Parquet files of a folder by name, none where it has none.

    Raises
    ------
    DataError
        A file that ``sharded`` wrote is missing: the records would silently be fewer.
    """
    files = sorted(path for path in folder.glob("*.parquet") if not path.name.startswith("."))
    listed = folder / RECORDS_FILE
    if listed.is_file():
        try:
            names = [str(part["file"]) for part in json.loads(listed.read_bytes())["parts"]]
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise DataError("The list of files cannot be read.", file=str(listed)) from error
        if missing := sorted(set(names) - {path.name for path in files}):
            raise DataError(f"{missing[0]} is missing from the folder.", file=str(folder))
        files = [folder / name for name in names]
    return files


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
    module = parquet_module()
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


@contextmanager
def _reading(path: Path) -> Iterator[_Bytes]:
    """Open a file, unpacked where it is gzipped, and say in one line why it cannot be read."""
    try:
        with gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb") as file:
            yield file
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise DataError(f"The gzip file is damaged: {error}.", file=str(path)) from error
    except OSError as error:
        raise DataError(f"The file cannot be read: {error.strerror}.", file=str(path)) from error


def _json_rows(file: _Bytes, path: Path) -> Iterator[Row]:
    """Tell a JSON list from JSON lines by the first character, and yield the records of either."""
    lines = enumerate(file, start=1)
    for number, line in lines:
        line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
        if line.strip():
            break
    else:
        raise DataError("The file is empty.", file=str(path))
    if line.lstrip().startswith(b"["):
        yield from _list_rows(line + file.read(), path, first_line=number)
    elif line.strip() == b"{":
        raise DataError(
            "The file begins with an object over several lines; write a list of records, or one "
            "record a line.",
            file=str(path),
        )
    else:
        for at, text in chain([(number, line)], lines):
            if text.strip():
                yield Row(at, _line_record(text, at))


def _line_record(line: bytes, number: int) -> Mapping[str, Any] | DataError:
    try:
        return _record(*_Decoder().one(line.decode()))
    except UnicodeDecodeError as error:
        return DataError(
            f"Line {number} is not UTF-8 (byte {error.start + 1:,}); save the file as UTF-8."
        )
    except json.JSONDecodeError as error:
        return DataError(f"Invalid JSON in line {number}: {error.msg}.")
    except (ValueError, RecursionError) as error:
        return DataError(f"Invalid JSON in line {number}: {error}.")


def _list_rows(data: bytes, path: Path, *, first_line: int) -> Iterator[Row]:
    number = 0
    try:
        items = _Decoder().items(data.decode())
        for number, (item, repeated) in enumerate(items, start=1):
            yield Row(number, _record(item, repeated))
    except UnicodeDecodeError as error:
        raise DataError(
            f"The file is not UTF-8 (byte {error.start + 1:,}); save it as UTF-8.", file=str(path)
        ) from error
    except json.JSONDecodeError as error:
        line = error.lineno + first_line - 1
        raise DataError(f"Invalid JSON in line {line}: {error.msg}.", file=str(path)) from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"Invalid JSON: {error}.", file=str(path), row=number + 1) from None
    if not number:
        raise DataError("The file holds an empty list.", file=str(path))


class _Decoder:
    """JSON to values, each with the key that is repeated in one of its objects, or None.

    ``json`` itself keeps the last of several equal keys, which drops data silently.
    """

    def __init__(self) -> None:
        self._repeated: str | None = None
        self._decoder = json.JSONDecoder(object_pairs_hook=self._object)

    def one(self, text: str) -> tuple[Json, str | None]:
        """Return the only value of ``text``."""
        value = self._decoder.decode(text)
        return _replaced(value) if _has_surrogates(text) else value, self._repeated

    def items(self, text: str) -> Iterator[tuple[Json, str | None]]:
        """Yield the items of the list that ``text`` is."""
        at = _skipped(text, _skipped(text, 0) + 1)
        if text[at : at + 1] == "]":
            return
        surrogates = _has_surrogates(text)
        mark = ","
        while mark == ",":
            self._repeated = None
            item, end = self._decoder.raw_decode(text, at)
            yield _replaced(item) if surrogates else item, self._repeated
            at = _skipped(text, end)
            mark = text[at : at + 1]
            if mark not in (",", "]"):
                raise json.JSONDecodeError("Expecting ',' or ']' after a record", text, at)
            at = _skipped(text, at + 1)
        if at < len(text):
            raise json.JSONDecodeError("Extra data", text, at)

    def _object(self, pairs: list[tuple[str, Json]]) -> dict[str, Json]:
        found = dict(pairs)
        if len(found) != len(pairs):
            self._repeated = Counter(name for name, _ in pairs).most_common(1)[0][0]
        return found


def _skipped(text: str, at: int) -> int:
    """Return where the next character stands that is no blank to JSON."""
    blanks = _BLANKS.match(text, at)
    return blanks.end() if blanks else at


def _has_surrogates(text: str) -> bool:
    """Return whether JSON may spell halves of surrogate pairs, whole pairs among them."""
    return "\\ud" in text or "\\uD" in text


def _replaced(value: Json) -> Json:
    """Replace lone surrogates: only JSON escapes can carry them, and no file can hold them."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, list):
        return [_replaced(item) for item in value]
    if isinstance(value, dict):
        return {_replaced(key): _replaced(item) for key, item in value.items()}
    return value


def _record(item: Json, repeated: str | None) -> Mapping[str, Any] | DataError:
    if not isinstance(item, dict):
        return DataError(f"The record is {type(item).__name__}; it must be an object.")
    if repeated is not None:
        return DataError(f"The key {repeated!r} is repeated in one object.")
    return item


def _csv_rows(text: io.TextIOWrapper, path: Path) -> Iterator[Row]:
    csv.field_size_limit(_CELL_LIMIT)
    reader = csv.reader(text, strict=True)
    number = 0
    try:
        header = next((cells for cells in reader if any(cells)), None)
        if header is None:
            raise DataError("The file is empty.", file=str(path))
        if repeated := sorted({name for name in header if header.count(name) > 1}):
            raise DataError(f"The column {repeated[0]!r} occurs twice.", file=str(path), row=1)
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
    except UnicodeDecodeError as error:
        raise DataError(
            f"The file is not UTF-8 (after line {reader.line_num}); save it as UTF-8.",
            file=str(path),
        ) from error
    if not number:
        raise DataError("The file has a header and no rows.", file=str(path))


def _parquet_rows(path: Path) -> Iterator[Row]:
    empty = True
    for number, record in enumerate(parquet_module().read(path), start=1):
        empty = False
        yield Row(number, record)
    if empty:
        raise DataError("The file has no rows.", file=str(path))


def _folder_rows(folder: Path) -> Iterator[Row]:
    files = parquet_files(folder)
    if not files:
        raise DataError("The folder holds no Parquet file.", file=str(folder))
    number = 0
    for number, record in enumerate(chain.from_iterable(map(parquet_module().read, files)), 1):
        yield Row(number, record)
    if not number:
        raise DataError("The folder's files have no rows.", file=str(folder))


def parquet_module() -> Any:
    """Return ``router_training.parquet``, which needs pyarrow.

    Raises
    ------
    MissingDependencyError
        pyarrow is not installed.
    """
    try:
        return importlib.import_module("router_training.parquet")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "pyarrow":
            raise
        raise MissingDependencyError("pyarrow", "train") from error
