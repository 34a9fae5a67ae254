from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router_runtime.config import (
    CheapestQualifiedConfig,
    FallbackConfig,
    FixedConfig,
    HighestProbabilityConfig,
    UtilityConfig,
)
from router_runtime.errors import ConfigError, NoEligibleModelError, RouterError
from router_runtime.policy import (
    PRESETS,
    CheapestQualified,
    Fixed,
    HighestProbability,
    Utility,
    WithFallback,
    build_policy,
)
from router_runtime.types import Reason

# The three candidates, thresholds and cost factors of LLM Router v2.
SEED_MODELS = ("gpt-5-chat", "nemotron-vl", "nemotron-nano")
SEED_THRESHOLDS = CheapestQualifiedConfig(
    thresholds={"gpt-5-chat": 0.70, "nemotron-vl": 0.55, "nemotron-nano": 0.50}
)
SEED_COSTS = [1.0, 0.3, 0.1]


def rank(policy, P, cost=None, eligible=None):
    P = np.atleast_2d(np.array(P, dtype=np.float64))
    cost = np.full(P.shape, np.nan) if cost is None else np.broadcast_to(cost, P.shape)
    eligible = np.ones(P.shape, bool) if eligible is None else np.atleast_2d(eligible)
    ranking = policy.rank(P, cost.astype(np.float64), eligible)
    return ranking.tolist(), policy.reasons(P, cost, eligible, ranking)


@pytest.mark.parametrize(
    ("P", "expected", "reason"),
    [
        # all three reach their thresholds: the cheapest
        ([0.90, 0.60, 0.50], [2, 1, 0], Reason.CHEAPEST_QUALIFIED),
        # nano misses .50: the next cheapest, nano last
        ([0.90, 0.60, 0.49], [1, 0, 2], Reason.CHEAPEST_QUALIFIED),
        # only the dear one qualifies; the others follow by probability
        ([0.70, 0.40, 0.45], [0, 2, 1], Reason.CHEAPEST_QUALIFIED),
        # nobody qualifies: the highest probability
        ([0.60, 0.54, 0.49], [0, 1, 2], Reason.NONE_QUALIFIED),
        ([0.30, 0.54, 0.49], [1, 2, 0], Reason.NONE_QUALIFIED),
    ],
)
def test_the_seeds_rule_by_hand(P, expected, reason):
    policy = build_policy(SEED_THRESHOLDS, model_ids=SEED_MODELS)
    assert rank(policy, P, SEED_COSTS) == ([expected], [reason])


def test_equal_costs_go_to_the_higher_probability_then_the_lower_column():
    policy = CheapestQualified(np.full(3, 0.5))
    assert rank(policy, [0.6, 0.9, 0.9], [1.0, 1.0, 1.0])[0] == [[1, 2, 0]]


def test_a_qualified_model_of_unknown_cost_comes_after_those_with_a_known_one():
    policy = CheapestQualified(np.full(3, 0.5))
    assert rank(policy, [0.9, 0.6, 0.2], [np.nan, 5.0, 1.0])[0] == [[1, 0, 2]]


def test_ineligible_models_are_never_ranked():
    policy = CheapestQualified(np.full(3, 0.5))
    ranking, reasons = rank(
        policy,
        [[0.9, 0.8, 0.7], [0.9, 0.8, 0.7]],
        [3.0, 2.0, 1.0],
        [[True, True, False], [False, True, False]],
    )
    assert ranking == [[1, 0, -1], [1, -1, -1]]
    assert reasons == [Reason.CHEAPEST_QUALIFIED, Reason.ONLY_ELIGIBLE]


def test_a_row_without_an_eligible_model_is_empty_and_has_no_reason():
    P, cost = np.full((2, 2), 0.5), np.ones((2, 2))
    eligible = np.array([[True, True], [False, False]])
    policy = HighestProbability()
    ranking = policy.rank(P, cost, eligible)
    assert ranking.tolist() == [[0, 1], [-1, -1]]
    with pytest.raises(NoEligibleModelError, match="Row 1"):
        policy.reasons(P, cost, eligible, ranking)


def test_utility_pays_for_the_dear_model_only_where_it_is_better_by_enough():
    # 1 dollar is worth 10 points: utilities .9-.5=.4, .6-.1=.5 and .95-.5=.45, .2-.1=.1
    ranking, reasons = rank(Utility(10.0), [[0.9, 0.6], [0.95, 0.2]], [0.05, 0.01])
    assert ranking == [[1, 0], [0, 1]]
    assert reasons == [Reason.HIGHEST_UTILITY] * 2


def test_equal_utilities_go_to_the_cheaper_model():
    # .75 - 1 * .5 = .5 - 1 * .25 exactly
    assert rank(Utility(1.0), [0.75, 0.5], [0.5, 0.25])[0] == [[1, 0]]


def test_utility_without_lambda_is_the_highest_probability_and_needs_no_costs():
    policy = Utility(0.0)
    assert not policy.needs_cost
    assert rank(policy, [0.2, 0.9])[0] == [[1, 0]]


def test_utility_names_the_eligible_models_whose_cost_is_unknown():
    policy = build_policy(UtilityConfig(lambda_per_usd=1.0), model_ids=["a", "b", "c"])
    assert policy.needs_cost
    with pytest.raises(ConfigError, match=r"unknown: 'b'\. Configure prices"):
        rank(policy, [0.5, 0.5, 0.5], [1.0, np.nan, np.nan], [True, True, False])


def test_highest_probability_breaks_ties_by_cost():
    assert rank(HighestProbability(), [0.9, 0.9, 0.95], [2.0, 1.0, 9.0]) == (
        [[2, 1, 0]],
        [Reason.HIGHEST_PROBABILITY],
    )


@pytest.mark.parametrize("kind", ["plain", "ties", "ineligible", "unknown costs", "overflow"])
@pytest.mark.parametrize("lambda_per_usd", [0.0, 0.5, 1e308])
def test_a_wide_batch_is_ranked_as_its_rows_are(kind, lambda_per_usd):
    rng = np.random.default_rng(3)
    P, cost = rng.uniform(size=(600, 11)), rng.uniform(size=(600, 11))
    eligible = np.ones(P.shape, dtype=bool)
    if kind == "ties":
        P, cost = np.round(P, 1), np.round(cost, 1)
    if kind in ("ineligible", "unknown costs"):
        eligible = rng.uniform(size=P.shape) < 0.5
    if kind == "unknown costs":
        cost[~eligible] = np.nan
    if kind == "overflow":
        cost *= 1e10
    policy = Utility(lambda_per_usd)
    with np.errstate(over="ignore"):
        together = policy.rank(P, cost, eligible)
        alone = [policy.rank(P[[i]], cost[[i]], eligible[[i]])[0] for i in range(len(P))]
    np.testing.assert_array_equal(together, alone)


def test_fixed_keeps_the_others_as_fallbacks_by_probability():
    ranking, reasons = rank(
        Fixed(1), [[0.9, 0.1, 0.95]] * 2, eligible=[[True, True, True], [True, False, True]]
    )
    assert ranking == [[1, 2, 0], [2, 0, -1]]
    assert reasons == [Reason.FIXED, Reason.FIXED_INELIGIBLE]


@pytest.mark.parametrize(
    ("P", "cost", "eligible", "message"),
    [
        (np.full(2, 0.5), np.ones(2), np.ones(2, bool), "one shape"),
        (np.full((1, 2), 0.5), np.ones((1, 3)), np.ones((1, 2), bool), "one shape"),
        (np.full((1, 2), 0.5), np.ones((1, 2)), np.ones((1, 2)), "must be bool"),
        (np.array([[0.5, np.nan]]), np.ones((1, 2)), np.ones((1, 2), bool), "column 1 is nan"),
        (np.array([[1.5, 0.5]]), np.ones((1, 2)), np.ones((1, 2), bool), r"in \[0, 1\]"),
        (np.full((1, 2), 0.5), np.array([[-1.0, 1.0]]), np.ones((1, 2), bool), ">= 0"),
        (np.full((1, 2), 0.5), np.array([[np.inf, 1.0]]), np.ones((1, 2), bool), "finite"),
    ],
)
def test_arrays_that_cannot_be_ranked_are_refused(P, cost, eligible, message):
    with pytest.raises(RouterError, match=message):
        HighestProbability().rank(P, cost, eligible)


def test_thresholds_and_columns_must_fit_the_matrix():
    with pytest.raises(RouterError, match="2 thresholds, but P has 3"):
        rank(CheapestQualified(np.full(2, 0.5)), [0.5, 0.5, 0.5])
    with pytest.raises(RouterError, match="column 3"):
        rank(Fixed(3), [0.5, 0.5, 0.5])


def test_parameters_out_of_range_are_refused():
    with pytest.raises(ConfigError, match=r"\[0, 1\]"):
        CheapestQualified(np.array([0.5, 1.2]))
    with pytest.raises(ConfigError, match="lambda_per_usd"):
        Utility(-1.0)
    with pytest.raises(ConfigError, match="lambda_per_usd"):
        Utility(float("nan"))


def test_a_threshold_for_an_unknown_model_names_the_known_ones():
    config = CheapestQualifiedConfig(thresholds={"gpt-6": 0.5})
    with pytest.raises(ConfigError, match=r"'gpt-6'.*known: a, b"):
        build_policy(config, model_ids=["a", "b"])
    with pytest.raises(ConfigError, match=r"fixes 'c'.*known: a, b"):
        build_policy(FixedConfig(model="c"), model_ids=["a", "b"])


def test_models_without_a_threshold_of_their_own_get_the_default():
    config = CheapestQualifiedConfig(thresholds={"b": 0.2}, default_threshold=0.7)
    policy = build_policy(config, model_ids=["a", "b", "c"])
    assert policy.thresholds.tolist() == [0.7, 0.2, 0.7]


def test_each_config_builds_its_policy_under_its_name():
    models = ["a", "b"]
    assert build_policy(HighestProbabilityConfig(), model_ids=models).name == "highest_probability"
    fixed = build_policy(FixedConfig(model="b"), model_ids=models, name="pinned")
    assert (fixed.column, fixed.name) == (1, "pinned")


@pytest.mark.parametrize(
    ("preset", "chosen"),
    # probabilities .9 (dear), .7, .55 (cheap)
    [("conservative", 0), ("balanced", 1), ("aggressive", 2), ("none", 0), ("quality", 0)],
)
def test_a_preset_applies_to_every_model_whatever_its_name(preset, chosen):
    policy = build_policy(PRESETS[preset], model_ids=["x", "y", "z"])
    assert rank(policy, [0.9, 0.7, 0.55], [3.0, 2.0, 1.0])[0][0][0] == chosen


# Multiples of 1/64 and small integers are exact in binary, so that no property rests on rounding.
@st.composite
def problems(draw, *, unknown_costs=True):
    n, m = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    cell = st.integers(0, 64).map(lambda k: k / 64)
    price = st.integers(0, 8).map(float)
    if unknown_costs:
        price = price | st.just(float("nan"))

    def matrix(element):
        return np.array(draw(st.lists(element, min_size=n * m, max_size=n * m))).reshape(n, m)

    return matrix(cell), matrix(price), matrix(st.booleans())


def policies(P, cost):
    n_models = P.shape[1]
    grid = st.integers(0, 64).map(lambda k: k / 64)
    return st.one_of(
        st.lists(grid, min_size=n_models, max_size=n_models).map(
            lambda t: CheapestQualified(np.array(t))
        ),
        st.just(HighestProbability()),
        st.sampled_from([0.0] if np.isnan(cost).any() else [0.0, 1 / 8]).map(Utility),
        st.integers(0, n_models - 1).map(Fixed),
    )


@given(problems(), st.data())
@settings(deadline=None, max_examples=80)
def test_a_ranking_is_a_permutation_of_the_eligible(problem, data):
    P, cost, eligible = problem
    ranking = data.draw(policies(P, cost)).rank(P, cost, eligible)
    for row, allowed in zip(ranking.tolist(), eligible, strict=True):
        ranked = row[: allowed.sum()]
        assert sorted(ranked) == np.flatnonzero(allowed).tolist()
        assert row[allowed.sum() :] == [-1] * (~allowed).sum()


@given(problems(), st.data())
@settings(deadline=None, max_examples=80)
def test_a_batch_ranks_as_its_rows_one_by_one(problem, data):
    P, cost, eligible = problem
    policy = data.draw(policies(P, cost))
    one_by_one = [
        policy.rank(P[i : i + 1], cost[i : i + 1], eligible[i : i + 1])[0] for i in range(len(P))
    ]
    np.testing.assert_array_equal(policy.rank(P, cost, eligible), one_by_one)


@given(problems(unknown_costs=False), st.data())
@settings(deadline=None, max_examples=80)
def test_lowering_a_threshold_never_raises_the_cost_where_some_model_qualifies(problem, data):
    P, cost, eligible = problem
    m = P.shape[1]
    grid = st.lists(st.integers(0, 64), min_size=m, max_size=m)
    high = np.array(data.draw(grid)) / 64
    low = np.minimum(high, np.array(data.draw(grid)) / 64)
    before = CheapestQualified(high).rank(P, cost, eligible)[:, 0]
    after = CheapestQualified(low).rank(P, cost, eligible)[:, 0]
    rows = np.flatnonzero(((high <= P) & eligible).any(axis=1))
    assert np.all(cost[rows, after[rows]] <= cost[rows, before[rows]])


@given(problems(unknown_costs=False), st.integers(0, 16), st.integers(0, 16))
@settings(deadline=None, max_examples=80)
def test_a_larger_lambda_never_raises_the_chosen_cost(problem, a, b):
    P, cost, eligible = problem
    small, large = sorted((a / 64, b / 64))
    rows = np.flatnonzero(eligible.any(axis=1))
    before = Utility(small).rank(P, cost, eligible)[rows, 0]
    after = Utility(large).rank(P, cost, eligible)[rows, 0]
    assert np.all(cost[rows, after] <= cost[rows, before])


def test_ranking_is_vectorised():
    rng = np.random.default_rng(0)
    P, cost = rng.random((4096, 11)), rng.random((4096, 11))
    eligible = rng.random((4096, 11)) < 0.9
    policy = CheapestQualified(np.full(11, 0.5))
    fastest = min(_seconds(policy, P, cost, eligible) for _ in range(5))
    assert fastest < 0.1  # about 10 ms; a Python loop over the rows takes several times the bound


def _seconds(policy, P, cost, eligible):
    start = time.perf_counter()
    policy.rank(P, cost, eligible)
    return time.perf_counter() - start


# --------------------------------------------------------------------------- fallback

ABC = ["a", "b", "c"]
SURE_OF_A = np.array([[0.9, 0.5, 0.7]] * 4)
NO_COST = np.full((4, 3), np.nan)
ALL = np.ones((4, 3), dtype=bool)
NOVELTY = np.array([0.0, 0.99, 0.991, 1.0])


def falling_back(model="b", above=0.99, config=HighestProbabilityConfig()):
    fallback = FallbackConfig(model=model, novelty_above=above)
    return build_policy(config.model_copy(update={"fallback": fallback}), model_ids=ABC)


def test_novel_queries_go_to_the_fallback_and_the_others_stay_behind_it_in_order():
    policy = falling_back()
    ranking = policy.rank(SURE_OF_A, NO_COST, ALL, novelty=NOVELTY)
    assert ranking.tolist() == [[0, 2, 1], [0, 2, 1], [1, 0, 2], [1, 0, 2]]
    reasons = policy.reasons(SURE_OF_A, NO_COST, ALL, ranking, novelty=NOVELTY)
    assert reasons == [Reason.HIGHEST_PROBABILITY] * 2 + [Reason.NOVEL_QUERY] * 2


def test_a_fallback_that_cannot_serve_a_query_is_passed_over():
    eligible = ALL.copy()
    eligible[3, 1] = False
    policy = falling_back()
    ranking = policy.rank(SURE_OF_A, NO_COST, eligible, novelty=NOVELTY)
    assert ranking[2].tolist() == [1, 0, 2]
    assert ranking[3].tolist() == [0, 2, -1]
    reasons = policy.reasons(SURE_OF_A, NO_COST, eligible, ranking, novelty=NOVELTY)
    assert reasons[3] is Reason.HIGHEST_PROBABILITY


def test_no_choice_is_called_no_choice_also_for_a_novel_query():
    alone = np.array([[False, True, False]])
    one = (SURE_OF_A[:1], NO_COST[:1], alone)
    ranking = falling_back().rank(*one, novelty=np.ones(1))
    reasons = falling_back().reasons(*one, ranking, novelty=np.ones(1))
    assert reasons == [Reason.ONLY_ELIGIBLE]


@pytest.mark.parametrize(
    "config", [CheapestQualifiedConfig(default_threshold=0.8), UtilityConfig(lambda_per_usd=0.0)]
)
def test_every_rule_can_fall_back(config):
    policy = falling_back(config=config)
    assert policy.rank(SURE_OF_A, NO_COST, ALL, novelty=NOVELTY)[:, 0].tolist() == [0, 0, 1, 1]
    assert policy.name == config.kind
    assert policy.needs_novelty


def test_the_bound_decides_and_one_never_falls_back():
    assert falling_back(above=0.0).rank(SURE_OF_A, NO_COST, ALL, novelty=NOVELTY)[1, 0] == 1
    assert falling_back(above=1.0).rank(SURE_OF_A, NO_COST, ALL, novelty=NOVELTY)[3, 0] == 0


def test_policies_without_a_fallback_do_not_look_at_novelty():
    for policy in (Fixed(0), HighestProbability(), Utility(0.0), CheapestQualified(np.zeros(3))):
        with_novelty = policy.rank(SURE_OF_A, NO_COST, ALL, novelty=NOVELTY)
        np.testing.assert_array_equal(with_novelty, policy.rank(SURE_OF_A, NO_COST, ALL))
        assert not policy.needs_novelty


def test_a_fallback_needs_known_novelty():
    with pytest.raises(ConfigError, match="novelty is not known here"):
        falling_back().rank(SURE_OF_A, NO_COST, ALL)


@pytest.mark.parametrize("novelty", [NOVELTY[:2], NOVELTY + 0.5, np.full(4, np.nan)])
def test_novelty_that_is_none_is_refused(novelty):
    with pytest.raises(RouterError, match=r"4 numbers in \[0, 1\]"):
        falling_back().rank(SURE_OF_A, NO_COST, ALL, novelty=novelty)


def unsure(below, config=HighestProbabilityConfig(), model="c", above=None):
    fallback = FallbackConfig(model=model, confidence_below=below, novelty_above=above)
    return build_policy(config.model_copy(update={"fallback": fallback}), model_ids=ABC)


def ranked(policy, P, eligible=None, novelty=None):
    P = np.array(P)
    eligible = np.ones(P.shape, bool) if eligible is None else np.array(eligible)
    cost = np.full(P.shape, np.nan)
    ranking = policy.rank(P, cost, eligible, novelty)
    return ranking.tolist(), policy.reasons(P, cost, eligible, ranking, novelty)


def test_where_no_probability_reaches_the_bound_the_fallback_comes_first():
    P = [[0.6, 0.3, 0.1], [0.49, 0.4, 0.11], [0.5, 0.3, 0.2]]
    ranking, reasons = ranked(unsure(0.5), P)
    assert ranking == [[0, 1, 2], [2, 0, 1], [0, 1, 2]]
    assert reasons == [
        Reason.HIGHEST_PROBABILITY,
        Reason.LOW_CONFIDENCE,
        Reason.HIGHEST_PROBABILITY,
    ]
    assert not unsure(0.5).needs_novelty


def test_only_eligible_candidates_make_it_sure():
    P, eligible = [[0.9, 0.3, 0.1], [0.9, 0.3, 0.1]], [[False, True, True], [False, True, False]]
    ranking, reasons = ranked(unsure(0.5), P, eligible)
    assert ranking == [[2, 1, -1], [1, -1, -1]]
    assert reasons == [Reason.LOW_CONFIDENCE, Reason.ONLY_ELIGIBLE]


def test_novelty_is_the_reason_where_both_bounds_are_crossed():
    policy = unsure(0.5, above=0.9)
    assert policy.needs_novelty
    P = [[0.4, 0.3, 0.3]] * 3 + [[0.8, 0.1, 0.1]]
    _, reasons = ranked(policy, P, novelty=np.array([0.95, 0.5, 0.9, 0.95]))
    assert reasons == [
        Reason.NOVEL_QUERY,
        Reason.LOW_CONFIDENCE,
        Reason.LOW_CONFIDENCE,
        Reason.NOVEL_QUERY,
    ]


def test_a_bound_on_confidence_alone_does_not_ask_for_novelty():
    assert FallbackConfig(model="a").novelty_above == 0.99
    assert FallbackConfig(model="a", confidence_below=0.5).novelty_above is None
    both = FallbackConfig(model="a", confidence_below=0.5, novelty_above=0.9)
    assert FallbackConfig.model_validate(both.model_dump()) == both
    with pytest.raises(ValueError, match="novelty_above, confidence_below or both"):
        FallbackConfig(model="a", novelty_above=None)
    with pytest.raises(ConfigError, match="confidence_below must be in"):
        WithFallback(HighestProbability(), 0, None, 1.5)


def test_an_unknown_fallback_is_named():
    with pytest.raises(ConfigError, match="falls back to 'x', which this router does not know"):
        falling_back(model="x")


def test_a_fallback_outside_its_range_is_refused():
    with pytest.raises(ConfigError, match=r"novelty_above must be in \[0, 1\]"):
        WithFallback(HighestProbability(), 0, 1.5)
    with pytest.raises(RouterError, match="falls back to column 3"):
        WithFallback(HighestProbability(), 3, 0.5).rank(SURE_OF_A, NO_COST, ALL, novelty=NOVELTY)
