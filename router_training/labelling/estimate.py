"""What a labelling run would still ask, and what that would cost, before anybody is asked.

Input tokens are estimated from characters and pictures (``spending.size_of``). Output tokens are
those of the model's answers so far, on average, where there are enough of them; else what the call
allows (``max_tokens``); else ``ASSUMED_OUTPUT_TOKENS``. What is kept costs nothing.

A judge is counted for every answer that is still to come and that it would be the one to decide,
as if no cheaper scorer recognised one; of the answers that are there, for those that it has to
judge. Repeated tries, and replies that are no verdict, come on top. Of samples that are asked alike
every one is counted. So the figures tend to be too high, the more so before the first answers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from decimal import Decimal
from pathlib import Path
from typing import Final, Literal, TypeAlias

from router_runtime.config import CandidateConfig, PriceConfig
from router_runtime.pricing import CHARS_PER_TOKEN, Usage, price_from_mapping
from router_runtime.targets.base import ChatCall
from router_runtime.types import Json, Progress
from router_training.labelling.answer_store import AnswerStore
from router_training.labelling.calls import Status
from router_training.labelling.cells import Cell, CellReader, SampleCells, cell_reader
from router_training.labelling.config import JUDGE, JudgeModelConfig, LabelConfig
from router_training.labelling.responses import call_for
from router_training.labelling.samples import LabelSample
from router_training.labelling.samples_stage import iter_samples, n_samples
from router_training.labelling.spending import CallSize, size_of, total

Role: TypeAlias = Literal["candidate", "judge"]
Basis: TypeAlias = Literal["observed", "max_tokens", "assumed"]

ASSUMED_OUTPUT_TOKENS: Final[Mapping[Role, int]] = {"candidate": 512, "judge": 128}
"""Tokens of a reply where nothing limits it and none has been seen."""

ENOUGH: Final = 10
"""Answers of a model whose mean length is taken for that of the next."""

_TO_ASK: Final = (Status.PENDING, Status.FAILED)
_EVERY: Final = 100


@dataclass(frozen=True)
class ModelEstimate:
    """What is still to be asked of one candidate or judge.

    Parameters
    ----------
    model_id : str
    role : str
        ``candidate`` or ``judge``.
    kept : int
        Calls whose end is kept.
    calls : int
        Calls still to be made.
    ineligible : int
        Samples that the candidate cannot serve.
    input_tokens, output_tokens : int
        Of ``calls``.
    output_basis : str
        What the length of answers was taken from: ``observed``, ``max_tokens`` or ``assumed``.
    cost_usd : Decimal or None
        Of ``calls``; None where no price is configured.
    """

    model_id: str
    role: Role
    kept: int
    calls: int
    ineligible: int
    input_tokens: int
    output_tokens: int
    output_basis: Basis
    cost_usd: Decimal | None


@dataclass(frozen=True)
class Estimate:
    """What a labelling run would still ask.

    Parameters
    ----------
    samples : int
    models : tuple of ModelEstimate
        Candidates in the config's order, then judges; of those who would be asked.
    spent_usd : Decimal
        What was spent before, or may have been at most, which ``max_cost_usd`` counts as well.
    """

    samples: int
    models: tuple[ModelEstimate, ...]
    spent_usd: Decimal

    @property
    def calls(self) -> int:
        """All calls still to be made."""
        return sum(model.calls for model in self.models)

    @property
    def cost_usd(self) -> Decimal:
        """Cost of the calls whose price is known; see ``unpriced`` for the others."""
        return total([model.cost_usd for model in self.models])

    @property
    def unpriced(self) -> tuple[str, ...]:
        """Models to be asked without a price."""
        return tuple(m.model_id for m in self.models if m.calls and m.cost_usd is None)

    def to_json(self) -> Json:
        """Return plain values; dollars as decimal strings."""
        return {
            "samples": self.samples,
            "calls": self.calls,
            "cost_usd": str(self.cost_usd),
            "spent_usd": str(self.spent_usd),
            "models": [
                {**asdict(m), "cost_usd": None if m.cost_usd is None else str(m.cost_usd)}
                for m in self.models
            ],
        }


def estimate(
    config: LabelConfig,
    samples: Path,
    store: AnswerStore,
    *,
    collecting: bool = True,
    judging: bool = True,
    progress: Progress | None = None,
) -> Estimate:
    """Return what would still be asked, asking nobody.

    Parameters
    ----------
    config : LabelConfig
    samples : Path
        The folder that ``samples_stage`` made.
    store : AnswerStore
        Only read.
    collecting, judging : bool
        Whether candidates and judges would be asked; without collecting, judges have only the
        answers that are kept.
    progress : callable, optional
        Called with (samples done, samples).

    Raises
    ------
    ConfigError
        A scorer or the judge's rubric cannot be had.
    """
    reader = cell_reader(config, store)
    counting = _Counting(config, reader, store, collecting=collecting)
    count = n_samples(samples)
    for done, row in enumerate(reader.read(iter_samples(samples)), start=1):
        counting.add(row, judging=judging)
        if progress is not None and (done % _EVERY == 0 or done == count):
            progress(done, count)
    candidates = counting.candidates.values() if collecting else ()
    found = [*candidates, *(counting.judges.values() if judging else ())]
    estimates = tuple(tally.estimate() for tally in found)
    return Estimate(count, estimates, total([store.spent(), store.estimated()]))


class _Tally:
    """Counts the calls of one model."""

    def __init__(
        self,
        entry: CandidateConfig | JudgeModelConfig,
        role: Role,
        observed_output: float | None,
    ) -> None:
        self._entry = entry
        self._role = role
        self._observed_output = observed_output
        self._limited = False
        self.kept = self.calls = self.ineligible = self._images = 0
        self._input_tokens = self._output_tokens = 0.0

    def add(self, size: CallSize, *, times: int = 1) -> None:
        self.calls += times
        self._images += times * size.images
        self._input_tokens += times * size.input_tokens
        self._output_tokens += times * self.output_tokens(size)
        self._limited |= size.output_limit is not None

    def output_tokens(self, size: CallSize) -> float:
        """Return the tokens that an answer to a call is expected to have."""
        if self._observed_output is not None:
            return self._observed_output
        if size.output_limit is not None:
            return size.output_limit
        return ASSUMED_OUTPUT_TOKENS[self._role]

    def estimate(self) -> ModelEstimate:
        sent, made = round(self._input_tokens), round(self._output_tokens)
        limited: Basis = "max_tokens" if self._limited else "assumed"
        return ModelEstimate(
            self._entry.id,
            self._role,
            kept=self.kept,
            calls=self.calls,
            ineligible=self.ineligible,
            input_tokens=sent,
            output_tokens=made,
            output_basis=limited if self._observed_output is None else "observed",
            cost_usd=_cost(self._entry.price, self._entry.id, Usage(sent, made, 0, self._images)),
        )


class _Counting:
    """Counts the calls that the cells of samples still need."""

    def __init__(
        self, config: LabelConfig, reader: CellReader, store: AnswerStore, *, collecting: bool
    ) -> None:
        observed = store.observed()
        self._config = config
        self._scoring = reader.scoring
        self._collecting = collecting
        seen = {name: o.output_tokens for name, o in observed.items() if o.answered >= ENOUGH}
        self._by_id = {candidate.id: candidate for candidate in config.candidates}
        self.candidates = {
            entry.id: _Tally(entry, "candidate", seen.get(entry.id)) for entry in config.candidates
        }
        judges = config.judge.models if config.judge is not None else ()
        self.judges = {entry.id: _Tally(entry, "judge", seen.get(entry.id)) for entry in judges}

    def add(self, row: SampleCells, *, judging: bool) -> None:
        answers = dict(self._answers(row))
        if not judging or self._scoring.judge is None:
            return
        for cell in row.cells:
            if cell.model_id in answers:
                self._judge(row.labelled, cell, answers)

    def _answers(self, row: SampleCells) -> Iterator[tuple[str, str]]:
        """Count the candidates' calls; yield each one's answer, or a text of its likely length."""
        for cell in row.cells:
            tally = self.candidates[cell.model_id]
            if cell.outcome is None:
                tally.ineligible += 1
            elif cell.outcome.status not in _TO_ASK:
                tally.kept += 1
                if cell.answer is not None:
                    yield cell.model_id, cell.answer
            elif self._collecting:
                size = size_of(self._call(row.labelled, cell))
                tally.add(size)
                yield cell.model_id, "x" * round(tally.output_tokens(size) * CHARS_PER_TOKEN)

    def _call(self, sample: LabelSample, cell: Cell) -> ChatCall:
        return call_for(sample, self._by_id[cell.model_id], self._config.ask)

    def _judge(self, sample: LabelSample, cell: Cell, answers: Mapping[str, str]) -> None:
        """Count the verdicts that an answer still needs."""
        judge, section = self._scoring.judge, self._config.judge
        if judge is None or section is None or not self._comes_to_judge(sample, cell):
            return
        votes = () if cell.judged is None else cell.judged.votes
        for model_id, sizes in self._sizes(sample, answers[cell.model_id], answers).items():
            missing = len(sizes)
            if votes:
                own = [vote for vote in votes if vote.model_id == model_id]
                missing = sum(vote.status in _TO_ASK for vote in own)
                self.judges[model_id].kept += len(own) - missing
            for size in sizes[:missing]:  # they differ in the order of the answers at most
                self.judges[model_id].add(size)

    def _comes_to_judge(self, sample: LabelSample, cell: Cell) -> bool:
        judge, section = self._scoring.judge, self._config.judge
        if judge is None or section is None or cell.model_id == section.baseline:
            return False
        if "reference" in judge.rubric.needs and sample.sample.reference is None:
            return False
        if cell.answer is None:
            return JUDGE in self._scoring.names_for(sample)
        return cell.judged is not None

    def _sizes(
        self, sample: LabelSample, answer: str, answers: Mapping[str, str]
    ) -> dict[str, list[CallSize]]:
        judge, section = self._scoring.judge, self._config.judge
        sizes: dict[str, list[CallSize]] = {}
        if judge is None or section is None:
            return sizes
        baseline = None if section.baseline is None else answers.get(section.baseline)
        if section.baseline is not None and baseline is None:
            return sizes  # nothing to compare with
        for model_id, call in judge.calls(sample, answer, baseline=baseline):
            sizes.setdefault(model_id, []).append(size_of(call))
        return sizes


def _cost(price: PriceConfig | None, owner: str, usage: Usage) -> Decimal | None:
    if price is None:
        return None
    return price_from_mapping(price.model_dump(), owner=owner).cost(usage)
