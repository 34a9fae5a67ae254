"""Cost-quality curves and the single numbers that are read off them.

A curve is an array of points ``(n_points, 2) float64``: mean cost of a call and mean quality. What
lies between two points can be had by tossing a weighted coin. A number that is undefined is NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from router_runtime.policy import Policy
from router_runtime.types import F64, Bool, Int
from router_training.labels import LabelMatrix
from router_training.metrics import actual_cost, outcome, ratio

ARENA_BETA: Final = 0.1
"""How much less the cost counts than the quality in ``rank_score`` (RouterArena)."""

MAX_PAIRS: Final = 20_000_000
"""Pairs of models, over all queries, from which on not every turn of a preference is kept."""


def lambda_grid(P: F64, expected_cost: F64, eligible: Bool, *, size: int = 200) -> F64:
    """Return values of ``Utility.lambda_per_usd`` between which its choices change, ascending.

    The preference between a dear and a cheap candidate turns where lambda is their difference in
    probability over their difference in cost. Quantiles of all these breakpoints, with 0 and a
    value beyond the last, sweep the whole curve wherever the data put it. Of very many, some at
    equal steps serve the quantiles, so that memory does not grow with the square of the models.

    Returns
    -------
    ndarray of shape (at most size + 2,)
    """
    breakpoints, largest = [], 0.0
    step = 1 + P.size * P.shape[1] // MAX_PAIRS
    for dear in range(P.shape[1]):
        dearer = expected_cost[:, [dear]] - expected_cost
        better = P[:, [dear]] - P
        turns = (dearer > 0) & (better > 0) & eligible[:, [dear]] & eligible
        with np.errstate(over="ignore"):  # a difference in cost may be next to nothing
            found = better[turns] / dearer[turns]
        found = found[found < 1e300]  # twice the greatest is finite too
        largest = float(found.max(initial=largest))
        breakpoints.append(found[::step])
    kept = np.concatenate(breakpoints)
    if len(kept) == 0:
        return np.zeros(1)
    quantiles = np.quantile(kept, np.linspace(0, 1, size))
    return np.unique(np.concatenate([[0.0], quantiles, [2 * largest]]))


def choices(P: F64, expected_cost: F64, eligible: Bool, policies: Sequence[Policy]) -> Int:
    """Return what each policy chooses: (n_policies, n_queries) columns, -1 = none."""
    chosen = np.empty((len(policies), len(P)), dtype=np.int64)
    for at, policy in enumerate(policies):
        chosen[at] = policy.rank(P, expected_cost, eligible)[:, 0]
    return chosen


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
    return outcome_points(choices(P, expected_cost, eligible, policies), labels.Y, cost)


def outcome_points(chosen: Int, Y: F64, cost: F64) -> F64:
    """Return (n_choices, 2) cost and quality of choices ``(n_choices, n_queries)``."""
    results = [outcome(columns, Y, cost) for columns in chosen]
    return np.array([(r.cost, r.quality) for r in results], dtype=np.float64).reshape(-1, 2)


def upper_hull(points: F64) -> F64:
    """Return the corners of the non-decreasing convex hull of (cost, quality) points.

    What lies on it can be reached by tossing a weighted coin between two neighbouring corners. Rows
    with NaN are left out.

    Returns
    -------
    ndarray of shape (n_corners, 2)
        Cost and quality, both strictly ascending, slopes strictly descending.
    """
    corners, sizes = _hulls(points[None])
    return corners[0, : sizes[0]]


def _hulls(points: F64) -> tuple[F64, Int]:
    """Return the hull of each (n_points, 2) of ``points``, and how many corners it has.

    Andrew's monotone chain, for all hulls at a time. Places after the last corner repeat it.
    """
    unknown = np.isnan(points).any(axis=2)
    cost = np.where(unknown, np.inf, points[..., 0])
    quality = np.where(unknown, -np.inf, points[..., 1])
    order = np.lexsort((-quality, cost), axis=-1)
    sorted_cost, sorted_quality = (
        np.take_along_axis(values, order, axis=1).T.copy() for values in (cost, quality)
    )
    corners = np.zeros(points.shape)
    sizes = np.zeros(len(points), dtype=np.int64)
    every = np.arange(len(points))
    for x, y in zip(sorted_cost, sorted_quality, strict=True):
        higher = (sizes == 0) | (y > corners[every, sizes - 1, 1])
        adding = np.flatnonzero(higher & (x < np.inf))
        testing = adding[sizes[adding] > 1]
        while len(testing):
            before, last = (
                corners[testing, sizes[testing] - 2],
                corners[testing, sizes[testing] - 1],
            )
            rise = (last[:, 1] - before[:, 1]) * (x[testing] - last[:, 0])
            below = testing[rise <= (y[testing] - last[:, 1]) * (last[:, 0] - before[:, 0])]
            sizes[below] -= 1
            testing = below[sizes[below] > 1]
        corners[adding, sizes[adding]] = np.stack([x[adding], y[adding]], axis=1)
        sizes[adding] += 1
    places = np.minimum(np.arange(points.shape[1]), np.maximum(sizes - 1, 0)[:, None])
    return np.take_along_axis(corners, places[..., None], axis=1), sizes


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
    return float(aiqs(points[None], low=np.array([low]), high=np.array([high]))[0])


def aiqs(points: F64, *, low: F64, high: F64) -> F64:
    """Return the ``aiq`` of many sets of points (n_sets, n_points, 2), each with its own bounds."""
    corners, sizes = _hulls(points)
    cost, quality = corners[..., 0], corners[..., 1]
    inside = np.clip(cost, low[:, None], np.maximum(low, high)[:, None])
    widths = np.diff(cost, axis=1)
    slopes = np.divide(
        np.diff(quality, axis=1), widths, out=np.zeros_like(widths), where=widths > 0
    )
    middles = (inside[:, 1:] + inside[:, :-1]) / 2
    heights = quality[:, :-1] + slopes * (middles - cost[:, :-1])
    area = (np.diff(inside, axis=1) * heights).sum(axis=1)
    area += (high - inside[:, -1]) * quality[:, -1]  # flat after the last corner
    defined = (low < high) & (sizes > 0)
    mean_height: F64 = np.full(len(area), np.nan)
    np.divide(area, high - low, out=mean_height, where=defined)
    return mean_height


def deferral_area(points: F64, *, cost_max: float) -> float:
    """Return the area under a deferral curve, in [0, 1] (UniRoute, arXiv 2502.08773).

    Quality over cost as a share of ``cost_max``, from 0 to 1. Unlike ``aiq`` it takes the points
    that a sweep of lambda really visits, without their hull, joined by straight lines: a router
    whose curve sags is not mended. Left of the first point nothing can be bought (quality 0);
    right of the last it goes on flat.
    """
    known = points[~np.isnan(points).any(axis=1)]
    if len(known) == 0 or not cost_max > 0:
        return float("nan")
    cost, quality = known[np.lexsort((known[:, 1], known[:, 0]))].T
    share = cost / cost_max
    if share[0] >= 1:
        return 0.0
    end = float(np.interp(1.0, share, quality))
    inside = share < 1
    knots, heights = np.append(share[inside], 1.0), np.append(quality[inside], end)
    return float(np.trapezoid(heights, knots))


def cost_of_quality(points: F64, quality: float) -> float:
    """Return the least cost at which the hull reaches a quality; inf if it never does."""
    hull = upper_hull(points)
    if len(hull) == 0 or np.isnan(quality):
        return float("nan")
    if hull[-1, 1] < quality - 1e-12:  # what summation leaves
        return float("inf")
    return float(np.interp(quality, hull[:, 1], hull[:, 0]))


def qnc(points: F64, *, quality: float, cost: float) -> float:
    """Return the quality-neutral cost (UniRoute, arXiv 2502.08773), inf if parity is never reached.

    The least cost at which the router's hull reaches the best single model's ``quality``, relative
    to that model's ``cost``. 1 minus it is the savings at parity.
    """
    return ratio(cost_of_quality(points, quality), cost)


def headroom(quality: float, *, best_single: float, oracle: float) -> float:
    """Return the part of the way from the best single model to the oracle that a router goes."""
    return ratio(quality - best_single, oracle - best_single)


def rank_score(quality: float, cost: float, *, cost_range: tuple[float, float]) -> float:
    """Return RouterArena's score of one operating point (arXiv 2510.00202).

    ``S = (1 + b) A C / (b A + C)`` with ``b = 0.1``, quality ``A`` and thrift
    ``C = (log2 c_max - log2 c) / (log2 c_max - log2 c_min)``, kept in [0, 1]. The arena's bounds
    are fixed prices; here they are the mean costs of the cheapest and the dearest single model, so
    that scores can be compared on one data set only.
    """
    low, high = cost_range
    if not (0 < low < high and cost > 0):
        return float("nan")
    thrift = float(np.clip(np.log2(high / cost) / np.log2(high / low), 0.0, 1.0))
    return ratio((1 + ARENA_BETA) * quality * thrift, ARENA_BETA * quality + thrift)


# --------------------------------------------------------------------------- two models


def pgr(quality: float, *, weak: float, strong: float) -> float:
    """Return the performance gap recovered, ``(A - A_weak) / (A_strong - A_weak)``.

    RouteLLM, arXiv 2406.18665, equation 2: 0 is the weak model's quality, 1 the strong one's.
    """
    return ratio(quality - weak, strong - weak)


def recovery_curve(preference: F64, weak: F64, strong: F64) -> F64:
    """Return the recovered gap by share of calls to the strong model, as RouteLLM draws it.

    Queries go to the strong model in the order of ``preference``, the highest first; those of equal
    preference at once, with a straight line between (a coin toss).

    Parameters
    ----------
    preference : ndarray of shape (n_queries,)
        The router's score of the strong model against the weak one: ``P_strong - P_weak``.
    weak, strong : ndarray of shape (n_queries,)
        Scores of the two models, none missing.

    Returns
    -------
    ndarray of shape (n_points, 2)
        Share of strong calls, from 0 to 1, and PGR, from 0 to 1.
    """
    starts, order = _tied(preference)
    gained = np.add.reduceat((strong - weak)[order], starts).cumsum()
    calls = np.append(starts[1:], len(order))
    recovered = gained / gained[-1] if gained[-1] else np.full(len(gained), np.nan)
    start = recovered[:1] * 0
    return np.stack(
        [np.append(0.0, calls / len(order)), np.concatenate([start, recovered])], axis=1
    )


def cpt(curve: F64, recovered: float) -> float:
    """Return the call-performance threshold: the smallest share of strong calls with that PGR.

    RouteLLM's CPT(x), arXiv 2406.18665, section 4.1, on the straight lines of a ``recovery_curve``.
    """
    share, gap = curve.T
    if np.isnan(gap).any():
        return float("nan")
    reached = np.flatnonzero(gap >= recovered - 1e-12)
    if len(reached) == 0:
        return float("inf")
    after = int(reached[0])
    if after == 0:
        return 0.0
    part = (recovered - gap[after - 1]) / (gap[after] - gap[after - 1])
    return float(share[after - 1] + min(part, 1.0) * (share[after] - share[after - 1]))


def apgr(preference: F64, weak: F64, strong: F64) -> float:
    """Return the average performance gap recovered; 0.5 is a random choice.

    RouteLLM, arXiv 2406.18665, equation 3: the integral of PGR over the share of strong calls from
    0 to 1. RouteLLM sums it over ten thresholds; here it is exact, the area under
    ``recovery_curve``. NaN where the strong model is not better.
    """
    return float(apgrs(preference, strong - weak, np.ones((1, len(weak))))[0])


def apgrs(preference: F64, gain: F64, counts: F64) -> F64:
    """Return the ``apgr`` of weighted queries, for many weightings at once.

    A query that lies at the middle of its block of calls is strong on the part of the thresholds
    that let at least so many calls through; the area is the mean of these parts, weighted by gain.

    Parameters
    ----------
    preference, gain : ndarray of shape (n_queries,)
        The router's score, and the strong model's score minus the weak one's.
    counts : ndarray of shape (n_weightings, n_queries), float64
        How often each query counts.
    """
    starts, order = _tied(preference)
    ordered = counts[:, order]
    calls = np.add.reduceat(ordered, starts, axis=1)
    gains = np.add.reduceat(ordered * gain[order], starts, axis=1)
    total = calls.sum(axis=1, keepdims=True)
    place = (calls.cumsum(axis=1) - calls / 2) / np.maximum(total, 1)
    whole = gains.sum(axis=1)
    recovered = (gains * (1 - place)).sum(axis=1)
    average: F64 = np.full(len(whole), np.nan)
    np.divide(recovered, whole, out=average, where=whole > 0)
    return average


def _tied(preference: F64) -> tuple[Int, Int]:
    """Return where blocks of equal preference start in the descending order, and that order."""
    order = np.argsort(-preference, kind="stable")
    falls = np.flatnonzero(np.diff(preference[order]) < 0) + 1
    return np.append(0, falls).astype(np.int64), order
