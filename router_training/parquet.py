"""Parquet in and out. Apart, so that the other formats work without pyarrow."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Final

import pyarrow as pa
import pyarrow.parquet as pq

from router_runtime.errors import DataError
from router_runtime.types import Json

_BATCH_ROWS: Final = 256  # pictures make rows heavy
_SCALARS: Final = {"string": pa.string(), "float": pa.float64(), "bool": pa.bool_()}


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
            for batch in file.iter_batches(batch_size=_BATCH_ROWS):
                yield from batch.to_pylist(maps_as_pydicts="strict")
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        words = " ".join(str(error).split())[:200].rstrip(".")
        raise DataError(f"The Parquet file cannot be read: {words}.", file=str(path)) from error


def write(
    file: BinaryIO, records: Iterable[Mapping[str, Json]], columns: Mapping[str, Json]
) -> None:
    """Write records in batches.

    Parameters
    ----------
    file : binary file
        Open for writing.
    records : iterable of mapping
        Keys among ``columns``; a missing one is null.
    columns : mapping
        Per column ``"string"``, ``"float"``, ``"bool"``, a one-element list of those (a list), or
        a mapping (a struct); nested as needed.
    """
    schema = pa.schema([(name, _type(kind)) for name, kind in columns.items()])
    rows = iter(records)
    with pq.ParquetWriter(file, schema) as writer:
        while batch := list(islice(rows, _BATCH_ROWS)):
            writer.write_table(pa.Table.from_pylist(batch, schema=schema))


def _type(kind: Json) -> Any:
    if isinstance(kind, str):
        return _SCALARS[kind]
    if isinstance(kind, list):
        return pa.list_(_type(kind[0]))
    return pa.struct([(name, _type(inner)) for name, inner in kind.items()])
