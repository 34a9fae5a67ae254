from __future__ import annotations

import json

import numpy as np
import pytest

from router_runtime.errors import DataError
from router_runtime.policy import CheapestQualified, Fixed, HighestProbability
from router_training.evaluate import evaluate
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
    assert (router.gap, router.savings) == (0.0, 1 - 2.5 / 4)
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
    assert router.gap == 0.0
    assert router.savings == pytest.approx(1 - 9 / 12)


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
    assert np.isnan(report.strategy("router").savings)
    assert np.isnan(report.aiq["router"])
    with pytest.raises(KeyError):
        report.strategy("cheapest")


def test_a_perfect_router_has_the_oracles_aiq():
    report = report_on(probabilities=np.clip(Y, 0.1, 0.9))
    # singles (1, .5) and (4, 1): hull from 1 to 4 has mean .75; a perfect router reaches 1 at 2.5
    assert report.aiq["zero_router"] == pytest.approx(0.75)
    assert report.aiq["router"] == pytest.approx((0.75 * 1.5 + 1.0 * 1.5) / 3)
    assert report.aiq["router"] == pytest.approx(report.aiq["oracle"])


def test_the_report_is_json_without_nan():
    content = report_on().to_json()
    assert json.loads(json.dumps(content, allow_nan=False)) == content
    assert content["schema_version"] == 1
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
