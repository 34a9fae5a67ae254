from __future__ import annotations

import json

import numpy as np
import pytest

from router_runtime.config import CheapestQualifiedConfig, FixedConfig, UtilityConfig
from router_runtime.errors import DataError
from router_runtime.policy import (
    CheapestQualified,
    Fixed,
    HighestProbability,
    Utility,
    WithFallback,
)
from router_training.evaluate import OperatingPoint, evaluate, worst_regrets
from router_training.labels import LabelMatrix

NAN = float("nan")
MODELS = ("dear", "cheap")

# The dear model is always right, the cheap one on rows 0 and 1, and the router knows it.
Y = np.array([[1.0, 1.0], [1.0, 1.0], [1.0, 0.0], [1.0, 0.0]])
P = np.array([[0.9, 0.8], [0.9, 0.8], [0.9, 0.2], [0.9, 0.2]])
COST = np.tile([4.0, 1.0], (4, 1))


def report_on(scores=Y, probabilities=P, expected_cost=COST, cost_usd=None, **arguments):
    unknown = np.full(scores.shape, NAN)
    cost = unknown if cost_usd is None else cost_usd
    labels = LabelMatrix(MODELS, scores, cost, unknown, unknown, unknown)
    arguments.setdefault("policy", CheapestQualified(np.full(2, 0.5)))
    return evaluate(
        P=probabilities,
        labels=labels,
        expected_cost=expected_cost,
        model_ids=MODELS,
        **arguments,
    )


def table(report):
    return {s.name: (s.outcome.quality, s.outcome.cost) for s in report.strategies}


def test_every_strategy_of_the_table_by_hand():
    report = report_on()
    assert table(report) == {
        "dear": (1.0, 4.0),
        "cheap": (0.5, 1.0),
        "random": (0.75, 2.5),
        "cheapest": (0.5, 1.0),
        "oracle": (1.0, 2.5),
        "best_single": (1.0, 4.0),
        "router": (1.0, 2.5),
    }
    router = report.strategy("router")
    assert (router.gap.estimate, router.savings.estimate) == (0.0, 1 - 2.5 / 4)
    assert report.best_single == "dear"
    assert report.reasons == {"cheapest_qualified": 4}


def test_shares_and_success_of_each_model_when_chosen():
    dear, cheap = report_on().models
    assert (dear.share, dear.quality_when_chosen) == (0.5, 1.0)
    assert (cheap.share, cheap.quality_when_chosen) == (0.5, 1.0)
    assert cheap.metrics.auc == 1.0
    assert np.isnan(dear.metrics.auc)  # always right: one class


def test_recorded_dollars_are_what_calls_cost():
    cost_usd = np.full((4, 2), NAN)
    cost_usd[:, 1] = 2.0  # twice the expectation
    report = report_on(cost_usd=cost_usd)
    assert report.strategy("router").outcome.cost == 3.0  # (2 + 2 + 4 + 4) / 4
    assert report.recorded_cost_share == 0.5


def test_unscored_choices_are_counted_and_compared_on_common_rows_only():
    scores = Y.copy()
    scores[0, 1] = NAN  # the router chooses the cheap model there
    scores[3, 0] = 0.0
    report = report_on(scores=scores)
    router, best = report.strategy("router"), report.strategy("best_single")
    assert (router.outcome.n_scored, router.outcome.n_unscored) == (3, 1)
    assert best.outcome.quality == 0.75
    # rows 1 to 3: both right, both right, both wrong
    assert router.outcome.quality == pytest.approx(2 / 3)
    assert router.gap.estimate == 0.0
    assert router.savings.estimate == pytest.approx(1 - 9 / 12)


def test_the_random_choice_is_among_scored_models():
    scores = Y.copy()
    scores[2:, 1] = NAN
    assert report_on(scores=scores).strategy("random").outcome.quality == 1.0


def test_queries_that_nobody_may_serve_are_counted():
    eligible = np.ones((4, 2), bool)
    eligible[0] = False
    report = report_on(eligible=eligible)
    assert report.strategy("router").outcome.n_unserved == 1
    assert report.strategy("router").outcome.n_scored == 3
    assert sum(report.reasons.values()) == 3


def test_an_ineligible_model_is_never_chosen_even_by_the_oracle():
    eligible = np.ones((4, 2), bool)
    eligible[:, 1] = False
    report = report_on(eligible=eligible)
    assert report.strategy("oracle").outcome.cost == 4.0
    assert report.strategy("cheapest").outcome.cost == 4.0


def test_a_router_that_is_the_best_single_model_differs_from_it_by_nothing():
    report = report_on(policy=Fixed(0))
    gap, ratio = report.quality_gap, report.cost_ratio
    assert (gap.estimate, gap.low, gap.high) == (0.0, 0.0, 0.0)
    assert (ratio.estimate, ratio.low, ratio.high) == (1.0, 1.0, 1.0)


def test_the_interval_covers_the_estimate_and_is_seeded():
    rng = np.random.default_rng(0)
    scores = (rng.random((300, 2)) < [0.8, 0.6]).astype(float)
    arguments = {
        "scores": scores,
        "probabilities": rng.random((300, 2)),
        "expected_cost": np.tile([4.0, 1.0], (300, 1)),
    }
    one, again = report_on(**arguments, seed=1), report_on(**arguments, seed=1)
    gap = one.quality_gap
    assert gap.low < gap.estimate < gap.high
    assert one.to_json() == again.to_json()
    assert report_on(**arguments, seed=2).quality_gap != gap


def test_rows_of_one_group_are_resampled_together():
    rng = np.random.default_rng(0)
    scores = np.repeat((rng.random((50, 2)) < [0.8, 0.6]).astype(float), 20, axis=0)
    arguments = {
        "scores": scores,
        "probabilities": np.tile([0.4, 0.6], (1000, 1)),
        "expected_cost": np.tile([4.0, 1.0], (1000, 1)),
    }
    apart = report_on(**arguments).quality_gap
    together = report_on(**arguments, groups=[str(i // 20) for i in range(1000)]).quality_gap
    # 20 equal rows know no more than one: the interval is about sqrt(20) times as wide
    assert (together.high - together.low) / (apart.high - apart.low) == pytest.approx(4.5, rel=0.25)
    assert together.estimate == pytest.approx(apart.estimate)


def test_without_costs_quality_is_still_measured():
    report = report_on(
        expected_cost=np.full((4, 2), NAN), policy=HighestProbability(), cost_unit="unknown"
    )
    assert report.strategy("router").outcome.quality == 1.0
    assert np.isnan(report.strategy("router").savings.estimate)
    assert np.isnan(report.summary.aiq["router"])
    assert report.curves is None
    assert np.isnan(report.summary.headroom)  # the oracle is no better
    assert report.summary.two_models.pgr == 1.0
    with pytest.raises(KeyError):
        report.strategy("cheapest")


def test_a_perfect_router_has_the_oracles_aiq():
    report = report_on(probabilities=np.clip(Y, 0.1, 0.9))
    # singles (1, .5) and (4, 1): hull from 1 to 4 has mean .75; a perfect router reaches 1 at 2.5
    assert report.summary.aiq["zero_router"] == pytest.approx(0.75)
    assert report.summary.aiq["router"] == pytest.approx((0.75 * 1.5 + 1.0 * 1.5) / 3)
    assert report.summary.aiq["router"] == pytest.approx(report.summary.aiq["oracle"])


def test_the_report_is_json_without_nan():
    content = report_on().to_json()
    assert json.loads(json.dumps(content, allow_nan=False)) == content
    assert content["schema_version"] == 2
    assert content["models"][0]["metrics"]["auc"] is None


def test_nothing_scored_is_an_error():
    with pytest.raises(DataError, match="nothing to evaluate"):
        report_on(scores=np.full((4, 2), NAN))


def test_the_cheapest_of_equal_prices_is_not_chosen_by_the_scores():
    scores = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    report = report_on(scores, np.full((4, 2), 0.5), np.ones((4, 2)))
    assert report.strategy("cheapest").outcome.quality == 0.5
    assert report.strategy("oracle").outcome.quality == 1.0


def test_groups_of_other_queries_are_refused():
    with pytest.raises(DataError, match="3 groups for 4 queries"):
        report_on(groups=["a", "b", "c"])


# --------------------------------------------------------------------------- curves and summary


def test_the_curves_hold_every_point_of_the_plot_by_hand():
    curves = report_on().curves
    assert curves.cost_range == (1.0, 4.0)
    assert [(p.name, p.cost, p.quality) for p in curves.singles] == [
        ("dear", 4.0, 1.0),
        ("cheap", 1.0, 0.5),
    ]
    # lambda sends all to the cheap model, rows 2 and 3 or all to the dear one
    assert [(p.cost, p.quality) for p in curves.router] == [(1.0, 0.5), (2.5, 1.0), (4.0, 1.0)]
    assert [(p.cost, p.quality) for p in curves.router_hull] == [(1.0, 0.5), (2.5, 1.0)]
    assert [(p.cost, p.quality) for p in curves.zero_router] == [(1.0, 0.5), (4.0, 1.0)]
    assert (curves.operating.cost, curves.operating.quality) == (2.5, 1.0)
    assert (curves.oracle.cost, curves.random.quality) == (2.5, 0.75)


def test_a_model_that_sees_no_pictures_is_no_alternative_to_a_router_that_does():
    """Right on the one query that it may serve, for next to nothing."""
    scores = np.column_stack([[1.0, 1, 1, 1], [0.0, 0, 1, 1], [1.0, np.nan, np.nan, np.nan]])
    may = np.ones((4, 3), dtype=bool)
    may[1:, 2] = False
    report = evaluate(
        P=np.full((4, 3), 0.5),
        labels=LabelMatrix.of_scores(("dear", "cheap", "blind"), scores),
        expected_cost=np.tile([4.0, 1.0, 0.1], (4, 1)),
        policy=HighestProbability(),
        model_ids=("dear", "cheap", "blind"),
        eligible=may,
    )
    assert report.curves.cost_range == (1.0, 4.0)
    assert [(p.cost, p.quality) for p in report.curves.zero_router] == [(1.0, 0.5), (4.0, 1.0)]
    assert [p.name for p in report.curves.singles] == ["dear", "cheap", "blind"]


def test_the_summary_by_hand():
    summary = report_on().summary
    assert summary.aiq_gain.estimate == pytest.approx(0.875 - 0.75)
    assert summary.aiq_gain.low <= summary.aiq_gain.estimate <= summary.aiq_gain.high
    # the quality of 1 costs 2.5 instead of 4
    assert summary.qnc == pytest.approx(2.5 / 4)
    assert summary.savings_at_parity == pytest.approx(1 - 2.5 / 4)
    # nothing up to a quarter of the greatest cost; .5 to 1 up to 5/8; 1 beyond
    assert summary.deferral_area["router"] == pytest.approx(3 / 8 * 0.75 + 3 / 8)
    assert summary.deferral_area["zero_router"] == pytest.approx(3 / 4 * 0.75)
    assert summary.deferral_area["random"] == pytest.approx(3 / 4 * 0.75)
    thrift = np.log(4 / 2.5) / np.log(4)
    assert summary.rank_score == pytest.approx(1.1 * thrift / (0.1 + thrift))


def test_headroom_is_of_the_way_from_the_best_single_model_to_the_oracle():
    scores = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [1.0, 1.0]])
    chances = np.array([[0.9, 0.1], [0.9, 0.1], [0.1, 0.9], [0.9, 0.1], [0.5, 0.4]])
    report = report_on(scores, chances, np.tile([4.0, 1.0], (5, 1)), policy=HighestProbability())
    # both models alone .6, the router right on four of five, the oracle always
    assert report.summary.headroom == pytest.approx((0.8 - 0.6) / (1.0 - 0.6))


def test_two_models_get_routellms_measures():
    two = report_on().summary.two_models
    assert (two.weak, two.strong, two.pgr) == ("cheap", "dear", 1.0)
    # the gap lies in rows 2 and 3, which the router prefers together: straight to 1 at half
    assert two.apgr.estimate == pytest.approx(0.75)
    assert (two.cpt50, two.cpt80) == (pytest.approx(0.25), pytest.approx(0.4))


# --------------------------------------------------------------------------- parts


def test_reliability_bins_and_histogram_of_a_model():
    cheap = report_on().models[1]
    assert [(b.predicted, b.observed, b.n) for b in cheap.reliability] == [(0.2, 0, 2), (0.8, 1, 2)]
    assert (cheap.histogram[4], cheap.histogram[16], sum(cheap.histogram)) == (2, 2, 4)
    gaps = [abs(b.predicted - b.observed) * b.n for b in cheap.reliability]
    assert cheap.metrics.ece == pytest.approx(sum(gaps) / 4)
    assert sum(b.n for b in report_on().reliability) == 8


def test_forecasts_of_cost_are_measured_against_recorded_dollars():
    cost_usd = np.full((4, 2), NAN)
    cost_usd[:, 1] = 2.0  # expected 1
    dear, cheap = report_on(cost_usd=cost_usd).models
    assert (cheap.cost_mape, cheap.cost_bias) == (0.5, -0.5)
    assert np.isnan([dear.cost_mape, dear.cost_bias]).all()
    _, relative = report_on(cost_usd=cost_usd, cost_unit="relative").models
    assert np.isnan(relative.cost_mape)


def test_slices_by_hand():
    report = report_on(slices={"data set": ["easy", "easy", "hard", "hard"]}, policy=Utility(0.2))
    easy, hard = report.slices
    # utilities .9 - .8 and .8 - .2, or .2 - .2: the cheap model on easy rows, the dear on hard ones
    assert (easy.by, easy.value, easy.n) == ("data set", "easy", 2)
    assert (easy.outcome.quality, easy.outcome.cost) == (1.0, 1.0)
    assert (easy.best_single.cost, easy.cost_ratio.estimate) == (4.0, 0.25)
    assert (hard.outcome.quality, hard.outcome.cost, hard.gap.estimate) == (1.0, 4.0, 0.0)
    assert (hard.oracle_quality, hard.metrics.n) == (1.0, 4)


def test_the_oracle_of_data_sets_knows_each_data_sets_best_model_and_no_more():
    scores = Y.copy()
    scores[3, 0] = 0.0  # now nobody is right there, and the oracle takes the cheap model
    report = report_on(scores=scores, slices={"data set": ["easy", "easy", "hard", "hard"]})
    oracle, known = (report.strategy(kind) for kind in ("oracle", "dataset_oracle"))
    assert (oracle.outcome.quality, oracle.outcome.cost) == (0.75, 1.75)
    assert (known.outcome.quality, known.outcome.cost) == (0.75, 2.5)  # cheap, cheap, dear, dear
    assert "dataset_oracle" not in table(report_on(scores=scores))  # of one data set


def test_slices_of_other_queries_are_refused():
    with pytest.raises(DataError, match="'data set' has 2 values for 4 queries"):
        report_on(slices={"data set": ["a", "b"]})


def test_honest_points_are_measured_with_their_own_numbers():
    points = [
        OperatingPoint("recommended", CheapestQualifiedConfig(default_threshold=0.5)),
        OperatingPoint("90 %", FixedConfig(model="cheap")),
        OperatingPoint("95 %", UtilityConfig(lambda_per_usd=0.0)),
    ]
    recommended, fixed, free = report_on(points=points).honest
    assert (recommended.name, recommended.outcome.quality) == ("recommended", 1.0)
    assert recommended.cost_ratio.estimate == 2.5 / 4
    assert (fixed.gap.estimate, fixed.cost_ratio.estimate) == (-0.5, 0.25)
    assert fixed.policy == {"kind": "fixed", "model": "cheap"}
    assert (free.outcome.cost, free.gap.estimate) == (4.0, 0.0)


def test_novelty_reaches_the_policy_its_reasons_and_every_honest_point():
    fallback = {"model": "cheap", "novelty_above": 0.9}
    report = report_on(
        policy=WithFallback(Fixed(0), 1, 0.9),
        novelty=np.array([0.1, 0.1, 0.1, 0.95]),
        points=[OperatingPoint("p", UtilityConfig(lambda_per_usd=0, fallback=fallback))],
    )
    assert report.strategy("router").outcome.quality == 0.75
    assert report.reasons == {"fixed": 3, "novel_query_fallback": 1}
    assert report.honest[0].outcome.quality == 0.75


def test_every_stated_difference_has_an_interval():
    rng = np.random.default_rng(0)
    scores = (rng.random((200, 2)) < [0.8, 0.6]).astype(float)
    report = report_on(
        scores,
        rng.random((200, 2)),
        np.tile([4.0, 1.0], (200, 1)),
        slices={"data set": ["a", "b"] * 100},
        points=[OperatingPoint("p", UtilityConfig(lambda_per_usd=0.1))],
    )
    stated = [report.quality_gap, report.cost_ratio, report.summary.aiq_gain]
    stated += [report.summary.two_models.apgr]
    stated += [value for s in report.strategies for value in (s.gap, s.savings)]
    stated += [value for p in report.honest + report.slices for value in (p.gap, p.cost_ratio)]
    assert all(value.low <= value.estimate <= value.high for value in stated)


# --------------------------------------------------------------------------- regrets


def regrets_on(scores, chances=P, **arguments):
    arguments.setdefault("policy", HighestProbability())
    return worst_regrets(
        P=chances,
        labels=LabelMatrix.of_scores(MODELS, scores),
        expected_cost=COST,
        model_ids=MODELS,
        **arguments,
    )


def test_the_worst_regrets_come_first_and_of_equals_the_surest():
    scores = np.array([[0.5, 1.0], [0.0, 1.0], [0.0, 1.0], [1.0, 0.0]])
    chances = np.array([[0.9, 0.8], [0.7, 0.2], [0.8, 0.2], [0.9, 0.2]])
    found = regrets_on(scores, chances, novelty=np.array([0.1, 0.2, 0.3, 0.4]))
    assert [(r.row, r.regret) for r in found] == [(2, 1.0), (1, 1.0), (0, 0.5)]
    worst = found[0]
    assert (worst.chosen, worst.best, worst.novelty) == ("dear", "cheap", 0.3)
    assert (worst.chosen_probability, worst.best_probability) == (0.8, 0.2)
    assert (worst.chosen_expected_cost, worst.best_cost) == (4.0, 1.0)
    assert len(regrets_on(scores, chances, limit=1)) == 1


def test_nothing_is_regretted_where_nothing_better_is_known():
    scores = np.array([[1.0, 1.0], [NAN, 1.0], [0.0, 0.0], [0.0, NAN]])
    assert regrets_on(scores) == ()


def test_a_model_that_may_not_serve_is_not_missed():
    eligible = np.array([[True, False]] * 4)
    assert regrets_on(np.tile([0.0, 1.0], (4, 1)), eligible=eligible) == ()


def test_the_median_duration_is_of_what_was_recorded():
    seconds = np.array([[1.0, NAN], [3.0, NAN], [100.0, NAN], [NAN, NAN]])
    labels = LabelMatrix(MODELS, Y, *[np.full(Y.shape, NAN)] * 4, seconds)
    policy = CheapestQualified(np.full(2, 0.5))
    dear, cheap = evaluate(
        P=P, labels=labels, expected_cost=COST, policy=policy, model_ids=MODELS
    ).models
    assert dear.median_seconds == 3.0
    assert np.isnan(cheap.median_seconds)
