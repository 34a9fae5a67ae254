"""Measure how far labels can be trusted: by what judges did, and against human marks.

An audit sample takes as many answers of every kind (candidate and verdict) as it can, so that rare
kinds are looked at. What is told of all labels is therefore weighted by how many labels of each
kind there are (post-stratification; Lohr, "Sampling: design and analysis", chapter 4), which holds
for any other choice of marked answers too that does not depend on more than the kind.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Final

import numpy as np

from router_runtime.errors import DataError
from router_training.bootstrap import Resamples
from router_training.labelling.agreement import (
    ShareTally,
    accuracy,
    cohens_kappa,
    equal_across,
    equal_pairs,
    unanimous,
)
from router_training.labelling.calls import Status
from router_training.labelling.cells import GOOD, Cell, SampleCells, Stratum
from router_training.labelling.judge import Vote
from router_training.labelling.marks import Marks
from router_training.labelling.marks import read_marks as read_marks
from router_training.trust_report import (
    ALL,
    CandidateTrust,
    HumanTrust,
    JudgeTrust,
    MarkCounts,
    TrustReport,
)

_RESAMPLES: Final = 2000


def measure_trust(
    rows: Iterable[SampleCells], *, marks: Marks | None = None, seed: int = 0
) -> TrustReport:
    """Return how far the labels of ``rows`` can be trusted.

    Parameters
    ----------
    rows : iterable of SampleCells
        Read once; memory does not grow with it.
    marks : Marks, optional
        See ``read_marks``.
    seed : int
        Of the bootstrap.

    Raises
    ------
    DataError
        None of the marks is of these answers.
    """
    tally = TrustTally(marks)
    for row in rows:
        tally.add(row)
    return tally.report(seed=seed)


class TrustTally:
    """Counts what samples show, one by one; see ``measure_trust``."""

    def __init__(self, marks: Marks | None = None) -> None:
        self._marks = marks
        self._samples = 0
        self._decided: Counter[str] = Counter()
        self._no_verdict = ShareTally()
        self._between = ShareTally()
        self._candidates: dict[str, _CandidateTally] = {}
        self._judges: dict[str, _JudgeTally] = {}
        self._labels: Counter[tuple[str, Stratum]] = Counter()
        self._marked: list[_Marked] = []
        self._mark_counts = Counter[str]()

    def add(self, row: SampleCells) -> None:
        """Count one sample."""
        self._samples += 1
        answered = [cell for cell in row.cells if cell.answer is not None]
        for cell in row.cells:
            self._candidates.setdefault(cell.model_id, _CandidateTally())
        for cell in answered:
            self._candidates[cell.model_id].add(cell)
            self._add_label(row.labelled.sample.id, cell)
        judged = [cell for cell in answered if cell.judged is not None]
        settled = [cell for cell in judged if cell.kind != Status.PENDING]
        self._no_verdict.add(sum(cell.score is None for cell in settled), len(settled))
        self._add_votes([cell.judged.votes for cell in judged if cell.judged is not None])

    def _add_label(self, sample_id: str, cell: Cell) -> None:
        mark = None
        if self._marks is not None:
            mark = self._marks.scores.get((sample_id, cell.model_id))
            self._mark_counts["found"] += mark is not None
        if cell.scored is None or cell.score is None:
            self._mark_counts["unscored"] += mark is not None
            return
        by = cell.scored.by
        self._decided[by] += 1
        self._labels[by, cell.stratum] += 1
        if mark is not None:
            self._marked.append(_Marked(sample_id, mark, cell.score, by, cell.stratum))

    def _add_votes(self, answers: Sequence[Sequence[Vote]]) -> None:
        """Count the votes on the answers to one sample."""
        of_judge: dict[str, list[list[Vote]]] = defaultdict(list)
        across = [0, 0]
        for votes in answers:
            groups: dict[str, list[Vote]] = defaultdict(list)
            for vote in votes:
                groups[vote.model_id].append(vote)
            for model_id, own in groups.items():
                of_judge[model_id].append(own)
            for order in {vote.order for vote in votes}:
                scores = [_scores(own, order) for own in groups.values()]
                _sum_up(across, equal_across(scores))
        self._between.add(*across)
        for model_id, lists in of_judge.items():
            self._judges.setdefault(model_id, _JudgeTally()).add(lists)

    def report(self, *, seed: int = 0) -> TrustReport:
        """Return what was counted.

        Raises
        ------
        DataError
            There are marks, and none of them is of these answers.
        """
        candidates = self._candidates
        return TrustReport(
            samples=self._samples,
            answered=sum(entry.answered for entry in candidates.values()),
            scored=sum(entry.scored for entry in candidates.values()),
            decided=dict(sorted(self._decided.items())),
            no_verdict=self._no_verdict.share(),
            judges=tuple(self._judges[name].report(name) for name in sorted(self._judges)),
            between_judges=self._between.known(),
            candidates=tuple(entry.report(name) for name, entry in candidates.items()),
            human=self._human(seed),
            marks=self._counts(),
        )

    def _counts(self) -> MarkCounts | None:
        if self._marks is None:
            return None
        given, found = len(self._marks.scores), self._mark_counts["found"]
        if given and not found:
            raise DataError(
                f"None of the {given} marks is of an answer of this run; are they of another one?"
            )
        unscored = self._mark_counts["unscored"]
        return MarkCounts(given, self._marks.n_unsure, unscored, given - found)

    def _human(self, seed: int) -> tuple[HumanTrust, ...]:
        if not self._marked:
            return ()
        scorers = sorted({entry.by for entry in self._marked})
        names = [ALL, *scorers] if len(scorers) > 1 else [ALL]
        return tuple(self._human_of(name, seed) for name in names)

    def _human_of(self, name: str, seed: int) -> HumanTrust:
        marked = [entry for entry in self._marked if name in (ALL, entry.by)]
        labels = Counter[Stratum]()
        for (by, stratum), count in self._labels.items():
            if name in (ALL, by):
                labels[stratum] += count
        n_marked = Counter(entry.stratum for entry in marked)
        weights = np.array([labels[entry.stratum] / n_marked[entry.stratum] for entry in marked])
        places = np.array([2 * (e.mark < GOOD) + (e.score < GOOD) for e in marked])
        counts = np.bincount(places, minlength=4)
        columns = np.zeros((len(marked), 4))
        columns[np.arange(len(marked)), places] = weights
        groups = [entry.sample_id for entry in marked]
        draws = Resamples.of_groups(groups, len(marked), seed=seed, n_resamples=_RESAMPLES)
        agreed, kappa = (draws.measured(columns, measure) for measure in (accuracy, cohens_kappa))
        if 0 in (counts[0] + counts[3], counts[1] + counts[2]):
            agreed, kappa = unanimous(weights, groups, columns.sum(axis=0, keepdims=True))
        apart = np.array([abs(entry.mark - entry.score) for entry in marked])
        return HumanTrust(
            by=name,
            n=len(marked),
            covered=sum(labels[stratum] for stratum in n_marked) / labels.total(),
            accuracy=agreed,
            kappa=kappa,
            confusion=((int(counts[0]), int(counts[1])), (int(counts[2]), int(counts[3]))),
            mean_difference=float(np.average(apart, weights=weights)),
        )


# --------------------------------------------------------------------------- parts


@dataclass(frozen=True)
class _Marked:
    """A label that somebody marked."""

    sample_id: str
    mark: float
    score: float
    by: str
    stratum: Stratum


@dataclass
class _CandidateTally:
    answered: int = 0
    scored: int = 0
    total: float = 0.0
    suspicious: int = 0
    suspicious_scored: int = 0
    suspicious_total: float = 0.0

    def add(self, cell: Cell) -> None:
        suspicious = cell.judged is not None and bool(cell.judged.suspicious)
        self.answered += 1
        self.suspicious += suspicious
        if cell.score is not None:
            self.scored += 1
            self.total += cell.score
            self.suspicious_scored += suspicious
            self.suspicious_total += cell.score if suspicious else 0.0

    def report(self, model_id: str) -> CandidateTrust:
        return CandidateTrust(
            model_id=model_id,
            answered=self.answered,
            scored=self.scored,
            mean_score=_ratio(self.total, self.scored),
            suspicious=self.suspicious,
            suspicious_score=_ratio(self.suspicious_total, self.suspicious_scored),
        )


@dataclass
class _JudgeTally:
    unscored: ShareTally = field(default_factory=ShareTally)
    unreadable: ShareTally = field(default_factory=ShareTally)
    repeats: ShareTally = field(default_factory=ShareTally)
    orders: ShareTally = field(default_factory=ShareTally)
    verdicts: Counter[str] = field(default_factory=Counter)
    pairs: int = 0
    apart: float = 0.0

    def add(self, answers: Sequence[Sequence[Vote]]) -> None:
        """Count this judge's votes on the answers to one sample."""
        votes = [vote for own in answers for vote in own if vote.status is not Status.PENDING]
        given = [vote for vote in votes if vote.verdict is not None]
        unreadable = sum(vote.unreadable for vote in votes)
        self.unscored.add(len(votes) - len(given), len(votes))
        self.unreadable.add(unreadable, unreadable + len(given))
        self.verdicts.update(str(vote.verdict) for vote in given)
        repeats, orders = [0, 0], [0, 0]
        for own in answers:
            for order in {vote.order for vote in own}:
                scores = _scores(own, order)
                _sum_up(repeats, equal_pairs(scores))
                for one, two in combinations(scores, 2):
                    self.pairs += 1
                    self.apart += abs(one - two)
            for repeat in {vote.repeat for vote in own}:
                both = [v.score for v in own if v.repeat == repeat and v.score is not None]
                _sum_up(orders, equal_pairs(both))
        self.repeats.add(*repeats)
        self.orders.add(*orders)

    def report(self, model_id: str) -> JudgeTrust:
        return JudgeTrust(
            model_id=model_id,
            unscored=self.unscored.share(),
            unreadable=self.unreadable.share(),
            verdicts=dict(sorted(self.verdicts.items())),
            repeats=self.repeats.known(),
            repeats_difference=_ratio(self.apart, self.pairs),
            orders=self.orders.known(),
        )


def _scores(votes: Sequence[Vote], order: str) -> list[float]:
    return [vote.score for vote in votes if vote.order == order and vote.score is not None]


def _sum_up(sums: list[int], more: tuple[int, int]) -> None:
    sums[0] += more[0]
    sums[1] += more[1]


def _ratio(total: float, n: int) -> float:
    return total / n if n else math.nan
