"""Evaluation data in memory, from a file and back: samples beside a matrix of what models scored.

A missing score is NaN from here to the report: never 0, and never a reason to drop the row.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from router_runtime.errors import ConfigError, DataError
from router_runtime.images import DEFAULT_LIMITS, ImageLimits
from router_runtime.messages import TextRule
from router_runtime.types import F64, Int, Json, Query
from router_training.formats import Row, kind_of, read_rows, write_json, write_parquet
from router_training.pictures import Pictures
from router_training.samples import Record, Sample, picture_sources, read_record

_LONGEST_NUMBER = 18  # digits that every reader of JSON and int64 holds exactly

OnBadRow: TypeAlias = Literal["error", "skip"]

TOKENS = ("input_tokens", "output_tokens", "cached_input_tokens")
"""The arrays of a ``LabelMatrix`` that count tokens."""

ARRAYS = ("Y", "cost_usd", *TOKENS, "seconds")
"""The arrays of a ``LabelMatrix``, in order."""


@dataclass(frozen=True, eq=False)
class LabelMatrix:
    """What was recorded per sample and model; every array is read-only.

    Parameters
    ----------
    model_ids : tuple of str
        The columns.
    Y : ndarray of shape (n_samples, n_models), float64
        Score in [0, 1]; NaN where unscored.
    cost_usd : ndarray of shape (n_samples, n_models), float64
        USD of the recorded call; NaN where unknown.
    input_tokens, output_tokens : ndarray of shape (n_samples, n_models), float64
        Tokens of the recorded call; NaN where unknown.
    cached_input_tokens : ndarray of shape (n_samples, n_models), float64
        The part of ``input_tokens`` that came from the provider's cache; NaN where not told.
    seconds : ndarray of shape (n_samples, n_models), float64
        How long the recorded call took; NaN where unknown, as it is everywhere by default.

    Raises
    ------
    DataError
        Shapes that disagree, or a repeated model.
    """

    model_ids: tuple[str, ...]
    Y: F64
    cost_usd: F64
    input_tokens: F64
    output_tokens: F64
    cached_input_tokens: F64
    seconds: F64 = field(default_factory=lambda: np.array(np.nan))

    def __post_init__(self) -> None:
        if len(set(self.model_ids)) != len(self.model_ids):
            raise DataError(f"A model is repeated in {', '.join(self.model_ids)}.")
        shape = (len(self.Y), len(self.model_ids))
        for name in ARRAYS:
            array = np.array(getattr(self, name), dtype=np.float64)
            if name == "seconds" and array.ndim == 0:
                array = np.full(shape, array)
            if array.shape != shape:
                raise DataError(f"LabelMatrix.{name} has shape {array.shape}; expected {shape}.")
            array.setflags(write=False)
            object.__setattr__(self, name, array)

    @classmethod
    def of_scores(cls, model_ids: Sequence[str], Y: F64) -> LabelMatrix:
        """Return labels that hold nothing but scores."""
        unknown = np.full(np.shape(Y), np.nan)
        return cls(tuple(model_ids), Y, *[unknown] * (len(ARRAYS) - 1))

    def __len__(self) -> int:
        return len(self.Y)

    def take(self, indices: npt.ArrayLike) -> LabelMatrix:
        """Return the rows at ``indices``, in that order; a boolean mask works too."""
        rows = _rows(indices)
        return LabelMatrix(self.model_ids, *(getattr(self, name)[rows] for name in ARRAYS))


@dataclass(frozen=True)
class SkippedRow:
    """A row that was left out: its number in the file, the field and the reason."""

    row: int
    field: str | None
    reason: str


@dataclass(frozen=True, eq=False)
class Evaluations:
    """Samples and labels, row by row, and what was left out on the way.

    Parameters
    ----------
    samples : tuple of Sample
    labels : LabelMatrix
        Of as many rows.
    skipped : tuple of SkippedRow
        Every row of the source that is not among the samples.

    Raises
    ------
    DataError
        The numbers of samples and label rows differ.
    """

    samples: tuple[Sample, ...]
    labels: LabelMatrix
    skipped: tuple[SkippedRow, ...] = ()

    def __post_init__(self) -> None:
        if len(self.samples) != len(self.labels):
            raise DataError(f"{len(self.samples)} samples have {len(self.labels)} rows of labels.")

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def model_ids(self) -> tuple[str, ...]:
        """The models, in the order of the label columns."""
        return self.labels.model_ids

    @property
    def queries(self) -> tuple[Query, ...]:
        """What is routed on, row by row."""
        return tuple(sample.query for sample in self.samples)

    @property
    def groups(self) -> tuple[str, ...]:
        """The group of each row, for ``splits.split_by_group``."""
        return tuple(sample.group for sample in self.samples)

    @property
    def datasets(self) -> tuple[str | None, ...]:
        """The data set of each row, None where the row names none."""
        return tuple(sample.dataset for sample in self.samples)

    @property
    def n_unscored(self) -> int:
        """Rows without a single score; they are kept, and masked by whoever learns or measures."""
        return int(np.isnan(self.labels.Y).all(axis=1).sum())

    def take(self, indices: npt.ArrayLike) -> Evaluations:
        """Return the rows at ``indices``, in that order; the list of skipped rows stays behind."""
        rows = _rows(indices)
        return Evaluations(tuple(self.samples[row] for row in rows), self.labels.take(rows))

    @cached_property
    def fingerprint(self) -> str:
        """Hex sha256 of the content: ids, texts, picture digests and labels."""
        digest = hashlib.sha256(json.dumps(self.model_ids).encode())
        for sample in self.samples:
            content = [
                sample.id,
                sample.query.text,
                sample.query.total_chars,
                [image.sha256 for image in sample.query.images],
                sample.reference,
                sample.group,
                sample.dataset,
                sample.prompt,
                sample.messages,
                sample.contaminated,
            ]
            digest.update(json.dumps(content, sort_keys=True).encode())
        labels = self.labels
        # Durations count where there are some: records without keep the digest that they had.
        timed = not np.isnan(labels.seconds).all()
        for array in (getattr(labels, name) for name in (ARRAYS if timed else ARRAYS[:-1])):
            digest.update(np.where(np.isnan(array), np.nan, array).astype("<f8").tobytes())
        return digest.hexdigest()


def read_evaluations(
    path: str | Path,
    *,
    model_ids: Sequence[str] | None = None,
    image_root: str | Path | None = None,
    on_bad_row: OnBadRow = "error",
    rule: TextRule = TextRule(),
    limits: ImageLimits = DEFAULT_LIMITS,
    drop_contaminated: bool = False,
) -> Evaluations:
    """Read evaluation data: JSON, JSON lines (also ``.gz``), Parquet, a folder of Parquet files.

    Parameters
    ----------
    path : str or Path
        Rows of the shapes in ``samples``.
    model_ids : sequence of str, optional
        The columns wanted, in order; a row that names another model is bad. By default the models
        in order of first appearance, or the classes in alphabetical order.
    image_root : str or Path, optional
        Where picture paths start, and whose ``*.tar`` files are searched; by default the folder
        of the file, or the folder that is read.
    on_bad_row : {"error", "skip"}
        Whether a bad row ends the reading or is listed in ``skipped``.
    rule, limits
        How much of a conversation is routed on, and what a picture may be.
    drop_contaminated : bool
        Leave rows marked ``contaminated`` out; they are listed in ``skipped``.

    Raises
    ------
    DataError
        Naming file, row and field; also when nothing is left.
    """
    path = Path(path)
    root = path if path.is_dir() else path.parent
    return evaluations_from_rows(
        read_rows(path),
        source=str(path),
        pictures=Pictures(root if image_root is None else Path(image_root), limits=limits),
        model_ids=model_ids,
        on_bad_row=on_bad_row,
        rule=rule,
        drop_contaminated=drop_contaminated,
    )


def evaluations_from_rows(
    rows: Iterable[Row],
    *,
    source: str,
    pictures: Pictures,
    model_ids: Sequence[str] | None = None,
    on_bad_row: OnBadRow = "error",
    rule: TextRule = TextRule(),
    drop_contaminated: bool = False,
) -> Evaluations:
    """Assemble rows from anywhere; as ``read_evaluations``, with ``source`` as the file's name."""
    if on_bad_row not in ("error", "skip"):
        raise ConfigError(f"on_bad_row is {on_bad_row!r}; it must be 'error' or 'skip'.")
    reader = _Reader(source, on_bad_row == "skip")
    ids: dict[str, int] = {}

    def parsed(row: Row) -> Record | None:
        if isinstance(row.value, DataError):
            raise row.value
        record = read_record(row.value, number=row.number, pictures=pictures, rule=rule)
        if record.sample.contaminated and drop_contaminated:
            reader.leave_out(row.number, "contaminated", "The row is marked as contaminated.")
            return None
        known = ids.setdefault(record.sample.id, row.number)
        if known != row.number:
            raise DataError(
                f"The id {record.sample.id!r} is already that of row {known}.", field="id"
            )
        return record

    with closing(pictures.ahead(rows, _pictures_of)) as found:
        records = [
            (row.number, record)
            for row in found
            if (record := reader.attempt(row.number, parsed, row)) is not None
        ]
    columns = _columns([record for _, record in records], model_ids, source)
    labelled = [
        (record, values)
        for number, record in records
        if (values := reader.attempt(number, _values, record, columns)) is not None
    ]
    if not labelled:
        raise DataError(f"No usable row{reader.summary()}.", file=source)
    stacked = np.stack([values for _, values in labelled])
    labels = LabelMatrix(columns, *stacked.swapaxes(0, 1))
    samples = tuple(record.sample for record, _ in labelled)
    return Evaluations(samples, labels, tuple(sorted(reader.skipped, key=lambda skip: skip.row)))


def write_evaluations(evaluations: Evaluations, path: str | Path) -> None:
    """Write records that ``read_evaluations`` reads back equal; the file appears whole or never.

    The suffix chooses: ``.json`` or ``.jsonl`` (also with ``.gz``) or ``.parquet``. Pictures are
    stored as base64, missing scores as null.

    Raises
    ------
    DataError
        Another suffix.
    """
    path = Path(path)
    kind = kind_of(path)
    records = _written(evaluations)
    if kind in (".json", ".jsonl"):
        write_json(path, records)
    elif kind == ".parquet":
        write_parquet(
            path, map(flat_record, records), columns=record_columns(evaluations.model_ids)
        )
    else:
        raise DataError("Evaluations are written as JSON, JSONL or Parquet.", file=str(path))


def _pictures_of(row: Row) -> list[Any]:
    return [] if isinstance(row.value, DataError) else picture_sources(row.value)[1]


def _rows(indices: npt.ArrayLike) -> Int:
    rows = np.asarray(indices)
    return np.flatnonzero(rows) if rows.dtype == np.bool_ else rows.astype(np.int64)


class _Reader:
    """Decides what a bad row does, and keeps the list of rows left out."""

    def __init__(self, source: str, skip: bool) -> None:
        self._source = source
        self._skip = skip
        self.skipped: list[SkippedRow] = []

    def attempt(self, row: int, read: Callable[..., Any], *args: Any) -> Any:
        try:
            return read(*args)
        except DataError as error:
            if error.file is not None:  # a whole file or tar is bad, not this row
                raise
            if not self._skip:
                raise DataError(
                    error.reason, file=self._source, row=row, field=error.field
                ) from error
            self.leave_out(row, error.field, error.reason)
            return None

    def leave_out(self, row: int, field: str | None, reason: str) -> None:
        self.skipped.append(SkippedRow(row, field, reason))

    def summary(self) -> str:
        if not self.skipped:
            return ""
        first = self.skipped[0]
        return f": all {len(self.skipped)} were left out, the first (row {first.row}) because: " + (
            first.reason.rstrip(".")
        )


def _columns(
    records: Sequence[Record], model_ids: Sequence[str] | None, source: str
) -> tuple[str, ...]:
    if model_ids is not None:
        return tuple(model_ids)
    scored = [record.scores for record in records if record.scores is not None]
    if scored and len(scored) < len(records):
        raise DataError("Some rows have scores and others a class; split the file.", file=source)
    names = {name: None for scores in scored for name in scores}
    classes = {record.label for record in records if isinstance(record.label, str)}
    if any(isinstance(record.label, int) for record in records):
        raise DataError(
            "Rows have a 'label' without 'adapter'; give model_ids in the order of the labels.",
            file=source,
        )
    columns = tuple(names) or tuple(sorted(classes))
    if records and not columns:
        raise DataError("No row names a model; each score needs {model: value}.", file=source)
    return columns


def _values(record: Record, columns: tuple[str, ...]) -> F64:
    """Return float64 (6, n_models), in the order of ``ARRAYS``."""
    places = {name: at for at, name in enumerate(columns)}
    values = np.full((len(ARRAYS), len(columns)), np.nan)
    if record.scores is None:
        values[0] = 0.0
        if isinstance(record.label, int):
            if record.label >= len(columns):
                raise DataError(
                    f"The label {record.label} has no model ({len(columns)} known).", field="label"
                )
            values[0, record.label] = 1.0
        else:
            values[0, _place(str(record.label), places, record.named_in)] = 1.0
        return values
    for name, score in record.scores.items():
        values[0, _place(name, places, record.named_in)] = score
    for name, cost in record.costs.items():
        values[1, _place(name, places, record.costs_in)] = cost
    for name, tokens in record.tokens.items():
        values[2:-1, _place(name, places, "model_usage")] = tokens
    for name, duration in record.seconds.items():
        values[-1, _place(name, places, "model_seconds")] = duration
    return values


def _place(name: str, places: Mapping[str, int], field: str) -> int:
    if name not in places:
        known = ", ".join(places)
        raise DataError(f"The model {name!r} is unknown (known: {known}).", field=field)
    return places[name]


def _written(evaluations: Evaluations) -> Iterator[dict[str, Json]]:
    labels = evaluations.labels
    for at, sample in enumerate(evaluations.samples):
        yield sample_record(sample) | {
            "model_scores": _named(labels.model_ids, labels.Y[at], keep_missing=True),
            "model_costs": _named(labels.model_ids, labels.cost_usd[at]),
            "model_usage": {
                name: usage
                for column, name in enumerate(labels.model_ids)
                if (usage := _usage(labels, at, column))
            },
            "model_seconds": _named(labels.model_ids, labels.seconds[at]),
        }


def sample_record(sample: Sample) -> dict[str, Json]:
    """Return what a record says of the sample; ``write_evaluations`` adds what models did."""
    return {
        "idx": int(sample.id) if _is_whole(sample.id) else sample.id,
        "prompt": sample.prompt,
        "answer": sample.reference,
        "images": [base64.b64encode(image.data).decode() for image in sample.query.images],
        "model_scores": {},
        "model_costs": {},
        "model_usage": {},
        "model_seconds": {},
        "group": sample.group,
        "dataset": sample.dataset,
        "messages": None if sample.messages is None else list(sample.messages),
        "contaminated": sample.contaminated,
    }


def _usage(labels: LabelMatrix, row: int, column: int) -> dict[str, float]:
    tokens = {name: float(getattr(labels, name)[row, column]) for name in TOKENS}
    return {name: value for name, value in tokens.items() if not math.isnan(value)}


def _is_whole(text: str) -> bool:
    """Return whether reading the number gives the text back; long ones stay text."""
    return (
        len(text) <= _LONGEST_NUMBER
        and text.isascii()
        and text.isdigit()
        and (text == "0" or text[0] != "0")
    )


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _named(
    model_ids: Sequence[str], values: F64, *, keep_missing: bool = False
) -> dict[str, float | None]:
    return {
        name: _or_none(value)
        for name, value in zip(model_ids, values, strict=True)
        if keep_missing or not math.isnan(value)
    }


def flat_record(record: dict[str, Json]) -> dict[str, Json]:
    """Fit a record into Parquet's fixed columns."""
    messages = record["messages"]
    return {
        **record,
        "idx": str(record["idx"]),
        "messages": None if messages is None else json.dumps(messages),
    }


def record_columns(model_ids: Sequence[str]) -> dict[str, Json]:
    """Return the columns of ``flat_record``, as ``parquet.write`` wants them."""
    tokens = dict.fromkeys(TOKENS, "float")
    return {
        "idx": "string",
        "prompt": "string",
        "answer": "string",
        "images": ["string"],
        "model_scores": dict.fromkeys(model_ids, "float"),
        "model_costs": dict.fromkeys(model_ids, "float"),
        "model_usage": dict.fromkeys(model_ids, tokens),
        "model_seconds": dict.fromkeys(model_ids, "float"),
        "group": "string",
        "dataset": "string",
        "messages": "string",
        "contaminated": "bool",
    }
