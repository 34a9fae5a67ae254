from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad, trapezoid
from scipy.spatial import ConvexHull

from router_runtime.policy import Fixed, HighestProbability, Utility
from router_training import curves
from router_training.curves import (
    aiq,
    aiqs,
    apgr,
    apgrs,
    cost_of_quality,
    cost_quality_curve,
    cpt,
    deferral_area,
    headroom,
    lambda_grid,
    pgr,
    qnc,
    rank_score,
    recovery_curve,
    upper_hull,
)
from router_training.labels import LabelMatrix

NAN = float("nan")


def all_eligible(Y):
    return np.ones(np.shape(Y), bool)


def random_points(seed, n=12):
    return np.random.default_rng(seed).random((n, 2))


# --------------------------------------------------------------------------- points and hulls


def test_choices_change_between_all_values_of_the_grid():
    # the dear model is worth it up to lambda .4 / .2 = 2, .1 / .2 = .5
    P, cost = np.array([[0.9, 0.5], [0.6, 0.5]]), np.array([[0.3, 0.1]] * 2)
    grid = lambda_grid(P, cost, all_eligible(P), size=2)
    np.testing.assert_allclose(grid, [0, 0.5, 2, 4])


def test_the_grid_is_zero_where_no_model_is_worth_more():
    P = np.array([[0.5, 0.5]])
    assert lambda_grid(P, np.array([[1.0, 2.0]]), all_eligible(P)).tolist() == [0.0]


def test_of_very_many_turns_some_serve_the_grid_and_its_ends_stay(monkeypatch):
    rng = np.random.default_rng(0)
    P, cost = rng.uniform(size=(4000, 3)), rng.uniform(size=(4000, 3))
    whole = lambda_grid(P, cost, all_eligible(P))
    monkeypatch.setattr(curves, "MAX_PAIRS", 9000)  # a quarter
    some = lambda_grid(P, cost, all_eligible(P))
    assert (some[0], some[-1]) == (whole[0], whole[-1])
    inner = slice(20, 180)
    np.testing.assert_allclose(some[inner], whole[inner], rtol=0.15)


def test_a_curve_holds_what_each_policy_achieves():
    Y = np.array([[1.0, 0.0], [1.0, 1.0]])
    P, cost = np.array([[0.9, 0.2], [0.9, 0.8]]), np.array([[2.0, 1.0]] * 2)
    labels = LabelMatrix.of_scores(("a", "b"), Y)
    points = cost_quality_curve(P, cost, labels, [HighestProbability(), Utility(0.5), Fixed(1)])
    assert points.tolist() == [[2.0, 1.0], [1.5, 1.0], [1.0, 0.5]]


def test_the_hull_keeps_what_no_coin_toss_beats():
    points = np.array([[1, 0.5], [2, 0.6], [3, 0.9], [4, 0.8], [1, 0.4], [NAN, 1.0]])
    assert upper_hull(points).tolist() == [[1, 0.5], [3, 0.9]]


@given(
    st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), min_size=1, max_size=12).map(
        lambda points: np.array(points, dtype=float)
    )
)
@settings(deadline=None, max_examples=60)
def test_the_hull_lies_on_or_above_every_point_and_bends_down(points):
    hull = upper_hull(points)
    assert np.all(np.interp(points[:, 0], hull[:, 0], hull[:, 1]) >= points[:, 1] - 1e-9)
    slopes = np.diff(hull[:, 1]) / np.diff(hull[:, 0])
    assert np.all(slopes > 0)
    assert np.all(np.diff(slopes) < 1e-9)


def test_aiq_is_the_mean_height_of_the_hull():
    # from .5 at 1 to .9 at 3, then flat to 5: (.7 * 2 + .9 * 2) / 4
    points = np.array([[1, 0.5], [3, 0.9]])
    assert aiq(points, cost_range=(1, 5)) == pytest.approx(0.8)
    assert aiq(points, cost_range=(2, 3)) == pytest.approx(0.8)


def test_what_cannot_be_bought_counts_as_nothing():
    points = np.array([[2, 0.8]])
    assert aiq(points, cost_range=(0, 4)) == pytest.approx(0.4)
    assert aiq(points, cost_range=(0, 1)) == 0
    assert np.isnan(aiq(points, cost_range=(1, 1)))


def test_costs_that_differ_by_next_to_nothing_give_finite_lambdas():
    P, cost = np.array([[0.9, 0.1]]), np.array([[4e-309, 0.0]])
    assert np.isfinite(lambda_grid(P, cost, np.ones((1, 2), bool))).all()


@pytest.mark.parametrize("seed", range(8))
def test_the_hull_has_the_corners_of_scipys(seed):
    points = random_points(seed)
    # A floor far below and a flat end to the right leave only the rising upper part.
    left, top = points[:, 0].min(), points[:, 1].max()
    framed = np.vstack([points, [[left, -9.0], [9.0, -9.0], [9.0, top]]])
    corners = framed[ConvexHull(framed).vertices]
    inner = corners[(corners[:, 1] > -9) & (corners[:, 0] < 9)]
    np.testing.assert_allclose(upper_hull(points), inner[np.argsort(inner[:, 0])])


@pytest.mark.parametrize("seed", range(4))
def test_aiq_is_the_integral_that_scipy_finds(seed):
    points = random_points(seed)
    hull = upper_hull(points)
    low, high = float(hull[0, 0]), 1.5
    area, _ = quad(
        lambda c: np.interp(c, hull[:, 0], hull[:, 1]), low, high, points=hull[1:, 0], limit=200
    )
    assert aiq(points, cost_range=(low, high)) == pytest.approx(area / (high - low), abs=1e-6)


def test_many_hulls_at_once_are_each_the_hull_alone():
    sets = np.stack([random_points(seed) for seed in range(6)])
    sets[2, 3] = NAN
    low, high = np.linspace(0, 0.5, 6), np.linspace(0.7, 1.5, 6)
    alone = [aiq(p, cost_range=(a, b)) for p, a, b in zip(sets, low, high, strict=True)]
    np.testing.assert_allclose(aiqs(sets, low=low, high=high), alone)


# --------------------------------------------------------------------------- read off a curve


def test_the_deferral_area_by_hand():
    # of the greatest cost 4: nothing up to 1/4, then .4 to .8 at 3/4, then flat
    points = np.array([[3, 0.8], [1, 0.4]])
    assert deferral_area(points, cost_max=4) == pytest.approx(0.5 * 0.6 + 0.25 * 0.8)
    assert deferral_area(points, cost_max=1) == 0
    assert deferral_area(points, cost_max=2) == pytest.approx(0.5 * (0.4 + 0.6) / 2)
    assert np.isnan(deferral_area(points, cost_max=0))


def test_a_sagging_curve_is_not_mended_by_its_hull():
    points = np.array([[0, 0.5], [1, 0.5], [2, 0.9]])
    assert deferral_area(points, cost_max=2) == pytest.approx((0.5 + 0.7) / 2)
    assert deferral_area(upper_hull(points), cost_max=2) == pytest.approx(0.7)


@pytest.mark.parametrize("seed", range(4))
def test_the_deferral_area_is_that_of_scipys_trapezoids(seed):
    points = random_points(seed)
    points[0] = 0, 0.1
    cost, quality = points[np.argsort(points[:, 0])].T
    area = deferral_area(points, cost_max=cost[-1])
    assert area == pytest.approx(trapezoid(quality, cost / cost[-1]))


def test_parity_costs_what_the_hull_says():
    # from .6 at 1 to .9 at 4: .8 costs 3, which is 60 % of the best single model's 5
    points = np.array([[1, 0.6], [4, 0.9]])
    assert cost_of_quality(points, 0.8) == pytest.approx(3)
    assert qnc(points, quality=0.8, cost=5) == pytest.approx(0.6)
    assert cost_of_quality(points, 0.2) == 1
    assert cost_of_quality(points, 0.9) == 4


def test_parity_that_is_never_reached_costs_infinity():
    assert qnc(np.array([[1, 0.6]]), quality=0.8, cost=5) == float("inf")
    assert np.isnan(qnc(np.full((1, 2), NAN), quality=0.8, cost=5))


def test_headroom_is_the_part_of_the_way_to_the_oracle():
    assert headroom(0.8, best_single=0.7, oracle=0.9) == pytest.approx(0.5)
    assert headroom(0.6, best_single=0.7, oracle=0.9) == pytest.approx(-0.5)
    assert np.isnan(headroom(0.7, best_single=0.7, oracle=0.7))


def test_the_rank_score_by_hand():
    # half way between 1 and 16 on a log scale: C = .5; 1.1 x .8 x .5 / (.08 + .5)
    assert rank_score(0.8, 4, cost_range=(1, 16)) == pytest.approx(0.44 / 0.58)
    assert rank_score(0.8, 1, cost_range=(1, 16)) == pytest.approx(1.1 * 0.8 / 1.08)
    assert rank_score(0.8, 20, cost_range=(1, 16)) == 0
    assert np.isnan(rank_score(0.8, 4, cost_range=(0, 16)))


# --------------------------------------------------------------------------- two models

# The strong model is right on all of four, the weak one on two, and the router knows on which.
WEAK, STRONG = np.array([1.0, 0.0, 1.0, 0.0]), np.ones(4)
KNOWS, MISTAKES = np.array([0.1, 0.9, 0.2, 0.8]), np.array([0.9, 0.1, 0.8, 0.2])


def test_the_recovered_gap_by_hand():
    assert pgr(0.75, weak=0.5, strong=1.0) == 0.5
    curve = recovery_curve(KNOWS, WEAK, STRONG)
    assert curve.tolist() == [[0, 0], [0.25, 0.5], [0.5, 1], [0.75, 1], [1, 1]]
    # 1/8 x (.5 + 1.5 + 2 + 2)
    assert apgr(KNOWS, WEAK, STRONG) == pytest.approx(0.75)
    assert apgr(MISTAKES, WEAK, STRONG) == pytest.approx(0.25)


def test_a_constant_preference_is_a_coin_toss():
    constant = np.zeros(4)
    assert apgr(constant, WEAK, STRONG) == 0.5
    curve = recovery_curve(constant, WEAK, STRONG)
    assert curve.tolist() == [[0, 0], [1, 1]]
    assert (cpt(curve, 0.5), cpt(curve, 0.8)) == (0.5, 0.8)


def test_the_smallest_share_of_strong_calls_by_hand():
    curve = recovery_curve(KNOWS, WEAK, STRONG)
    assert cpt(curve, 0.5) == 0.25
    assert cpt(curve, 0.8) == pytest.approx(0.4)
    assert cpt(curve, 1.0) == 0.5
    assert cpt(curve, 0.0) == 0
    assert cpt(curve, 1.2) == float("inf")


def test_a_strong_model_that_is_not_better_has_no_gap():
    assert np.isnan(apgr(KNOWS, WEAK, WEAK))
    assert np.isnan(cpt(recovery_curve(KNOWS, WEAK, WEAK), 0.5))


@given(st.integers(0, 10**6))
@settings(deadline=None, max_examples=25)
def test_apgr_is_the_area_under_the_recovery_curve(seed):
    rng = np.random.default_rng(seed)
    preference = rng.integers(0, 8, 40) / 8  # ties on purpose
    weak = (rng.random(40) < 0.4).astype(float)
    strong = np.where(rng.random(40) < 0.5, 1.0, weak)
    strong[0], weak[0] = 1, 0
    curve = recovery_curve(preference, weak, strong)
    assert apgr(preference, weak, strong) == pytest.approx(trapezoid(curve[:, 1], curve[:, 0]))
    counts = rng.integers(0, 4, (3, 40)).astype(float)
    counts[:, 0] = 1
    repeated = [np.repeat(np.arange(40), row.astype(int)) for row in counts]
    np.testing.assert_allclose(
        apgrs(preference, strong - weak, counts),
        [apgr(preference[rows], weak[rows], strong[rows]) for rows in repeated],
    )
