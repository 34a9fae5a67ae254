"""The LLM judge: what it is asked about an answer, and what its verdicts come to.

Every verdict is got through an ``Asker``, so it is kept and found again like a candidate's answer,
and judging anew with the same rubric asks nobody. Nothing here is random, and the order in which
cells are judged changes no call: whether an endpoint can structure its replies is not learned on
the way but asked once, with a question of its own (``1 + 1``) that is kept like any other.

A verdict that cannot be read is asked for again as often as the config allows. A vote without a
verdict is left out; a cell of whose votes fewer than half are there has no score. A vote that is
still to come (a stopped judge, the budget) leaves the whole cell for later.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, TypeAlias

from router_runtime.errors import ConfigError
from router_runtime.targets.base import ChatCall
from router_training.labelling.calls import Asker, Outcome, Status
from router_training.labelling.config import JudgeConfig, JudgeModelConfig
from router_training.labelling.injections import patterns_in
from router_training.labelling.rubrics import JudgeData, Mode, Rubric, judge_call, load
from router_training.labelling.samples import LabelSample
from router_training.labelling.verdicts import Verdict, parse
from router_training.samples import Sample

Order: TypeAlias = Literal["", "ab", "ba"]

NO_VERDICT: Final = "no verdict"
BASELINE_SCORE: Final = 0.5
"""Of the baseline in comparisons: it is as good as itself."""

_PROBE: Final = {
    "prompt": "How much is 1 + 1? Reply with the number alone.",
    "reference": "2",
    "answer": "2",
    "answer_a": "2",
    "answer_b": "3",
}
_LADDER: Final[tuple[Mode, ...]] = ("json_schema", "json_object")


@dataclass(frozen=True)
class Vote:
    """One verdict of one judge, or why there is none.

    Parameters
    ----------
    model_id : str
        The judge.
    repeat : int
        From 0; which of its verdicts on this answer.
    order : str
        Of a comparison: ``ab`` where the judged answer stood first, ``ba`` where the baseline's
        did; else empty.
    score : float or None
        In [0, 1], of the judged answer (in both orders); None where there is no verdict.
    verdict : str or None
        As the rubric names it (``yes``, ``7``, ``A``).
    explanation : str
        The judge's.
    unreadable : int
        Its replies that were no verdict.
    status : Status
        ``answered`` where it replied, readably or not; else how the last call ended.
    reason : str or None
        Why there is no verdict.
    """

    model_id: str
    repeat: int
    order: Order
    score: float | None = None
    verdict: str | None = None
    explanation: str = ""
    unreadable: int = 0
    status: Status = Status.ANSWERED
    reason: str | None = None


@dataclass(frozen=True)
class Judged:
    """What the votes on one answer come to.

    Parameters
    ----------
    score : float or None
        In [0, 1]; None: unscored, never 0 instead.
    reason : str or None
        Why it is unscored: ``no verdict: ...`` or ``pending: ...``.
    explanation : str
        Of the first vote that agrees with the score, else of the first that has one.
    votes : tuple of Vote
        By judge, repeat and order; empty where no judge was needed.
    patterns : tuple of str
        Names of the patterns of ``injections`` found in the answer; they change no score.
    """

    score: float | None
    reason: str | None = None
    explanation: str = ""
    votes: tuple[Vote, ...] = ()
    patterns: tuple[str, ...] = ()

    @property
    def suspicious(self) -> bool:
        """Whether the answer reads as if it talked to its judge."""
        return bool(self.patterns)


class Judge:
    """Judges answers with the models, the rubric and the rules of a config.

    Parameters
    ----------
    config : JudgeConfig
    asker : Asker
        Knows the judges by their ids.

    Raises
    ------
    ConfigError
        The rubric cannot be had, or compares while no baseline is named.
    """

    def __init__(self, config: JudgeConfig, asker: Asker) -> None:
        self.rubric: Rubric = load(config.rubric)
        if (self.rubric.verdict == "winner") != (config.baseline is not None):
            raise ConfigError(
                f"judge: 'baseline' goes with a rubric that compares; '{config.rubric}' has "
                f"'verdict: {self.rubric.verdict}'."
            )
        self._config = config
        self._asker = asker
        self._modes: dict[str, Mode] = {}
        self._probing: dict[str, asyncio.Future[Mode | Outcome]] = {}

    async def judge(
        self, sample: LabelSample, outcome: Outcome, *, baseline: Outcome | None = None
    ) -> Judged:
        """Return what the judges make of an answer.

        Parameters
        ----------
        sample : LabelSample
        outcome : Outcome
            The answer, status ``answered``. One that was cut at its length is judged as it is.
        baseline : Outcome, optional
            The answer to compare with, where the rubric compares.
        """
        if missing := self._missing(sample, outcome, baseline):
            return missing
        if outcome.model_id == self._config.baseline:
            return Judged(BASELINE_SCORE, explanation="This is the answer to compare with.")
        answer = outcome.text or ""
        other = (baseline.text or "") if baseline is not None else None
        votes: tuple[Vote, ...] = ()
        for votes_of_one in await asyncio.gather(
            *(self._votes(model, sample, answer, other) for model in self._config.models)
        ):
            votes += votes_of_one
        combine = self._config.combine or self.rubric.combine
        return replace(_combined(votes, combine), patterns=patterns_in(answer))

    def calls(
        self, sample: LabelSample, answer: str, *, baseline: str | None = None
    ) -> Iterator[tuple[str, ChatCall]]:
        """Yield what would be asked about an answer if every reply were a verdict: judge and call.

        For estimates; where ``structured: auto`` is not decided yet, as for ``json_schema``.
        """
        for model in self._config.models:
            mode = self._modes.get(model.id) or _LADDER[0]
            mode = mode if self._config.structured == "auto" else self._config.structured
            for _order, data in self._data(model, sample, answer, baseline):
                for _repeat in range(self._config.repeats):
                    yield model.id, self._call(model, data, mode)

    def _missing(
        self, sample: LabelSample, outcome: Outcome, baseline: Outcome | None
    ) -> Judged | None:
        if "reference" in self.rubric.needs and sample.sample.reference is None:
            return Judged(None, f"{NO_VERDICT}: the sample has no reference")
        if self._config.baseline is None or outcome.model_id == self._config.baseline:
            return None
        status = Status.PENDING if baseline is None else baseline.status
        if status is Status.ANSWERED:
            return None
        kind = Status.PENDING.value if status is Status.PENDING else NO_VERDICT
        return Judged(None, f"{kind}: the baseline '{self._config.baseline}' has no answer")

    def _data(
        self, model: JudgeModelConfig, sample: LabelSample, answer: str, baseline: str | None
    ) -> Iterator[tuple[Order, JudgeData]]:
        """Yield what is put into the template, once per order."""
        texts = {
            "prompt": conversation(sample.sample),
            "reference": sample.sample.reference or "",
            "answer": answer,
        }
        pictures = sample.sample.query.images
        if self.rubric.verdict != "winner":
            yield "", JudgeData(texts, pictures, show=model.images)
            return
        other = baseline or ""
        both: tuple[tuple[Order, str, str], ...] = (("ab", answer, other), ("ba", other, answer))
        for order, a, b in both:
            shown = {**texts, "answer_a": a, "answer_b": b}
            yield order, JudgeData(shown, pictures, show=model.images)

    def _call(self, model: JudgeModelConfig, data: JudgeData, mode: Mode) -> ChatCall:
        """Return a call with all its parameters, the target's before those of all judges."""
        parameters = {**self._config.parameters, **model.target.parameters}
        return judge_call(self.rubric, data, mode=mode, parameters=parameters)

    async def _votes(
        self, model: JudgeModelConfig, sample: LabelSample, answer: str, baseline: str | None
    ) -> tuple[Vote, ...]:
        mode = await self._mode(model)
        asked = [
            (Vote(model.id, repeat, order), data)
            for order, data in self._data(model, sample, answer, baseline)
            for repeat in range(self._config.repeats)
        ]
        if isinstance(mode, Outcome):
            votes = [_without(vote, mode) for vote, _data in asked]
        else:
            votes = list(
                await asyncio.gather(
                    *(self._vote(vote, self._call(model, data, mode), mode) for vote, data in asked)
                )
            )
        return tuple(sorted(votes, key=lambda vote: (vote.repeat, vote.order)))

    async def _vote(self, vote: Vote, call: ChatCall, mode: Mode) -> Vote:
        """Ask until a reply is a verdict; a repeat's retries have numbers behind all repeats."""
        retries = self._config.invalid_retries
        first = self._config.repeats + vote.repeat * retries
        for number in (vote.repeat, *range(first, first + retries)):
            outcome = await self._asker.ask(vote.model_id, call, repeat=number)
            if outcome.status is not Status.ANSWERED:
                return _without(vote, outcome)
            verdict = parse(outcome.text or "", self.rubric, mode=mode)
            if verdict is not None:
                return _voted(vote, verdict)
            vote = replace(vote, unreadable=vote.unreadable + 1)
        return replace(vote, reason=f"unreadable after {_times(vote.unreadable)}")

    async def _mode(self, model: JudgeModelConfig) -> Mode | Outcome:
        """Return how a judge structures its replies, or the call that left that open."""
        if self._config.structured != "auto":
            return self._config.structured
        if model.id in self._modes:
            return self._modes[model.id]
        probing = self._probing.get(model.id)
        if probing is None:
            probing = asyncio.ensure_future(self._probed(model))
            self._probing[model.id] = probing
            probing.add_done_callback(lambda _: self._probing.pop(model.id, None))
        mode = await probing
        if not isinstance(mode, Outcome):
            self._modes[model.id] = mode
        return mode

    async def _probed(self, model: JudgeModelConfig) -> Mode | Outcome:
        """Ask the question of ``_PROBE`` in every form until one is accepted and kept to."""
        for mode in _LADDER:
            call = self._call(model, JudgeData(_PROBE), mode)
            outcome = await self._asker.ask(model.id, call)
            if outcome.status in (Status.PENDING, Status.FAILED):
                return outcome
            answered = outcome.status is Status.ANSWERED
            if answered and parse(outcome.text or "", self.rubric, mode=mode) is not None:
                return mode
        return "text"


def conversation(sample: Sample) -> str:
    """Return what the user asked as one text: a prompt alone, or turns under their roles.

    Pictures are named where they stand, as ``[picture 1]``. The system prompt of the config's
    ``ask`` section is no part of it: the judge sees the sample, not how it was asked.
    """
    if sample.messages is None:
        return sample.prompt
    number = 0
    turns = []
    for turn in sample.messages:
        text, number = _turn_text(turn, number)
        turns.append((str(turn.get("role", "")), text))
    if len(turns) == 1 and turns[0][0] == "user":
        return turns[0][1]
    return "\n\n".join(f"[{role}]\n{text}" for role, text in turns)


def _turn_text(turn: Mapping[str, Any], number: int) -> tuple[str, int]:
    """Return a turn's text and how many pictures there were up to its end."""
    content = turn.get("content")
    pieces = []
    for part in content if isinstance(content, list | tuple) else [content]:
        if isinstance(part, Mapping) and part.get("type") == "image":
            number += 1
            pieces.append(f"[picture {number}]")
        elif isinstance(part, Mapping):
            pieces.append(str(part.get("text") or part.get("refusal") or ""))
        elif part is not None:
            pieces.append(str(part))
    if turn.get("tool_calls"):
        pieces.append(json.dumps(turn["tool_calls"], sort_keys=True, ensure_ascii=False))
    return "\n".join(pieces), number


def _times(count: int) -> str:
    return "1 try" if count == 1 else f"{count} tries"


def _without(vote: Vote, outcome: Outcome) -> Vote:
    why = f": {outcome.reason}" if outcome.reason else ""
    return replace(vote, status=outcome.status, reason=f"{outcome.status.value}{why}")


def _voted(vote: Vote, verdict: Verdict) -> Vote:
    score = 1 - verdict.score if vote.order == "ba" else verdict.score
    return replace(vote, score=score, verdict=verdict.label, explanation=verdict.explanation)


def _combined(votes: Sequence[Vote], combine: str) -> Judged:
    """Return what votes come to; without ``patterns``, which are the answer's."""
    votes = tuple(votes)
    if waiting := next((vote for vote in votes if vote.status is Status.PENDING), None):
        return Judged(None, f"{_said(waiting, 'pending')}", votes=votes)
    values = list(_values(votes))
    there = [value for value in values if value is not None]
    if not there or 2 * len(there) < len(values):
        missing = next(vote for vote in votes if vote.score is None)
        return Judged(None, _said(missing, NO_VERDICT), votes=votes)
    score = sum(there) / len(there) if combine == "mean" else _most(there)
    if score is None:
        return Judged(None, f"{NO_VERDICT}: the votes are a tie", votes=votes)
    given = [vote for vote in votes if vote.score is not None]
    agreeing = [vote for vote in given if vote.score == score]
    return Judged(score, explanation=(agreeing or given)[0].explanation, votes=votes)


def _said(vote: Vote, kind: str) -> str:
    reason = (vote.reason or "").removeprefix("pending: ")
    return f"{kind}: judge '{vote.model_id}': {reason}"


def _values(votes: Sequence[Vote]) -> Iterator[float | None]:
    """Yield one value a judge and repeat; of a comparison, what both orders together say."""
    units: dict[tuple[str, int], list[float | None]] = {}
    for vote in votes:
        units.setdefault((vote.model_id, vote.repeat), []).append(vote.score)
    for scores in units.values():
        known = [score for score in scores if score is not None]
        if len(known) < len(scores):
            yield None
        else:
            yield known[0] if len(set(known)) == 1 else BASELINE_SCORE


def _most(values: Sequence[float]) -> float | None:
    ranked = Counter(values).most_common(2)
    return None if len(ranked) == 2 and ranked[0][1] == ranked[1][1] else ranked[0][0]
