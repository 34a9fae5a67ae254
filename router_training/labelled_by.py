"""Who labelled records, in a file beside them, so that it is known wherever they are used.

``records.jsonl`` has ``records.jsonl.labels.json``, a folder of shards ``_labels.json`` in it. It
is written after the records and holds their digest: records that were changed since are not
described by it. There is no text of a record in it, no address and no key.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

from pydantic import TypeAdapter, ValidationError

from router_runtime.config import TargetConfig
from router_runtime.errors import DataError
from router_runtime.types import Json
from router_training.evaluation_report import plain
from router_training.label_config import JudgeConfig, LabelConfig
from router_training.metrics import Number
from router_training.rubrics import Rubric
from router_training.store import digest_of, write_whole
from router_training.trust_report import TrustReport

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
        return {"schema_version": SCHEMA_VERSION, **plain(asdict(self)), "trust": trust}

    @classmethod
    def from_json(cls, content: Json) -> LabelledBy:
        """Read back what ``to_json`` gave.

        Raises
        ------
        DataError
            It has another schema version, or is not of this kind.
        """
        if not isinstance(content, dict) or content.get("schema_version") != SCHEMA_VERSION:
            raise DataError(
                f"It is not of schema version {SCHEMA_VERSION}; tabulate the labels again."
            )
        fields = {key: value for key, value in content.items() if key != "schema_version"}
        fields["trust"] = TrustReport.from_json(fields.get("trust"))
        try:
            return _LABELLED_BY.validate_python(fields)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise DataError(f"It is malformed at '{where}': {first['msg']}.") from None


_LABELLED_BY = TypeAdapter(LabelledBy)


def labelled_by(
    config: LabelConfig,
    *,
    rubric: Rubric | None,
    rows: int,
    records_sha256: str,
    cells: Mapping[str, LabelledCells],
    trust: TrustReport,
) -> LabelledBy:
    """Return what the file beside the records says.

    Parameters
    ----------
    config : LabelConfig
    rubric : Rubric or None
        The judge's.
    rows, records_sha256, cells, trust
        As in ``LabelledBy``.
    """
    ask = config.ask.model_dump(mode="json", include={"system", "parameters"})
    judge = None if config.judge is None or rubric is None else _judged_by(config, rubric)
    return LabelledBy(
        rows=rows,
        records_sha256=records_sha256,
        candidates=tuple(
            _asked(entry.id, entry.target, ask) for entry in config.candidates if entry.target
        ),
        judge=judge,
        scorers={name: scorer.kind for name, scorer in config.scoring.scorers.items()},
        scoring_sha256=digest_of(config.scoring.model_dump(mode="json")),
        cells=dict(cells),
        trust=trust,
    )


def _judged_by(config: LabelConfig, rubric: Rubric) -> JudgedBy:
    judge: JudgeConfig | None = config.judge
    assert judge is not None  # noqa: S101 - the caller has looked
    return JudgedBy(
        models=tuple(_asked(entry.id, entry.target, judge.parameters) for entry in judge.models),
        rubric=rubric.name,
        rubric_version=rubric.version,
        rubric_sha256=rubric.digest,
        repeats=judge.repeats,
        combine=judge.combine,
        baseline=judge.baseline,
        candidates=config.judging_candidates,
    )


def _asked(model_id: str, target: TargetConfig, how: Json) -> AskedModel:
    digest = digest_of([target.parameters, how])
    return AskedModel(model_id, target.kind, target.model or model_id, digest)


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
