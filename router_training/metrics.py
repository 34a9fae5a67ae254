"""Measures: how good probabilities are, what choices achieve, and cost-quality curves.

Everywhere ``Y (n_queries, n_models) float64`` are scores in [0, 1] with NaN = unscored, which no
measure counts. A measure that is undefined (the AUC of one class, a mean of nothing) is NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from router_runtime.errors import DataError
from router_runtime.policy import Policy
from router_runtime.types import F64, Bool, Int
from router_training.fitting import log_loss
from router_training.labels import LabelMatrix

N_BINS = 15
"""Bins of the calibration error (Guo et al., "On calibration of modern neural networks", 2017)."""

MIN_COVERAGE = 0.5
"""A best single model has at least this share of the scores that the most scored one has."""


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
    auc: float
    accuracy: float
    f1: float
    positive_rate: float
    brier: float
    log_loss: float
    ece: float


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


def calibration_error(p: F64, y: F64, *, n_bins: int = N_BINS) -> float:
    """Return the mean distance of predicted and observed means over bins of equal mass.

    Equal probabilities share a bin, so that a constant forecast has the error of its mean and no
    more; bins are then unequal where ties force it.
    """
    ordered = np.sort(p)
    bins = np.searchsorted(ordered, p, "left") * n_bins // max(len(p), 1)
    gaps = np.bincount(bins, weights=p - y, minlength=n_bins)
    return ratio(float(np.abs(gaps).sum()), len(p))


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

    quality: float
    cost: float
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


# --------------------------------------------------------------------------- curves


def lambda_grid(P: F64, expected_cost: F64, eligible: Bool, *, size: int = 200) -> F64:
    """Return values of ``Utility.lambda_per_usd`` between which its choices change, ascending.

    The preference between a dear and a cheap candidate turns where lambda is their difference in
    probability over their difference in cost. Quantiles of all these breakpoints, with 0 and a
    value beyond the last, sweep the whole curve wherever the data put it.

    Returns
    -------
    ndarray of shape (at most size + 2,)
    """
    breakpoints = []
    for dear in range(P.shape[1]):
        dearer = expected_cost[:, [dear]] - expected_cost
        better = P[:, [dear]] - P
        turns = (dearer > 0) & (better > 0) & eligible[:, [dear]] & eligible
        with np.errstate(over="ignore"):  # a difference in cost may be next to nothing
            breakpoints.append(better[turns] / dearer[turns])
    found = np.concatenate(breakpoints)
    found = found[found < 1e300]  # twice the greatest is finite too
    if len(found) == 0:
        return np.zeros(1)
    quantiles = np.quantile(found, np.linspace(0, 1, size))
    return np.unique(np.concatenate([[0.0], quantiles, [2 * found.max()]]))


def cost_quality_curve(
    P: F64,
    expected_cost: F64,
    labels: LabelMatrix,
    policies: Sequence[Policy],
    *,
    eligible: Bool | None = None,
    cost_unit: str = "usd",
) -> F64:
    """Return what each policy achieves: (n_policies, 2) float64, mean cost per call and quality."""
    eligible = np.ones(P.shape, dtype=np.bool_) if eligible is None else eligible
    cost = actual_cost(labels, expected_cost, cost_unit=cost_unit)
    results = [
        outcome(policy.rank(P, expected_cost, eligible)[:, 0], labels.Y, cost)
        for policy in policies
    ]
    return np.array([(r.cost, r.quality) for r in results], dtype=np.float64).reshape(-1, 2)


def single_model_points(Y: F64, cost: F64, eligible: Bool) -> F64:
    """Return (n_models, 2) cost and quality of each model alone: their hull is the zero router."""
    results = [outcome(single_model(j, eligible), Y, cost) for j in range(Y.shape[1])]
    return np.array([(r.cost, r.quality) for r in results], dtype=np.float64)


def upper_hull(points: F64) -> F64:
    """Return the corners of the non-decreasing convex hull of (cost, quality) points.

    What lies on it can be reached by tossing a weighted coin between two neighbouring corners. Rows
    with NaN are left out.

    Returns
    -------
    ndarray of shape (n_corners, 2)
        Cost and quality, both strictly ascending, slopes strictly descending.
    """
    points = points[~np.isnan(points).any(axis=1)]
    corners: list[F64] = []
    for point in points[np.lexsort((-points[:, 1], points[:, 0]))]:
        if corners and point[1] <= corners[-1][1]:
            continue
        while len(corners) > 1 and _slope(corners[-2], corners[-1]) <= _slope(corners[-1], point):
            corners.pop()
        corners.append(point)
    return np.array(corners, dtype=np.float64).reshape(-1, 2)


def _slope(a: F64, b: F64) -> float:
    return float((b[1] - a[1]) / (b[0] - a[0]))


def aiq(points: F64, *, cost_range: tuple[float, float]) -> float:
    """Return the mean quality of the hull over a range of costs (RouterBench, arXiv 2403.12031).

    Right of the last corner the hull goes on flat. Left of the first nothing can be bought, which
    counts as quality 0, so that routers are compared over one range without a gift.

    Parameters
    ----------
    points : ndarray of shape (n_points, 2)
        Cost and quality; see ``cost_quality_curve``.
    cost_range : (float, float)
        The same bounds for all that are compared, as a rule the least and greatest mean cost of
        the single models.
    """
    low, high = cost_range
    hull = upper_hull(points)
    if len(hull) == 0 or not low < high:
        return float("nan")
    start = max(low, float(hull[0, 0]))
    if start >= high:
        return 0.0
    inside = hull[(hull[:, 0] > start) & (hull[:, 0] < high), 0]
    knots = np.concatenate([[start], inside, [high]])
    heights = np.interp(knots, hull[:, 0], hull[:, 1])
    return float(np.trapezoid(heights, knots)) / (high - low)


# --------------------------------------------------------------------------- small change


def mean(values: F64 | Bool) -> float:
    """Return the mean, NaN of nothing."""
    return float(np.mean(values)) if len(values) else float("nan")


def ratio(part: float, whole: float) -> float:
    """Return ``part / whole``, NaN if ``whole`` is 0."""
    return part / whole if whole else float("nan")
