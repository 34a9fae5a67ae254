"""What became of every sample at every candidate: asked or not, answered or not, scored or not.

Read from what is kept and asking nobody, so that tabulating, measuring trust and drawing an audit
sample see the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Final, TypeAlias

from router_training.labelling.answer_store import AnswerStore
from router_training.labelling.calls import Asker, Outcome, Status
from router_training.labelling.config import LabelConfig
from router_training.labelling.judge import Judged
from router_training.labelling.own_loop import OwnLoop
from router_training.labelling.responses import StoredAsker, call_for, ineligible_reason, models_of
from router_training.labelling.samples import LabelSample
from router_training.labelling.scoring import Scored, Scoring

Stratum: TypeAlias = tuple[str, str]
"""Candidate and verdict of a label."""

GOOD: Final = 0.5
"""The least score that counts as yes, where a score has to be yes or no."""

INELIGIBLE: Final = "ineligible"
"""The kind of reason of cells that can have no score, and lack none."""

UNKNOWN: Final = "no verdict: no reason is known"

_BATCH: Final = 64


@dataclass(frozen=True)
class Cell:
    """One sample at one candidate.

    Parameters
    ----------
    model_id : str
    outcome : Outcome or None
        How the call ended; None where the candidate cannot serve the sample and is never asked.
    scored : Scored or None
        None likewise.
    unscored : str or None
        Why there is no score, beginning with the kind of reason: ``ineligible: ...``, ``refused:
        ...``, ``failed: ...``, ``pending: ...``, ``no verdict: ...``; None where there is one.
    """

    model_id: str
    outcome: Outcome | None
    scored: Scored | None
    unscored: str | None

    @property
    def score(self) -> float | None:
        """The score in [0, 1]; None where there is none."""
        return None if self.scored is None else self.scored.score

    @property
    def judged(self) -> Judged | None:
        """What the LLM judge made of the answer; None where it was not needed."""
        return None if self.scored is None else self.scored.judged

    @property
    def answer(self) -> str | None:
        """The answer's text; None unless answered."""
        if self.outcome is None or self.outcome.status is not Status.ANSWERED:
            return None
        return self.outcome.text or ""

    @property
    def kind(self) -> str | None:
        """The kind of reason why there is no score."""
        return None if self.unscored is None else self.unscored.partition(":")[0]

    @property
    def verdict(self) -> str:
        """``yes``, ``no``, or ``none`` where there is no score."""
        if self.score is None:
            return "none"
        return "yes" if self.score >= GOOD else "no"

    @property
    def stratum(self) -> Stratum:
        """What an audit sample is balanced over, and its figures are weighted by."""
        return self.model_id, self.verdict


@dataclass(frozen=True)
class SampleCells:
    """One sample at all candidates, in the config's order."""

    labelled: LabelSample
    cells: tuple[Cell, ...]


class CellReader:
    """Reads cells from what is kept.

    Parameters
    ----------
    config : LabelConfig
    asker : Asker
        One that asks nobody; see ``cell_reader``.

    Raises
    ------
    ConfigError
        A scorer or the judge's rubric cannot be had.
    """

    def __init__(self, config: LabelConfig, asker: Asker) -> None:
        self._config = config
        self._asker = asker
        self.scoring = Scoring(config, asker)

    def read(self, samples: Iterable[LabelSample]) -> Iterator[SampleCells]:
        """Yield the cells of samples, in order, while few are in memory."""
        waiting = iter(samples)
        with OwnLoop() as loop:
            while batch := list(islice(waiting, _BATCH)):
                yield from loop.run(self._read_batch(batch))

    async def read_one(self, sample: LabelSample) -> SampleCells:
        """Return the cells of one sample."""
        outcomes: dict[str, Outcome] = {}
        reasons: dict[str, str] = {}
        for candidate in self._config.candidates:
            reason = ineligible_reason(sample, candidate)
            if reason is None:
                call = call_for(sample, candidate, self._config.ask)
                outcomes[candidate.id] = await self._asker.ask(candidate.id, call)
            else:
                reasons[candidate.id] = f"{INELIGIBLE}: {reason}"
        cells = [
            await self._cell(sample, outcomes[candidate.id], outcomes)
            if candidate.id in outcomes
            else Cell(candidate.id, None, None, reasons[candidate.id])
            for candidate in self._config.candidates
        ]
        return SampleCells(sample, tuple(cells))

    async def _cell(
        self, sample: LabelSample, outcome: Outcome, outcomes: dict[str, Outcome]
    ) -> Cell:
        scored = await self.scoring.score(sample, outcome, outcomes=outcomes)
        unscored = None if scored.score is not None else scored.reason or UNKNOWN
        return Cell(outcome.model_id, outcome, scored, unscored)

    async def _read_batch(self, samples: list[LabelSample]) -> list[SampleCells]:
        return [await self.read_one(sample) for sample in samples]


def cell_reader(config: LabelConfig, store: AnswerStore) -> CellReader:
    """Return a reader of what a store keeps.

    Raises
    ------
    ConfigError
        As ``CellReader``, or a candidate and a judge share an id and are not the same.
    """
    return CellReader(config, StoredAsker(store, models_of(config)))
