"""How far labels can be trusted: the values that ``trust`` finds, to JSON and back.

Only counts, shares, names of models and of scorers are in it; no prompt, no answer and no row id.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from pydantic import TypeAdapter

from router_runtime.types import Json
from router_training.evaluation_report import Interval
from router_training.metrics import Number
from router_training.versioned import from_versioned, to_versioned

SCHEMA_VERSION = 1
"""Raised when a field of ``TrustReport.to_json`` changes its meaning or goes away."""

ALL = "all"
"""The name under which ``HumanTrust`` tells of all labels, whoever decided them."""


@dataclass(frozen=True)
class Share:
    """A share with its 95 % interval; NaN where there is nothing to take a share of.

    Parameters
    ----------
    n : int
        Of how many.
    value, low, high : float
    """

    n: int
    value: Number
    low: Number
    high: Number


@dataclass(frozen=True)
class JudgeTrust:
    """One judge's replies.

    Parameters
    ----------
    model_id : str
    unscored : Share
        Of the verdicts that it was asked for, those that it did not give, all tries together.
    unreadable : Share
        Of its replies, those that were no verdict.
    verdicts : mapping
        How often which verdict came, as the rubric names it.
    repeats : Share or None
        Of the pairs of its verdicts on one answer, those that agree; None where it was asked once.
    repeats_difference : float
        Mean absolute difference of the scores of such pairs.
    orders : Share or None
        Of its comparisons in both orders, those that name the same winner; None unless pairwise.
    """

    model_id: str
    unscored: Share
    unreadable: Share
    verdicts: dict[str, int]
    repeats: Share | None = None
    repeats_difference: Number = float("nan")
    orders: Share | None = None


@dataclass(frozen=True)
class CandidateTrust:
    """One candidate's answers.

    Parameters
    ----------
    model_id : str
    answered, scored : int
        Answers, and those among them with a score.
    mean_score : float
        NaN where nothing is scored.
    suspicious : int
        Judged answers that read like instructions to the judge.
    suspicious_score : float
        Mean score of these; far above ``mean_score``, a judge may have obeyed.
    """

    model_id: str
    answered: int
    scored: int
    mean_score: Number
    suspicious: int = 0
    suspicious_score: Number = float("nan")


@dataclass(frozen=True)
class HumanTrust:
    """Labels against human marks; a score of at least .5 counts as yes on either side.

    Parameters
    ----------
    by : str
        ``all``, or the scorer (or ``judge``) whose labels these are.
    n : int
        Labels that somebody marked.
    covered : float
        Share of these labels whose kind (model and verdict) was marked at all; the figures are
        of these kinds, each weighted by how many such labels there are.
    accuracy, kappa : Interval
        Share of equal verdicts, and Cohen's kappa; bootstrap over samples, or where all marks agree
        (or none does) by Wilson's interval.
    confusion : tuple
        Counts of marks, unweighted: ((human yes and label yes, human yes and label no),
        (human no and label yes, human no and label no)).
    mean_difference : float
        Mean absolute difference of mark and score, weighted.
    """

    by: str
    n: int
    covered: Number
    accuracy: Interval
    kappa: Interval
    confusion: tuple[tuple[int, int], tuple[int, int]]
    mean_difference: Number


@dataclass(frozen=True)
class MarkCounts:
    """What became of human marks: yes or no, ``unsure``, on answers without a score, on nothing."""

    marks: int
    unsure: int
    unscored: int
    unmatched: int


@dataclass(frozen=True)
class TrustReport:
    """All that ``trust`` found.

    Parameters
    ----------
    samples, answered, scored : int
        Samples, answers of candidates, and answers with a score.
    decided : mapping
        How many scores each scorer (or ``judge``) decided.
    no_verdict : Share
        Of the answers that came to the judge and whose verdicts are in, those without a score.
    judges : tuple of JudgeTrust
    between_judges : Share or None
        Of the pairs of verdicts of two judges on one answer, those that agree.
    candidates : tuple of CandidateTrust
    human : tuple of HumanTrust
        ``all`` first; empty without marks.
    marks : MarkCounts or None
    """

    samples: int
    answered: int
    scored: int
    decided: dict[str, int]
    no_verdict: Share
    judges: tuple[JudgeTrust, ...] = ()
    between_judges: Share | None = None
    candidates: tuple[CandidateTrust, ...] = ()
    human: tuple[HumanTrust, ...] = ()
    marks: MarkCounts | None = None

    def to_json(self) -> Json:
        """Return plain values: NaN as None."""
        return to_versioned(asdict(self), SCHEMA_VERSION)

    @classmethod
    def from_json(cls, content: Json) -> TrustReport:
        """Read back what ``to_json`` gave.

        Raises
        ------
        DataError
            It has another schema version, or is no report.
        """
        return from_versioned(
            _REPORT, content, SCHEMA_VERSION, what="The trust report", remedy="tabulate again"
        )


_REPORT = TypeAdapter(TrustReport)
