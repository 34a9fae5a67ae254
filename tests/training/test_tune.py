from __future__ import annotations

import json

import numpy as np
import pytest

from router_runtime.config import CheapestQualifiedConfig, UtilityConfig
from router_runtime.errors import ConfigError, DataError
from router_runtime.policy import build_policy
from router_training.labels import LabelMatrix
from router_training.metrics import Outcome
from router_training.tune import SHRINKAGE, Goal, tune, tune_utility

NAN = float("nan")
MODELS = ("dear", "cheap")

# Probabilities are as good as the scores, so that shrinking one towards the other changes nothing:
# the dear model is worth .9 everywhere, the cheap one .9, .8, .5 and .1.
P = np.array([[0.9, 0.9], [0.9, 0.8], [0.9, 0.5], [0.9, 0.1]])
COST = np.tile([0.004, 0.001], (4, 1))


def tuned(scores=P, probabilities=P, expected_cost=COST, **arguments):
    return tune(
        P=probabilities,
        expected_cost=expected_cost,
        labels=LabelMatrix.of_scores(MODELS, scores),
        model_ids=MODELS,
        **arguments,
    )


def noisy(n=400, seed=0):
    """Two models of which the cheap one's chance of success varies and is known."""
    rng = np.random.default_rng(seed)
    chance = np.column_stack([np.full(n, 0.9), rng.random(n)])
    return chance, (rng.random((n, 2)) < chance).astype(float)


def serve(config, probabilities=P, expected_cost=COST):
    everyone = np.ones(probabilities.shape, bool)
    policy = build_policy(config, model_ids=MODELS)
    return policy.rank(probabilities, expected_cost, everyone)[:, 0].tolist()


def test_the_cheap_model_is_used_as_far_as_the_wanted_quality_allows():
    # .95 x .9 = .855: the cheap model on rows 0 and 1 gives (.9 + .8 + .9 + .9) / 4 = .875, on
    # row 2 as well .775
    result = tuned(target_quality=0.95)
    for policy in (result.utility, result.cheapest_qualified):
        assert policy.met
        assert policy.outcome.quality == pytest.approx(0.875)
        assert policy.outcome.cost == pytest.approx(0.0025)
        assert serve(policy.config) == [1, 1, 0, 0]


def test_a_lower_wanted_quality_costs_less():
    # .85 x .9 = .765
    result = tuned(target_quality=0.85)
    assert result.utility.outcome.cost == pytest.approx(0.00175)
    assert serve(result.recommended) == [1, 1, 1, 0]


def test_the_default_goal_is_98_percent_of_the_best_single_model():
    result = tuned()
    assert result.best_single == "dear"
    assert result.goal == Goal(least_quality=0.98 * 0.9, most_cost=None)
    assert result.best_single_outcome.quality == pytest.approx(0.9)


def test_a_budget_is_spent_at_the_best_quality():
    # 2 USD per 1,000 calls: the dear model on one row of four (1.75), where it is worth most
    result = tuned(max_cost_per_1k=2.0)
    assert result.met
    assert serve(result.recommended) == [1, 1, 1, 0]
    assert "2 USD per 1,000 calls is met" in result.message


def test_equal_results_recommend_utility():
    assert isinstance(tuned(target_quality=0.95).recommended, UtilityConfig)


def test_thresholds_are_recommended_where_they_are_clearly_cheaper():
    # Utility must take the cheap model on row 1 (gap .1) before row 0 (gap .2); a threshold on the
    # cheap model's own probability may take row 0 alone, which is what the scores reward: shrunken
    # (.895 + .9) / 2 of the dear model's (.995 + .9) / 2, or 94.7 %.
    probabilities = np.array([[0.99, 0.79], [0.8, 0.7]])
    scores = np.array([[1.0, 1.0], [1.0, 0.0]])
    result = tuned(scores, probabilities, COST[:2], target_quality=0.94)
    assert result.cheapest_qualified.outcome.cost == pytest.approx(0.0025)
    assert result.cheapest_qualified.met
    assert isinstance(result.recommended, CheapestQualifiedConfig)
    assert serve(result.recommended, probabilities, COST[:2]) == [1, 0]


def test_an_unreachable_quality_gives_the_best_there_is_and_says_so():
    result = tuned(target_quality=1.5)
    assert not result.met
    assert serve(result.recommended)[1:] == [0, 0, 0]
    assert result.utility.outcome.quality == pytest.approx(0.9)
    assert "cannot be met" in result.message


def test_an_unreachable_budget_gives_the_cheapest_choice():
    result = tuned(max_cost_per_1k=0.5)
    assert not result.met
    assert serve(result.recommended) == [1, 1, 1, 1]


def test_quality_is_estimated_from_scores_and_probabilities_and_also_measured():
    chance, scores = noisy()
    cost = np.tile([0.004, 0.001], (len(chance), 1))
    utility = tuned(scores, chance, cost).utility
    chosen = np.array(serve(utility.config, chance, cost))
    rows = np.arange(len(chance))
    measured, predicted = scores[rows, chosen].mean(), chance[rows, chosen].mean()
    assert utility.measured_quality == pytest.approx(measured)
    assert utility.outcome.quality == pytest.approx(
        (1 - SHRINKAGE) * measured + SHRINKAGE * predicted
    )


def test_what_is_tuned_holds_on_fresh_queries():
    chance, scores = noisy(seed=0)
    cost = np.tile([0.004, 0.001], (len(chance), 1))
    result = tuned(scores, chance, cost, target_quality=0.95)
    fresh, fresh_scores = noisy(n=4000, seed=1)
    fresh_cost = np.tile([0.004, 0.001], (4000, 1))
    for policy in (result.utility, result.cheapest_qualified):
        chosen = serve(policy.config, fresh, fresh_cost)
        quality = fresh_scores[np.arange(4000), chosen].mean()
        assert quality / fresh_scores[:, 0].mean() == pytest.approx(0.95, abs=0.03)


def test_unscored_cells_are_left_out():
    scores = np.vstack([P, np.full((3, 2), NAN)])
    result = tuned(scores, np.vstack([P, P[:3]]), np.tile(COST[0], (7, 1)), target_quality=0.95)
    assert result.utility.outcome.n_scored == 4
    assert result.utility.outcome.quality == pytest.approx(0.875)


def test_relative_costs_serve_as_well():
    factors = np.tile([1.0, 0.1], (4, 1))
    result = tuned(expected_cost=factors, target_quality=0.95, cost_unit="relative")
    assert serve(result.recommended, expected_cost=factors) == [1, 1, 0, 0]
    assert "relative cost" in result.message


def test_without_costs_the_highest_probability_is_recommended():
    unknown = np.full((4, 2), NAN)
    result = tuned(expected_cost=unknown)
    assert serve(result.recommended, np.array([[0.2, 0.7]]), np.full((1, 2), NAN)) == [1]
    assert result.met
    assert "Costs are unknown for dear, cheap" in result.message


def test_a_budget_without_costs_is_refused():
    with pytest.raises(ConfigError, match="unknown for dear, cheap"):
        tuned(expected_cost=np.full((4, 2), NAN), max_cost_per_1k=1.0)


@pytest.mark.parametrize(
    ("goal", "message"),
    [
        ({"target_quality": 0.9, "max_cost_per_1k": 2.0}, "two goals"),
        ({"target_quality": 0.0}, "target_quality must be finite and > 0"),
        ({"target_quality": float("inf")}, "target_quality must be finite"),
        ({"max_cost_per_1k": -1.0}, "max_cost_per_1k must be finite and > 0"),
        ({"max_cost_per_1k": float("inf")}, "max_cost_per_1k must be finite"),
    ],
)
def test_impossible_goals_are_refused(goal, message):
    with pytest.raises(ConfigError, match=message):
        tuned(**goal)


def test_nothing_scored_is_an_error():
    with pytest.raises(DataError, match="nothing to tune on"):
        tuned(scores=np.full((4, 2), NAN))


def test_a_goal_met_exactly_is_met_whatever_the_last_bit_says():
    goal = Goal(least_quality=0.1 + 0.2, most_cost=None)
    assert goal.met(Outcome(quality=0.3, cost=1.0, n_scored=1))
    assert not goal.met(Outcome(quality=0.2999, cost=1.0, n_scored=1))


def test_the_result_is_json_with_both_policies_side_by_side():
    content = tuned().to_json()
    assert json.loads(json.dumps(content, allow_nan=False)) == content
    assert content["recommended"] == content["utility"]["config"]
    assert content["cheapest_qualified"]["config"]["thresholds"].keys() == set(MODELS)


def test_the_message_says_that_a_cost_is_unknown_and_not_that_it_is_nan():
    message = tuned(expected_cost=np.tile([NAN, 0.001], (4, 1))).message
    assert "an unknown cost" in message
    assert "nan" not in message


def test_one_sweep_gives_the_lambdas_of_several_targets():
    chance, scores = noisy()
    cost = np.tile([0.004, 0.001], (len(chance), 1))
    found = tune_utility(
        P=chance,
        expected_cost=cost,
        labels=LabelMatrix.of_scores(MODELS, scores),
        model_ids=MODELS,
        targets=(0.9, 0.98),
    )
    alone = [tuned(scores, chance, cost, target_quality=share).utility for share in (0.9, 0.98)]
    assert list(found) == alone
    assert found[0].outcome.cost < found[1].outcome.cost


def test_where_a_cost_is_unknown_every_target_gets_the_highest_probability():
    unknown = np.tile([NAN, 0.001], (4, 1))
    labels = LabelMatrix.of_scores(MODELS, P)
    found = tune_utility(
        P=P, expected_cost=unknown, labels=labels, model_ids=MODELS, targets=(0.9, 1.0)
    )
    assert [entry.config.lambda_per_usd for entry in found] == [0.0, 0.0]
