"""Who labelled records, in a file beside them, so that it is known wherever they are used.

``records.jsonl`` has ``records.jsonl.labels.json``, a folder of shards ``_labels.json`` in it. It
is written after the records and holds their digest: records that were changed since are not
described by it. There is no text of a record in it, no address and no key.
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

from pydantic import TypeAdapter

from router_runtime.errors import DataError
from router_runtime.types import Json
from router_training.metrics import Number
from router_training.store import digest_of, write_whole
from router_training.trust_report import TrustReport
from router_training.versioned import from_versioned, to_versioned

logger = logging.getLogger(__name__)

SCHEMA_VERSION: Final = 1
"""Raised when a field of the file changes its meaning or goes away."""

SUFFIX: Final = ".labels.json"
IN_FOLDER: Final = "_labels.json"
_LARGEST: Final = 16 * 1024 * 1024  # bytes; such a file has a few kilobytes


@dataclass(frozen=True)
class AskedModel:
    """A candidate or judge: the ``model`` that its server was asked for, and a digest of how."""

    id: str
    kind: str
    model: str
    parameters_sha256: str


@dataclass(frozen=True)
class JudgedBy:
    """The LLM judge of the labels.

    Parameters
    ----------
    models : tuple of AskedModel
    rubric : str
    rubric_version : int
    rubric_sha256 : str
        Of the whole template.
    repeats : int
    combine : str
    baseline : str or None
        The candidate that ``pairwise`` compares with.
    candidates : tuple of str
        Candidates that judged, their own answers among others.
    """

    models: tuple[AskedModel, ...]
    rubric: str
    rubric_version: int
    rubric_sha256: str
    repeats: int
    combine: str
    baseline: str | None
    candidates: tuple[str, ...]


@dataclass(frozen=True)
class LabelledCells:
    """What became of the samples at one candidate.

    Parameters
    ----------
    scored : int
    unscored : mapping
        How often for which kind of reason (``ineligible``, ``refused``, ``failed``, ``pending``,
        ``no verdict`` ...).
    mean_score : float
        NaN where nothing is scored.
    """

    scored: int
    unscored: dict[str, int]
    mean_score: Number


@dataclass(frozen=True)
class LabelledBy:
    """Who was asked, who judged by what, how it went, and how far it can be trusted.

    Parameters
    ----------
    rows : int
        Records.
    records_sha256 : str
        Their digest, see ``records_digest``.
    candidates : tuple of AskedModel
    judge : JudgedBy or None
    scorers : mapping
        Kind of each scorer that the config names.
    scoring_sha256 : str
        Of which scorer judges what, with all settings.
    cells : mapping
        By candidate.
    trust : TrustReport
    """

    rows: int
    records_sha256: str
    candidates: tuple[AskedModel, ...]
    judge: JudgedBy | None
    scorers: dict[str, str]
    scoring_sha256: str
    cells: dict[str, LabelledCells]
    trust: TrustReport = field(repr=False)

    @property
    def unscored_share(self) -> float:
        """Share of the cells that could have a score, ineligible ones left out, and have none."""
        scored = sum(cell.scored for cell in self.cells.values())
        lacking = sum(
            count
            for cell in self.cells.values()
            for reason, count in cell.unscored.items()
            if reason != "ineligible"
        )
        return lacking / (scored + lacking) if scored + lacking else float("nan")

    def to_json(self) -> Json:
        """Return plain values: NaN as None."""
        trust = self.trust.to_json()
        return to_versioned(asdict(self), SCHEMA_VERSION) | {"trust": trust}

    @classmethod
    def from_json(cls, content: Json) -> LabelledBy:
        """Read back what ``to_json`` gave.

        Raises
        ------
        DataError
            It has another schema version, or is not of this kind.
        """
        fields = content
        if isinstance(content, dict):
            fields = {**content, "trust": TrustReport.from_json(content.get("trust"))}
        return from_versioned(
            _LABELLED_BY, fields, SCHEMA_VERSION, what="It", remedy="tabulate the labels again"
        )


_LABELLED_BY = TypeAdapter(LabelledBy)


# --------------------------------------------------------------------------- beside the records


def labels_path(records: Path) -> Path:
    """Return where the file is: beside a file of records, or in a folder of shards."""
    return records / IN_FOLDER if records.is_dir() else records.with_name(records.name + SUFFIX)


def write_labelled_by(content: LabelledBy, records: Path) -> None:
    """Write the file, completely or not at all.

    Raises
    ------
    RouterError
        The folder cannot be written.
    """
    text = json.dumps(content.to_json(), indent=1, allow_nan=False, ensure_ascii=False)
    write_whole(labels_path(records), f"{text}\n".encode(errors="replace"))


def read_labelled_by(records: Path) -> LabelledBy | None:
    """Return what is known about who labelled records; None where nothing is.

    Records that were changed since are not described: then None, and a warning.

    Raises
    ------
    DataError
        The file is malformed.
    """
    path = labels_path(records)
    if not path.is_file():
        return None
    try:
        with path.open("rb") as file:
            content = json.loads(file.read(_LARGEST))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"It cannot be read: {error}. Delete it.", file=str(path)) from None
    try:
        found = LabelledBy.from_json(content)
    except DataError as error:
        raise DataError(f"{error.reason} Or delete it.", file=str(path)) from None
    if found.records_sha256 != records_digest(records):
        logger.warning("'%s' is of other records than lie beside it now, and is left aside.", path)
        return None
    return found


def records_digest(records: Path) -> str:
    """Return the hex sha256 of a file, or of the names and digests of a folder's shards."""
    if not records.is_dir():
        with records.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    shards = sorted(records.glob("*.parquet"))
    return digest_of([[shard.name, records_digest(shard)] for shard in shards])
