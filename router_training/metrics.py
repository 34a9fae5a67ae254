"""Measures: how good probabilities are, what choices achieve, and how true costs were foretold.

Everywhere ``Y (n_queries, n_models) float64`` are scores in [0, 1] with NaN = unscored, which no
measure counts. A measure that is undefined (the AUC of one class, a mean of nothing) is NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, TypeAlias

import numpy as np
from pydantic import BeforeValidator

from router_runtime.errors import DataError
from router_runtime.types import F64, Bool, Int, Json
from router_training.fitting import log_loss
from router_training.labels import LabelMatrix

N_BINS = 15
"""Bins of the calibration error (Guo et al., "On calibration of modern neural networks", 2017)."""

N_INTERVALS = 20
"""Equal parts of [0, 1] in a histogram of probabilities."""

MIN_COVERAGE = 0.5
"""A best single model has at least this share of the scores that the most scored one has."""


def _nan_of_none(value: Json) -> Json:
    return np.nan if value is None else value


Number: TypeAlias = Annotated[float, BeforeValidator(_nan_of_none)]
"""A float that is None in JSON where it is NaN."""


def check_aligned(
    P: F64, labels: LabelMatrix, expected_cost: F64, eligible: Bool, *, model_ids: Sequence[str]
) -> None:
    """Refuse arrays that do not speak of the same queries and models.

    Raises
    ------
    DataError
        Naming the shapes, or the model ids of both sides.
    """
    if labels.model_ids != tuple(model_ids):
        raise DataError(
            f"The labels are of {', '.join(labels.model_ids)}, "
            f"the probabilities of {', '.join(model_ids)}."
        )
    shapes = [array.shape for array in (P, labels.Y, expected_cost, eligible)]
    if len(set(shapes)) != 1:
        raise DataError(
            f"P, Y, expected_cost and eligible differ in shape: {', '.join(map(str, shapes))}."
        )


# --------------------------------------------------------------------------- probabilities


@dataclass(frozen=True)
class ProbabilityMetrics:
    """How well probabilities foretell scores.

    ``auc``, ``accuracy``, ``f1`` and ``positive_rate`` need classes: a score of at least .5 is
    positive, a probability of at least .5 predicts so. The others take scores between 0 and 1 as
    they are. ``n`` is the number of scores.
    """

    n: int
    auc: Number
    accuracy: Number
    f1: Number
    positive_rate: Number
    brier: Number
    log_loss: Number
    ece: Number


def probability_metrics(P: F64, Y: F64) -> ProbabilityMetrics:
    """Return all measures over the scored cells of ``P`` and ``Y`` (any equal shape), pooled."""
    scored = ~np.isnan(Y)
    p, y = P[scored], Y[scored]
    positive, predicted = y >= 0.5, p >= 0.5
    hits = float((positive & predicted).sum())
    return ProbabilityMetrics(
        n=len(y),
        auc=auc(p, positive),
        accuracy=mean(positive == predicted),
        f1=ratio(2 * hits, float(positive.sum() + predicted.sum())),
        positive_rate=mean(positive),
        brier=mean((p - y) ** 2),
        log_loss=log_loss(p, y),
        ece=calibration_error(p, y),
    )


def auc(p: F64, positive: Bool) -> float:
    """Return the chance that a positive has a higher ``p`` than a negative, ties counting half.

    Computed from ranks (the Mann-Whitney statistic); NaN without both classes.
    """
    n_positive = int(positive.sum())
    n_negative = len(positive) - n_positive
    ordered = np.sort(p)
    # The mean of the first and last place among equals is the mid-rank.
    ranks = (np.searchsorted(ordered, p, "left") + np.searchsorted(ordered, p, "right") + 1) / 2
    wins = float(ranks[positive].sum()) - n_positive * (n_positive + 1) / 2
    return ratio(wins, n_positive * n_negative)


def reliability_bins(p: F64, y: F64, *, n_bins: int = N_BINS) -> F64:
    """Return bins of equal mass of probabilities beside what was observed in them.

    Equal probabilities share a bin, so that a constant forecast has the error of its mean and no
    more; bins are then unequal where ties force it, and empty ones are left out.

    Parameters
    ----------
    p, y : ndarray of shape (n,), float64
        Probabilities and scores, none missing.

    Returns
    -------
    ndarray of shape (at most n_bins, 3), float64
        Mean probability, mean score and number of cells, by rising probability.
    """
    bins = bins_of(p, n_bins=n_bins)
    counts = np.bincount(bins, minlength=n_bins)
    used = counts > 0
    means = [np.bincount(bins, weights=v, minlength=n_bins)[used] / counts[used] for v in (p, y)]
    return np.stack([*means, counts[used]], axis=1)


def bins_of(p: F64, *, n_bins: int = N_BINS) -> Int:
    """Return the bin of equal mass of each probability, int64 (n,), from 0; see above."""
    bins: Int = np.searchsorted(np.sort(p), p, "left") * n_bins // max(len(p), 1)
    return bins


def calibration_error(p: F64, y: F64, *, n_bins: int = N_BINS) -> float:
    """Return the ECE: the mean distance of predicted and observed means, weighted by cells.

    Over ``reliability_bins``; bins of equal mass are less noisy than bins of equal width (Nixon et
    al., "Measuring calibration in deep learning", 2019).
    """
    bins = reliability_bins(p, y, n_bins=n_bins)
    return ratio(float(np.abs(bins[:, 0] - bins[:, 1]) @ bins[:, 2]), len(p))


def histogram(p: F64) -> tuple[int, ...]:
    """Count probabilities in ``N_INTERVALS`` equal parts of [0, 1]; 1 belongs to the last."""
    return tuple(np.histogram(p, bins=N_INTERVALS, range=(0.0, 1.0))[0].tolist())


def cost_forecast(expected: F64, recorded: F64) -> tuple[float, float]:
    """Return how far expected dollars are from recorded ones, per call and in sum.

    Parameters
    ----------
    expected, recorded : ndarray of any equal shape, float64
        USD; NaN where unknown. Cells without both are left out, and from the mean calls that cost
        nothing, too.

    Returns
    -------
    mape : float
        Mean of ``|expected - recorded| / recorded``.
    bias : float
        ``sum(expected) / sum(recorded) - 1``: positive where calls turn out cheaper than thought.
    """
    both = ~np.isnan(expected) & ~np.isnan(recorded)
    forecast, actual = expected[both], recorded[both]
    paid = actual > 0
    mape = mean(np.abs(forecast[paid] - actual[paid]) / actual[paid])
    return mape, ratio(float(forecast.sum()), float(actual.sum())) - 1


# --------------------------------------------------------------------------- choices


@dataclass(frozen=True)
class Outcome:
    """What choosing one model per query achieves.

    Parameters
    ----------
    quality : float
        Mean score over the queries whose chosen model is scored.
    cost : float
        Mean cost of one call over the same queries; NaN if one of them is unknown.
    n_scored, n_unscored, n_unserved : int
        Queries whose chosen model has a score; has none; for which there was no choice.
    """

    quality: Number
    cost: Number
    n_scored: int
    n_unscored: int = 0
    n_unserved: int = 0


def pick(columns: Int, values: F64) -> F64:
    """Return each row's value in its column, (n_queries,); NaN where the column is -1."""
    picked: F64 = values[np.arange(len(columns)), columns]
    return np.where(columns < 0, np.nan, picked)


def outcome(columns: Int, Y: F64, cost: F64) -> Outcome:
    """Measure the choice of ``columns`` (n_queries,), -1 = none.

    Leaving out unscored choices is the replay estimate (Li et al., "Unbiased offline evaluation of
    contextual-bandit-based news article recommendation algorithms", 2011): unbiased if scores are
    missing at random.
    """
    quality = pick(columns, Y)
    scored = ~np.isnan(quality)
    unserved = int((columns < 0).sum())
    return Outcome(
        quality=mean(quality[scored]),
        cost=mean(pick(columns, cost)[scored]),
        n_scored=int(scored.sum()),
        n_unscored=len(columns) - int(scored.sum()) - unserved,
        n_unserved=unserved,
    )


def actual_cost(labels: LabelMatrix, expected_cost: F64, *, cost_unit: str = "usd") -> F64:
    """Return what each call cost, (n_queries, n_models): recorded dollars, else the expectation.

    Recorded dollars cannot stand beside relative factors: with ``cost_unit="relative"`` the
    expectation is all that counts.
    """
    if cost_unit == "relative":
        return expected_cost
    return np.where(np.isnan(labels.cost_usd), expected_cost, labels.cost_usd)


def single_model(column: int, eligible: Bool) -> Int:
    """Return the choice (n_queries,) of always ``column``, -1 where it is not eligible."""
    return np.where(eligible[:, column], column, -1)


def best_single_model(Y: F64, cost: F64, eligible: Bool) -> int | None:
    """Return the column that is best on its own: highest quality, then lowest cost, then first.

    Only models that are eligible for the most queries stand for election, since one that cannot see
    pictures is no alternative to a router that can; and among them only those with at least
    ``MIN_COVERAGE`` of the most scores, since three lucky scores prove nothing. None if nothing is
    scored.
    """
    served = eligible.sum(axis=0)
    scored = np.where(served == served.max(), (eligible & ~np.isnan(Y)).sum(axis=0), 0)
    electable = np.flatnonzero((scored > 0) & (scored >= MIN_COVERAGE * scored.max()))
    results = {int(j): outcome(single_model(int(j), eligible), Y, cost) for j in electable}
    return min(
        results,
        key=lambda j: (-results[j].quality, np.nan_to_num(results[j].cost, nan=np.inf)),
        default=None,
    )


# --------------------------------------------------------------------------- small change


def mean(values: F64 | Bool) -> float:
    """Return the mean, NaN of nothing."""
    return float(np.mean(values)) if len(values) else float("nan")


def ratio(part: float, whole: float) -> float:
    """Return ``part / whole``, NaN if ``whole`` is 0."""
    return part / whole if whole else float("nan")
