"""Which public tables records were made from, in a file beside them, for the card.

``records.jsonl.gz`` has ``records.jsonl.gz.tables.json``. It holds digests, counts, names of models
and what was written about origin and licence; no text of a record and no path. Records that were
changed since are not described by it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from pydantic import TypeAdapter

from router_runtime.errors import DataError
from router_runtime.types import Json
from router_training.labelled_by import records_digest
from router_training.store import write_whole
from router_training.versioned import from_versioned, to_versioned

logger = logging.getLogger(__name__)

SCHEMA_VERSION: Final = 1
"""Raised when a field of the file changes its meaning or goes away."""

SUFFIX: Final = ".tables.json"
_LARGEST: Final = 1024 * 1024  # bytes; such a file has a few hundred


@dataclass(frozen=True)
class TableUsed:
    """What became of one table.

    Parameters
    ----------
    name : str
    sha256 : str
        Of the file.
    rows, skipped : int
    models : dict of tier to model
        Which of its models stands for which column of the records.
    origin, licence : str
        As the config says.
    recorded_costs : bool
        Whether it has costs of calls; nominal ones fill the rest.
    """

    name: str
    sha256: str
    rows: int
    skipped: int
    models: dict[str, str]
    origin: str
    licence: str
    recorded_costs: bool


@dataclass(frozen=True)
class MadeFrom:
    """The tables, and the digest of the records that were made from them."""

    records_sha256: str
    tables: tuple[TableUsed, ...]

    def to_json(self) -> Json:
        """Return plain values with the schema's version."""
        return to_versioned(asdict(self), SCHEMA_VERSION)

    @classmethod
    def from_json(cls, content: Json) -> MadeFrom:
        """Undo ``to_json``.

        Raises
        ------
        DataError
            It is of another version, or malformed.
        """
        return from_versioned(
            _MADE_FROM, content, SCHEMA_VERSION, what="It", remedy="merge the tables again"
        )


_MADE_FROM: TypeAdapter[MadeFrom] = TypeAdapter(MadeFrom)


def told_tables(records: Path | None) -> dict[str, Json]:
    """Return what an artifact's provenance says of its records' tables; empty if nothing is known.

    Raises
    ------
    DataError
        The file beside the records is malformed.
    """
    found = None if records is None else read_made_from(records)
    return {} if found is None else {"tables": found.to_json()}


def write_made_from(tables: Sequence[TableUsed], records: Path) -> None:
    """Write the file, after the records and completely or not at all.

    Raises
    ------
    RouterError
        The folder cannot be written.
    """
    content = MadeFrom(records_digest(records), tuple(tables)).to_json()
    text = json.dumps(content, indent=1, allow_nan=False)
    write_whole(records.with_name(records.name + SUFFIX), f"{text}\n".encode())


def read_made_from(records: Path) -> MadeFrom | None:
    """Return what is known about the tables of records; None where nothing is.

    Raises
    ------
    DataError
        The file is malformed.
    """
    path = records.with_name(records.name + SUFFIX)
    if not path.is_file():
        return None
    try:
        with path.open("rb") as file:
            found = MadeFrom.from_json(json.loads(file.read(_LARGEST)))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"It cannot be read: {error}. Delete it.", file=str(path)) from None
    except DataError as error:
        raise DataError(f"{error.reason} Or delete it.", file=str(path)) from None
    if found.records_sha256 != records_digest(records):
        logger.warning("'%s' is of other records than lie beside it now, and is left aside.", path)
        return None
    return found
