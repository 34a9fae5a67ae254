"""Kept answers and scores become evaluation records, and a file that says who labelled them.

Records are computed from the samples and the store alone and streamed: equal stores and configs
give equal bytes, and memory does not grow with the number of samples. What has no score is null,
with the reason in ``unscored``; what was not reported has no entry.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from router_runtime.config import CandidateConfig
from router_runtime.errors import ConfigError, DataError
from router_runtime.pricing import Price, price_from_mapping
from router_runtime.types import Json, Progress
from router_training.formats import kind_of, write_json, write_parquet
from router_training.labelled_by import (
    LabelledBy,
    LabelledCells,
    records_digest,
    write_labelled_by,
)
from router_training.labelling.answer_store import AnswerStore
from router_training.labelling.cells import Cell, SampleCells, cell_reader
from router_training.labelling.config import LabelConfig
from router_training.labelling.provenance import labelled_by
from router_training.labelling.samples_stage import iter_samples, n_samples
from router_training.labelling.trust import TrustTally
from router_training.labels import flat_record, record_columns, sample_record
from router_training.sharded import ShardWriter
from router_training.store import refuse_artifact_folder

_WRITTEN: Final = (".json", ".jsonl", ".parquet")
_EVERY: Final = 100  # samples between two reports of progress


@dataclass(frozen=True)
class Tabulated:
    """What was written.

    Parameters
    ----------
    output : Path
        The records.
    rows : int
    labelled_by : LabelledBy
        What the file beside them says: ``cells`` by candidate, and ``trust``.
    """

    output: Path
    rows: int
    labelled_by: LabelledBy

    @property
    def pending(self) -> int:
        """Cells that were not asked, or whose verdict is to come."""
        return sum(cell.unscored.get("pending", 0) for cell in self.labelled_by.cells.values())


def tabulate(
    config: LabelConfig,
    samples: Path,
    store: AnswerStore,
    *,
    progress: Progress | None = None,
) -> Tabulated:
    """Write the records of all samples to ``config.output``, completely or not at all.

    Parameters
    ----------
    config : LabelConfig
    samples : Path
        The folder that ``samples_stage`` made.
    store : AnswerStore
        Only read.
    progress : callable, optional
        Called with (samples done, samples).

    Raises
    ------
    ConfigError
        The output is of no known kind, or a folder that holds something else.
    DataError
        A sample asks for a scorer that is not configured.
    RouterError, OSError
        The output cannot be written.
    """
    output = config.output
    folder = writes_folder(output)
    refuse_artifact_folder(output if folder else output.parent)
    reader = cell_reader(config, store)
    tally = _Tally()
    records = _records(
        config, tally.counted(_watched(reader.read(iter_samples(samples)), samples, progress))
    )
    _write(records, config, folder=folder)
    reader.scoring.warn_of_unused()
    judge = reader.scoring.judge
    content = labelled_by(
        config,
        rubric=None if judge is None else judge.rubric,
        rows=tally.rows,
        records_sha256=records_digest(output),
        cells=tally.cells(),
        trust=tally.trust.report(seed=config.seed),
    )
    write_labelled_by(content, output)
    return Tabulated(output, tally.rows, content)


def writes_folder(output: Path) -> bool:
    """Return whether records go into a folder of shards there, and not into one file.

    Raises
    ------
    ConfigError
        The suffix is of no kind that records are written in.
    """
    if output.is_dir() or not output.suffix:
        return True
    try:
        known = kind_of(output) in _WRITTEN
    except DataError:
        known = False
    if not known:
        raise ConfigError(
            f"output '{output}': records are written as {', '.join(_WRITTEN)} (.json and .jsonl "
            "also with .gz), or into a folder, whose name has no dot."
        )
    return False


def _write(records: Iterable[dict[str, Json]], config: LabelConfig, *, folder: bool) -> None:
    output = config.output
    model_ids = [candidate.id for candidate in config.candidates]
    columns = record_columns(model_ids) | {"unscored": dict.fromkeys(model_ids, "string")}
    if folder:
        with ShardWriter(output, columns, rows_per_shard=config.rows_per_shard) as shards:
            for record in records:
                shards.write(flat_record(record))
    elif kind_of(output) == ".parquet":
        write_parquet(output, map(flat_record, records), columns=columns)
    else:
        write_json(output, records)


def _watched(
    rows: Iterable[SampleCells], samples: Path, progress: Progress | None
) -> Iterator[SampleCells]:
    total = n_samples(samples)
    for done, row in enumerate(rows, start=1):
        yield row
        if progress is not None and (done % _EVERY == 0 or done == total):
            progress(done, total)


def _records(config: LabelConfig, rows: Iterable[SampleCells]) -> Iterator[dict[str, Json]]:
    prices = {candidate.id: _price(candidate) for candidate in config.candidates}
    for row in rows:
        yield record_of(row, prices)


def _price(candidate: CandidateConfig) -> Price | None:
    if candidate.price is None:
        return None
    return price_from_mapping(candidate.price.model_dump(), owner=candidate.id)


def record_of(row: SampleCells, prices: Mapping[str, Price | None]) -> dict[str, Json]:
    """Return the record of one sample.

    What a call cost, how long it took and its tokens are told of answers only: of a call that
    failed they say nothing about the next.

    Parameters
    ----------
    row : SampleCells
    prices : mapping of model id to Price or None
        For answers that were kept without a cost.
    """
    answered = [cell for cell in row.cells if cell.answer is not None]
    found = {
        "model_scores": {cell.model_id: cell.score for cell in row.cells},
        "model_costs": _known({c.model_id: _cost(c, prices[c.model_id]) for c in answered}),
        "model_usage": _known({cell.model_id: _usage(cell) for cell in answered}),
        "model_seconds": _known({cell.model_id: _seconds(cell) for cell in answered}),
        "unscored": _known({cell.model_id: cell.unscored for cell in row.cells}),
    }
    return sample_record(row.labelled.sample) | found


def _known(values: Mapping[str, Json]) -> dict[str, Json]:
    return {name: value for name, value in values.items() if value is not None}


def _cost(cell: Cell, price: Price | None) -> float | None:
    if cell.outcome is None:
        return None
    if cell.outcome.cost_usd is not None:
        return float(cell.outcome.cost_usd)
    usage = cell.outcome.usage
    return None if usage is None or price is None else float(price.cost(usage))


def _usage(cell: Cell) -> dict[str, float] | None:
    usage = None if cell.outcome is None else cell.outcome.usage
    if usage is None:
        return None
    return {
        "input_tokens": float(usage.input_tokens),
        "output_tokens": float(usage.output_tokens),
        "cached_input_tokens": float(usage.cached_input_tokens),
    }


def _seconds(cell: Cell) -> float | None:
    return None if cell.outcome is None else cell.outcome.seconds


@dataclass
class _Tally:
    """Counts rows as they pass."""

    rows: int = 0
    trust: TrustTally = field(default_factory=TrustTally)
    scores: dict[str, list[float]] = field(default_factory=dict)  # number and sum
    unscored: dict[str, Counter[str]] = field(default_factory=dict)

    def counted(self, rows: Iterable[SampleCells]) -> Iterator[SampleCells]:
        for row in rows:
            self.rows += 1
            self.trust.add(row)
            for cell in row.cells:
                sums = self.scores.setdefault(cell.model_id, [0, 0.0])
                reasons = self.unscored.setdefault(cell.model_id, Counter())
                if cell.score is None:
                    reasons[cell.kind or ""] += 1
                else:
                    sums[0] += 1
                    sums[1] += cell.score
            yield row

    def cells(self) -> dict[str, LabelledCells]:
        return {
            name: LabelledCells(
                scored=int(n),
                unscored=dict(sorted(self.unscored[name].items())),
                mean_score=total / n if n else float("nan"),
            )
            for name, (n, total) in self.scores.items()
        }
