"""Scores of answers: the cheapest scorer that can tell, the LLM judge among them.

A score is computed from what is kept and is not kept itself: with an asker that asks nobody,
scoring tells what is known; with one that asks, it gets the verdicts that are missing. A cell has a
score or a reason for having none, never both and never a silent 0.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from router_runtime.errors import DataError
from router_runtime.targets.base import ChatCall
from router_training.labelling.calls import Asker, Outcome, Status
from router_training.labelling.config import JUDGE, LabelConfig, ScoringConfig
from router_training.labelling.judge import NO_VERDICT, Judge, Judged
from router_training.labelling.progress import Unwatched, Watch
from router_training.labelling.responses import call_for, ineligible_reason
from router_training.labelling.samples import LabelSample
from router_training.labelling.scorers import Mark, Scorer, build_scorers

logger = logging.getLogger(__name__)

FULL_MARKS: Final = 1.0
_CALLS_PER_SLOT: Final = 2
_MAX_REASONS: Final = 200
_MAX_NAMES: Final = 20
_OTHER: Final = "other reasons"


@dataclass(frozen=True)
class Scored:
    """What one answer is worth.

    Parameters
    ----------
    model_id : str
        The candidate.
    score : float or None
        In [0, 1]; None: unscored.
    by : str
        The scorer that decided, ``judge`` for the LLM judge; empty where none did.
    reason : str or None
        Why it is unscored: ``refused: ...``, ``failed: ...`` or ``pending: ...`` as the candidate's
        call ended, ``pending: ...`` where a judge's is to come, else ``no verdict: ...``.
    judged : Judged or None
        Where the LLM judge was reached.
    """

    model_id: str
    score: float | None
    by: str = ""
    reason: str | None = None
    judged: Judged | None = None


class Scoring:
    """Scores answers as a config says.

    Parameters
    ----------
    config : LabelConfig
    asker : Asker
        Knows the judges.

    Raises
    ------
    ConfigError
        A scorer cannot be built, or the rubric not be had.
    """

    def __init__(self, config: LabelConfig, asker: Asker) -> None:
        self._config = config.scoring
        self._scorers: Mapping[str, Scorer] = build_scorers(config.scoring)
        self._met: set[str] = set()
        self._baseline = None if config.judge is None else config.judge.baseline
        self.judge: Judge | None = None if config.judge is None else Judge(config.judge, asker)

    def names_for(self, sample: LabelSample) -> tuple[str, ...]:
        """Return which scorers a sample is judged by, in order.

        Raises
        ------
        DataError
            The sample asks for a scorer that is not configured.
        """
        dataset = sample.sample.dataset or ""
        self._met.add(dataset)
        by_dataset = self._config.datasets.get(dataset, self._config.default)
        names = sample.scorers or by_dataset
        check_names(
            {name: sample.sample.id for name in names}, self._config, judged=self.judge is not None
        )
        return names

    def warn_of_unused(self) -> None:
        """Log which data sets have scorers in the config and no sample among those scored here.

        A name that is written otherwise than in the data leaves its samples to ``default``, which
        nothing else would show.
        """
        unused = [name for name in self._config.datasets if name not in self._met]
        if unused and self._met:
            logger.warning(
                "scoring.datasets names '%s', and no sample that was scored is of it (there are: "
                "%s). Correct the name, or remove it.",
                "', '".join(unused),
                ", ".join(sorted(f"'{name}'" for name in self._met)[:_MAX_NAMES]),
            )

    async def score(
        self, sample: LabelSample, outcome: Outcome, *, outcomes: Mapping[str, Outcome]
    ) -> Scored:
        """Return an answer's score, or why it has none.

        Parameters
        ----------
        sample : LabelSample
        outcome : Outcome
            The candidate's, however it ended.
        outcomes : mapping of model id to Outcome
            Of all candidates for this sample; a comparison finds its baseline there.

        Raises
        ------
        DataError
            The sample asks for a scorer that is not configured.
        """
        if outcome.status is not Status.ANSWERED:
            reason = f"{outcome.status.value}: {outcome.reason or 'unknown'}"
            return Scored(outcome.model_id, None, reason=reason)
        names = self.names_for(sample)
        reasons = []
        judged: Judged | None = None
        for name in names:
            if name == JUDGE:
                judged = await self._judged(sample, outcome, outcomes)
                mark = Mark(judged.score, judged.reason)
                if mark.score is None and (mark.reason or "").startswith(Status.PENDING.value):
                    return Scored(outcome.model_id, None, reason=mark.reason, judged=judged)
            else:
                mark = self._scorers[name](sample, outcome.text or "")
            if mark.score is not None and self._stands(name, mark.score, last=name == names[-1]):
                return Scored(outcome.model_id, mark.score, by=name, judged=judged)
            reasons.append(f"{name}: {mark.reason or 'not full marks'}")
        reason = judged.reason if judged is not None and judged.reason else _joined(reasons)
        return Scored(outcome.model_id, None, reason=reason, judged=judged)

    def _stands(self, name: str, score: float, *, last: bool) -> bool:
        if last or name == JUDGE or score >= FULL_MARKS:
            return True
        return self._config.scorers[name].decides == "both"

    async def _judged(
        self, sample: LabelSample, outcome: Outcome, outcomes: Mapping[str, Outcome]
    ) -> Judged:
        if self.judge is None:  # names_for has refused it
            raise DataError("There is no judge.", field="scorer")
        baseline = None if self._baseline is None else outcomes.get(self._baseline)
        return await self.judge.judge(sample, outcome, baseline=baseline)


def check_names(asked: Mapping[str, str], config: ScoringConfig, *, judged: bool) -> None:
    """Refuse scorers that samples ask for by name and that nobody configured.

    Parameters
    ----------
    asked : mapping
        Names of scorers, and a sample that asks for each.
    config : ScoringConfig
    judged : bool
        Whether there is an LLM judge.

    Raises
    ------
    DataError
        Naming the scorer, the sample and what is known.
    """
    known = [*config.scorers, *([JUDGE] if judged else [])]
    for name, sample_id in asked.items():
        if name not in known:
            raise DataError(
                f"Sample '{sample_id}' asks for the scorer '{name}', which is not configured "
                f"(known: {', '.join(known) or 'none'}).",
                field="scorer",
            )


def _joined(reasons: list[str]) -> str:
    return f"{NO_VERDICT}: {'; '.join(reasons)}"


@dataclass(frozen=True)
class JudgeSummary:
    """How judging ended, over all answers.

    Parameters
    ----------
    scored : mapping of model id to int
        Answers with a score, by candidate.
    unscored : mapping of model id to int
        Answers without one.
    reasons : mapping
        How often each reason stands behind an answer without a score.
    by : mapping
        How many scores each scorer decided.
    """

    scored: Mapping[str, int]
    unscored: Mapping[str, int]
    reasons: Mapping[str, int]
    by: Mapping[str, int]

    @property
    def pending(self) -> int:
        """Answers whose verdict is still to come; 0 when judging is done."""
        waiting = Status.PENDING.value
        return sum(n for reason, n in self.reasons.items() if reason.startswith(waiting))


@dataclass
class _Tally:
    scored: Counter[str] = field(default_factory=Counter)
    unscored: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    by: Counter[str] = field(default_factory=Counter)

    def add(self, scored: Scored) -> None:
        if scored.score is not None:
            self.scored[scored.model_id] += 1
            self.by[scored.by] += 1
            return
        self.unscored[scored.model_id] += 1
        reason = scored.reason or "unknown"
        kind = reason.partition(":")[0]
        crowded = len(self.reasons) >= _MAX_REASONS and reason not in self.reasons
        self.reasons[f"{kind}: {_OTHER}" if crowded else reason] += 1

    def summary(self) -> JudgeSummary:
        ranked = dict(self.reasons.most_common())
        return JudgeSummary(dict(self.scored), dict(self.unscored), ranked, dict(self.by))


async def judge_all(
    samples: Callable[[], Iterable[LabelSample]],
    config: LabelConfig,
    asker: Asker,
    judge_asker: Asker,
    *,
    watch: Watch | None = None,
) -> JudgeSummary:
    """Score every answer that is kept, so that the judges' verdicts are kept too.

    Only as many samples are under way as keep the judges busy, so memory does not grow with their
    number. When it is cancelled nothing more is sent; calls in
    flight are left to ``judge_asker``, whose closing lets them end.

    Parameters
    ----------
    samples : callable
        Returns a fresh iterator over all samples; read in a thread.
    config : LabelConfig
    asker : Asker
        Of the candidates; one that asks nobody judges what is there.
    judge_asker : Asker
        Of the judges; it tells a watch of its own about their calls.
    watch : Watch, optional
        Told which judges begin.

    Raises
    ------
    DataError
        A sample asks for a scorer that is not configured.
    ConfigError
        A scorer cannot be built, or the rubric not be had.
    """
    scoring = Scoring(config, judge_asker)
    watch = watch or Unwatched()
    for model in config.judge.models if config.judge is not None else ():
        watch.started(model.id, None)
    tally = _Tally()
    iterator = iter(samples())
    turn = asyncio.Lock()

    async def work() -> None:
        async for sample in _next_of(iterator, turn):
            for scored in await _score_sample(sample, config, asker, scoring):
                tally.add(scored)

    workers = [asyncio.create_task(work()) for _ in range(_workers(config))]
    try:
        await asyncio.gather(*workers)
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
    return tally.summary()


def _workers(config: LabelConfig) -> int:
    """Return how many samples are judged at once: enough calls for every slot of the judges."""
    if config.judge is None:
        return 1
    slots = max(model.target.max_concurrency for model in config.judge.models)
    return max(1, -(-_CALLS_PER_SLOT * slots // len(config.candidates)))


async def _next_of(
    samples: Iterator[LabelSample], turn: asyncio.Lock
) -> AsyncIterator[LabelSample]:
    while True:
        async with turn:
            sample = await asyncio.to_thread(next, samples, None)
        if sample is None:
            return
        yield sample


async def _score_sample(
    sample: LabelSample, config: LabelConfig, asker: Asker, scoring: Scoring
) -> list[Scored]:
    """Return the scores of a sample's answers; cells without an answer are left out."""
    calls = await asyncio.to_thread(_calls, sample, config)
    outcomes = {model_id: await asker.ask(model_id, call) for model_id, call in calls.items()}
    answered = [o for o in outcomes.values() if o.status is Status.ANSWERED]
    return list(
        await asyncio.gather(*(scoring.score(sample, o, outcomes=outcomes) for o in answered))
    )


def _calls(sample: LabelSample, config: LabelConfig) -> dict[str, ChatCall]:
    """Return what each candidate that can serve a sample is asked."""
    return {
        candidate.id: call_for(sample, candidate, config.ask)
        for candidate in config.candidates
        if ineligible_reason(sample, candidate) is None
    }
