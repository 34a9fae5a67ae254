"""Parquet in and out. Apart, so that the other formats work without pyarrow."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final

import pyarrow as pa
import pyarrow.parquet as pq

from router_runtime.errors import DataError
from router_runtime.types import Json

_BATCH_ROWS: Final = 256
_BATCH_BYTES: Final = 32 * 2**20  # pictures make rows heavy
_SCALARS: Final = {
    "string": pa.string(),
    "binary": pa.binary(),
    "float": pa.float64(),
    "bool": pa.bool_(),
}


def read(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows as dictionaries; structs and maps become dictionaries, nulls None.

    Raises
    ------
    DataError
        The file is not Parquet, is damaged, or has two columns of one name.
    """
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if repeated := sorted({name for name in names if names.count(name) > 1}):
                raise DataError(f"The column {repeated[0]!r} occurs twice.", file=str(path))
            for batch in file.iter_batches(batch_size=_batch_rows(file.metadata)):
                yield from batch.to_pylist(maps_as_pydicts="strict")
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        words = " ".join(str(error).split())[:200].rstrip(".")
        raise DataError(f"The Parquet file cannot be read: {words}.", file=str(path)) from error


def write(
    file: BinaryIO, records: Iterable[Mapping[str, Json]], columns: Mapping[str, Json]
) -> None:
    """Write records; ``columns`` as in ``Appender``."""
    with Appender(file, columns) as appender:
        for record in records:
            appender.append(record)


class Appender:
    """Writes records in batches, which bound the memory by rows and by bytes.

    Parameters
    ----------
    file : Path or binary file
        What to write, or that open for writing; closing the appender does not close the latter.
    columns : mapping
        Per column ``"string"``, ``"binary"``, ``"float"``, ``"bool"``, a one-element list of those
        (a list), or a mapping (a struct); nested as needed.
    """

    def __init__(self, file: Path | BinaryIO, columns: Mapping[str, Json]) -> None:
        self._schema = pa.schema([(name, _type(kind)) for name, kind in columns.items()])
        self._writer = pq.ParquetWriter(file, self._schema)
        self._batch: list[Mapping[str, Json]] = []
        self._bytes = 0

    def append(self, record: Mapping[str, Json]) -> None:
        """Add a record: keys among the columns, a missing one is null."""
        self._batch.append(record)
        self._bytes += _size(record)
        if len(self._batch) == _BATCH_ROWS or self._bytes >= _BATCH_BYTES:
            self._flush()

    def close(self) -> None:
        """Write what is left, and the file's end."""
        try:
            self._flush()
        finally:
            self._writer.close()

    def abandon(self) -> None:
        """Close the file without what was not written yet."""
        self._batch = []
        self._writer.close()

    def __enter__(self) -> Appender:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is None:
            self.close()
        else:
            self.abandon()

    def _flush(self) -> None:
        if self._batch:
            self._writer.write_table(pa.Table.from_pylist(self._batch, schema=self._schema))
            self._batch, self._bytes = [], 0


def _batch_rows(metadata: Any) -> int:
    """Return how many rows to hold at a time: fewer, the more bytes the fullest row group has."""
    per_row = [
        group.total_byte_size / group.num_rows
        for group in map(metadata.row_group, range(metadata.num_row_groups))
        if group.num_rows
    ]
    heaviest = max(per_row, default=1.0)
    return int(min(max(_BATCH_BYTES / max(heaviest, 1.0), 1), _BATCH_ROWS))


def _size(record: Mapping[str, Json]) -> int:
    """Return about how many bytes the texts and pictures of a record have."""
    values = (v for value in record.values() for v in (value if type(value) is list else (value,)))
    return sum(len(value) for value in values if isinstance(value, str | bytes))


def _type(kind: Json) -> Any:
    if isinstance(kind, str):
        return _SCALARS[kind]
    if isinstance(kind, list):
        return pa.list_(_type(kind[0]))
    return pa.struct([(name, _type(inner)) for name, inner in kind.items()])
