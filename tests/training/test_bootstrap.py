from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import bootstrap as scipy_bootstrap

from router_runtime.errors import DataError
from router_training import bootstrap
from router_training.bootstrap import (
    Resamples,
    aiq_difference,
    apgr_interval,
    aucs,
    calibration_errors,
    contrasts,
    interval,
    mean_difference,
    pivotal,
    probability_contrast,
)
from router_training.metrics import auc, calibration_error

NAN = float("nan")


def drawn(resamples):
    return np.concatenate(list(resamples.draws()))


def width(found):
    return found.high - found.low


# --------------------------------------------------------------------------- draws


def test_a_draw_takes_as_many_groups_as_there_are_and_is_seeded():
    one = Resamples.of_groups(list("aabbbc"), 6, seed=1, n_resamples=50)
    counts = drawn(one)
    assert counts.shape == (50, 3)
    assert (counts.sum(axis=1) == 3).all()
    again = Resamples.of_groups(list("aabbbc"), 6, seed=1, n_resamples=50)
    np.testing.assert_array_equal(counts, drawn(again))
    other = Resamples.of_groups(list("aabbbc"), 6, seed=2, n_resamples=50)
    assert not np.array_equal(counts, drawn(other))


def test_queries_of_a_group_are_drawn_together():
    resamples = Resamples.of_groups(list("aab"), 3, n_resamples=20)
    weights = np.concatenate(list(resamples.weights()))
    np.testing.assert_array_equal(weights[:, 0], weights[:, 1])
    np.testing.assert_array_equal(weights[:, [0, 2]], drawn(resamples))


def test_sums_are_those_of_the_drawn_queries(monkeypatch):
    monkeypatch.setattr("router_training.bootstrap.BLOCK_CELLS", 7)  # several blocks
    resamples = Resamples.of_groups(list("abacbc"), 6, n_resamples=9)
    columns = np.arange(12.0).reshape(6, 2)
    weights = np.concatenate(list(resamples.weights()))
    assert len(list(resamples.draws())) > 1
    np.testing.assert_allclose(resamples.sums(columns), weights @ columns)


def test_groups_of_other_queries_are_refused():
    with pytest.raises(DataError, match="3 groups for 4 queries"):
        Resamples.of_groups(["a", "b", "c"], 4)


def test_ten_thousand_groups_are_drawn_in_small_blocks():
    resamples = Resamples.of_groups(None, 10_000, n_resamples=1000)
    blocks = 0
    started = time.perf_counter()
    for block in resamples.draws():
        blocks += 1
        assert block.nbytes <= 16_000_000
    assert blocks == 5
    assert time.perf_counter() - started < 5


def test_some_queries_can_be_looked_at_in_the_very_same_draws():
    whole = Resamples.of_groups(list("abacbc"), 6, seed=1, n_resamples=9)
    weights = np.concatenate(list(whole.weights()))
    rows = np.array([4, 0, 0])
    np.testing.assert_array_equal(
        np.concatenate(list(whole.keep(rows).weights())), weights[:, rows]
    )


# --------------------------------------------------------------------------- intervals


def test_one_group_alone_gives_no_interval():
    quality, nothing = np.array([1.0, 0.0, 1.0, NAN]), np.zeros(4)
    for groups, known in (("aaab", False), ("aabb", True), ("aaaa", False)):
        draws = Resamples.of_groups(list(groups), 4, n_resamples=50)
        found = contrasts([(quality, np.ones(4))], (nothing, np.ones(4)), draws)[0]
        for part in (found.gap, found.savings, mean_difference(quality, nothing, draws)):
            assert np.isfinite(part.estimate)
            assert np.isnan([part.low, part.high]).all() != known
    alone = Resamples.of_groups(["a"] * 4, 4, n_resamples=50)
    found = probability_contrast(np.eye(4), 1 - np.eye(4), np.eye(4), alone)
    for part in (found.auc, found.brier, found.ece):
        assert np.isfinite(part.estimate)
        assert np.isnan([part.low, part.high]).all()


def test_the_interval_of_a_biased_measure_is_reflected_at_the_estimate_and_holds_it():
    draws = np.linspace(0.3, 0.5, 1001)  # the middle 95 %: 0.305 to 0.495
    found = pivotal(0.35, draws)
    assert (found.low, found.high) == (pytest.approx(0.205), pytest.approx(0.395))
    found = pivotal(0.2, draws)  # all draws are above: 0.4 - 0.495 to 0.4 - 0.305
    assert (found.low, found.high) == (pytest.approx(-0.095), pytest.approx(0.2))
    assert np.isnan([pivotal(NAN, draws).low, pivotal(0.2, np.zeros(0)).high]).all()


def test_an_interval_holds_the_middle_95_percent_of_the_draws():
    found = interval(0.5, np.append(np.linspace(0, 1, 1001), NAN))
    assert (found.low, found.high) == (pytest.approx(0.025), pytest.approx(0.975))


def test_an_unknown_estimate_has_no_bounds():
    assert np.isnan([interval(NAN, np.ones(9)).low, interval(0.5, np.full(9, NAN)).high]).all()


def test_the_interval_of_a_mean_difference_is_scipys():
    rng = np.random.default_rng(0)
    values, other = rng.normal(0.3, 1, 200), rng.normal(0, 1, 200)
    found = mean_difference(values, other, Resamples.of_groups(None, 200, n_resamples=4000))
    theirs = scipy_bootstrap(
        (values - other,), np.mean, n_resamples=4000, method="percentile", rng=1
    ).confidence_interval
    assert found.estimate == pytest.approx((values - other).mean())
    assert found.low == pytest.approx(theirs.low, abs=0.02)
    assert found.high == pytest.approx(theirs.high, abs=0.02)


def test_the_interval_of_a_ratio_of_sums_is_scipys():
    rng = np.random.default_rng(0)
    cost, other = rng.gamma(2, 1, 300), rng.gamma(3, 1, 300)
    quality = np.ones(300)
    resamples = Resamples.of_groups(None, 300, n_resamples=4000)
    found = contrasts([(quality, cost)], (quality, other), resamples)[0]
    theirs = scipy_bootstrap(
        (cost, other),
        lambda a, b, axis: a.sum(axis=axis) / b.sum(axis=axis),
        paired=True,
        n_resamples=4000,
        method="percentile",
        rng=1,
    ).confidence_interval
    assert found.cost_ratio.low == pytest.approx(theirs.low, abs=0.015)
    assert found.cost_ratio.high == pytest.approx(theirs.high, abs=0.015)
    assert found.savings.low == 1 - found.cost_ratio.high


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for seed in range(200):
        groups = np.repeat(np.arange(60), 3)
        values = np.repeat(rng.normal(size=60), 3) + rng.normal(size=180)
        resamples = Resamples(groups, seed, 300)
        found = mean_difference(values, np.zeros(180), resamples)
        hits += found.low <= 0 <= found.high
    assert 0.90 <= hits / 200 <= 0.98


def test_only_queries_on_which_both_are_scored_are_compared():
    # both on rows 0 and 2: (1 + 0) / 2 against (0 + 1) / 2; 6 USD against 3
    ours = np.array([1.0, 1.0, 0.0]), np.array([2.0, 9.0, 4.0])
    reference = np.array([0.0, NAN, 1.0]), np.array([1.0, 9.0, 2.0])
    found = contrasts([ours], reference, Resamples.of_groups(None, 3))[0]
    assert (found.gap.estimate, found.cost_ratio.estimate) == (0.0, 2.0)


def test_an_unknown_cost_spoils_no_other_figure():
    quality = np.array([1.0, 0.0])
    known, unknown = np.ones(2), np.full(2, NAN)
    resamples = Resamples.of_groups(None, 2, n_resamples=20)
    first, second = contrasts([(quality, unknown), (quality, known)], (quality, known), resamples)
    assert np.isnan(first.cost_ratio.estimate)
    assert first.gap.estimate == 0
    assert (second.cost_ratio.low, second.cost_ratio.high) == (1, 1)


# --------------------------------------------------------------------------- functions of curves


def test_a_sweep_differs_from_itself_by_nothing():
    rng = np.random.default_rng(0)
    Y, cost = rng.random((40, 2)), np.tile([1.0, 3.0], (40, 1))
    singles = np.array([np.zeros(40), np.ones(40)], dtype=int)
    found = aiq_difference(singles, singles, singles, Y=Y, cost=cost, resamples=draws_of(40))
    assert (found.estimate, found.low, found.high) == (0, 0, 0)


def test_the_aiq_gain_of_a_perfect_router_by_hand():
    # singles (1, .5) and (3, .5); choosing right costs 2 for 1: hull .5 to 1, then flat
    Y = np.tile([[1.0, 0.0], [0.0, 1.0]], (50, 1))
    cost = np.tile([1.0, 3.0], (100, 1))
    singles = np.array([np.zeros(100), np.ones(100)], dtype=int)
    router = np.vstack([singles, np.tile([0, 1], 50)])
    found = aiq_difference(router, singles, singles, Y=Y, cost=cost, resamples=draws_of(100))
    assert found.estimate == pytest.approx((0.75 + 1.0) / 2 - 0.5)
    assert found.low < found.estimate
    assert found.low > 0.2


def test_the_apgr_of_a_coin_is_surely_a_half():
    weak, strong = np.tile([0.0, 1.0], 50), np.ones(100)
    found = apgr_interval(np.zeros(100), weak, strong, draws_of(100))
    assert (found.estimate, found.low, found.high) == (0.5, 0.5, 0.5)


def draws_of(n):
    return Resamples.of_groups(None, n, n_resamples=200)


# --------------------------------------------------------------------------- probabilities


@given(st.integers(0, 10**6))
@settings(deadline=None, max_examples=30)
def test_weighted_measures_are_those_of_repeated_cells(seed):
    rng = np.random.default_rng(seed)
    p = rng.integers(0, 12, 60) / 12  # ties on purpose
    y = (rng.random(60) < p).astype(float)
    counts = rng.integers(0, 4, (4, 60)).astype(float)
    repeated = [np.repeat(np.arange(60), row.astype(int)) for row in counts]
    np.testing.assert_allclose(
        aucs(p, y > 0, counts), [auc(p[rows], y[rows] > 0) for rows in repeated]
    )
    np.testing.assert_allclose(
        calibration_errors(p, y, counts), [calibration_error(p[rows], y[rows]) for rows in repeated]
    )


def test_a_better_predictor_is_better_beyond_the_interval():
    rng = np.random.default_rng(0)
    chance = rng.random((500, 2))
    Y = (rng.random((500, 2)) < chance).astype(float)
    Y[:50, 1] = NAN
    other = np.clip(chance + rng.normal(0, 0.5, chance.shape), 0, 1)
    found = probability_contrast(chance, other, Y, draws_of(500))
    assert found.auc.low > 0
    assert found.brier.high < 0
    assert found.ece.high < 0
    scored = ~np.isnan(Y)
    gap = ((chance - Y)[scored] ** 2).mean() - ((other - Y)[scored] ** 2).mean()
    assert found.brier.estimate == pytest.approx(gap)


def test_noise_in_the_draws_does_not_hide_how_much_worse_a_calibration_is():
    rng = np.random.default_rng(1)
    Z = rng.normal(1.0, 0.8, (3000, 1)) + rng.normal(0, 0.3, (3000, 4))
    chance, bold = 1 / (1 + np.exp(-Z)), 1 / (1 + np.exp(-1.5 * Z))
    truth = -0.0653  # of 4 million cells
    Y = (rng.random(Z.shape) < chance).astype(float)
    held = 0
    for rows in np.split(np.arange(3000), 10):
        found = probability_contrast(chance[rows], bold[rows], Y[rows], draws_of(300)).ece
        assert found.low <= found.estimate <= found.high
        held += found.low <= truth <= found.high
    assert held >= 5  # of 10; none by percentiles


def test_many_cells_are_drawn_by_sums_with_the_same_result(monkeypatch):
    rng = np.random.default_rng(2)
    chance = rng.random((2000, 4)).round(2)  # with ties
    Y = (rng.random(chance.shape) < chance).astype(float)
    Y[:300, 1] = NAN
    other = np.clip(chance + rng.normal(0, 0.2, chance.shape), 0, 1)
    draws = Resamples.of_groups((np.arange(2000) // 4).astype(str), 2000, n_resamples=300)
    exact = probability_contrast(chance, other, Y, draws)
    monkeypatch.setattr(bootstrap, "MANY_CELLS", 0)
    summed = probability_contrast(chance, other, Y, draws)
    for one, two in ((exact.auc, summed.auc), (exact.ece, summed.ece)):
        assert two.estimate == pytest.approx(one.estimate, abs=1e-12)
        assert [two.low, two.high] == pytest.approx([one.low, one.high], abs=0.1 * width(one))
    assert summed.brier == exact.brier
    same = probability_contrast(chance, chance, Y, draws)
    assert (same.auc.low, same.auc.high, same.ece.low, same.ece.high) == (0, 0, 0, 0)


def test_a_predictor_differs_from_itself_by_nothing():
    rng = np.random.default_rng(0)
    P, Y = rng.random((50, 2)), (rng.random((50, 2)) < 0.5).astype(float)
    found = probability_contrast(P, P, Y, draws_of(50))
    for measure in (found.auc, found.brier, found.ece):
        assert (measure.estimate, measure.low, measure.high) == (0, 0, 0)


def test_equal_rows_of_one_group_know_no_more_than_one():
    rng = np.random.default_rng(0)
    values = np.repeat(rng.normal(size=50), 20)
    apart = mean_difference(values, np.zeros(1000), Resamples.of_groups(None, 1000))
    groups = np.repeat(np.arange(50), 20).astype(str)
    together = mean_difference(values, np.zeros(1000), Resamples.of_groups(groups, 1000))
    assert width(together) / width(apart) == pytest.approx(20**0.5, rel=0.15)
