from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, f1_score, roc_auc_score
from sklearn.metrics import log_loss as sklearn_log_loss

from router_runtime.errors import DataError
from router_training.labels import LabelMatrix
from router_training.metrics import (
    actual_cost,
    auc,
    best_single_model,
    calibration_error,
    check_aligned,
    cost_forecast,
    histogram,
    outcome,
    probability_metrics,
    reliability_bins,
)

NAN = float("nan")


def all_eligible(Y):
    return np.ones(np.shape(Y), bool)


# --------------------------------------------------------------------------- probabilities


def test_auc_counts_the_pairs_in_order_and_half_the_ties():
    # positives .8 .5, negatives .5 .1: pairs 1, 1, 1/2, 1 of 4
    p = np.array([0.8, 0.5, 0.5, 0.1])
    assert auc(p, np.array([True, True, False, False])) == 3.5 / 4


def test_auc_of_one_class_is_undefined():
    assert np.isnan(auc(np.array([0.2, 0.9]), np.array([True, True])))
    assert np.isnan(auc(np.array([]), np.array([], dtype=bool)))


def test_measures_by_hand():
    m = probability_metrics(np.array([0.9, 0.6, 0.4, 0.2]), np.array([1.0, 0.0, 1.0, 0.0]))
    # predicted + + - -, true + - + -: one hit of two, one false alarm
    assert (m.n, m.accuracy, m.f1, m.positive_rate) == (4, 0.5, 0.5, 0.5)
    assert m.auc == 0.75
    assert m.brier == pytest.approx((0.01 + 0.36 + 0.36 + 0.04) / 4)
    assert m.log_loss == pytest.approx(-np.log([0.9, 0.4, 0.4, 0.8]).mean())


def test_scores_between_are_classes_at_one_half_and_numbers_elsewhere():
    m = probability_metrics(np.array([0.7, 0.3]), np.array([0.5, 0.25]))
    assert (m.accuracy, m.positive_rate, m.auc) == (1.0, 0.5, 1.0)
    assert m.brier == pytest.approx((0.04 + 0.0025) / 2)


def test_unscored_cells_count_nowhere():
    p, y = np.array([[0.9, 0.5], [0.2, 0.6]]), np.array([[1.0, NAN], [0.0, NAN]])
    assert probability_metrics(p, y) == probability_metrics(p[:, 0], y[:, 0])


def test_with_nothing_scored_every_measure_is_undefined():
    m = probability_metrics(np.full(3, 0.5), np.full(3, NAN))
    assert m.n == 0
    assert np.isnan([m.auc, m.accuracy, m.f1, m.brier, m.log_loss, m.ece]).all()


@given(st.integers(0, 10**6))
@settings(deadline=None, max_examples=25)
def test_measures_agree_with_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    p = rng.integers(1, 20, 60) / 20  # ties on purpose
    y = (rng.random(60) < p).astype(float)
    y[:2] = 0, 1
    m = probability_metrics(p, y)
    assert m.auc == pytest.approx(roc_auc_score(y, p))
    assert m.f1 == pytest.approx(f1_score(y, p >= 0.5))
    assert m.brier == pytest.approx(brier_score_loss(y, p))
    assert m.log_loss == pytest.approx(sklearn_log_loss(y, np.clip(p, 1e-7, 1 - 1e-7)))


def test_calibration_error_by_hand():
    # two bins of two: means .1 and .9 forecast, .5 and 1 observed
    p, y = np.array([0.1, 0.1, 0.9, 0.9]), np.array([0.0, 1.0, 1.0, 1.0])
    assert calibration_error(p, y, n_bins=2) == pytest.approx((0.4 + 0.1) / 2)


def test_a_constant_forecast_has_the_calibration_error_of_its_mean():
    y = np.tile([0.0, 1.0], 300)
    assert calibration_error(np.full(600, 0.5), y) == 0
    assert calibration_error(np.full(600, 0.8), y) == pytest.approx(0.3)


def test_reliability_bins_by_hand():
    # the tie at .2 shares a bin, which leaves the third of four empty
    p, y = np.array([0.1, 0.2, 0.2, 0.9]), np.array([0.0, 0.0, 1.0, 1.0])
    bins = reliability_bins(p, y, n_bins=4)
    assert bins.tolist() == [[0.1, 0.0, 1], [0.2, 0.5, 2], [0.9, 1.0, 1]]
    assert calibration_error(p, y, n_bins=4) == pytest.approx((0.1 + 2 * 0.3 + 0.1) / 4)


@given(st.integers(0, 10**6))
@settings(deadline=None, max_examples=25)
def test_the_calibration_error_is_the_mean_gap_of_the_reliability_bins(seed):
    rng = np.random.default_rng(seed)
    p, y = rng.integers(0, 30, 100) / 30, rng.random(100)
    bins = reliability_bins(p, y)
    gaps = np.abs(bins[:, 0] - bins[:, 1])
    assert bins[:, 2].sum() == 100
    assert calibration_error(p, y) == pytest.approx(np.average(gaps, weights=bins[:, 2]))


def test_reliability_bins_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    p = rng.permutation(300) / 300  # without ties the bins of both are equal
    y = (rng.random(300) < p).astype(float)
    observed, predicted = calibration_curve(y, p, n_bins=15, strategy="quantile")
    bins = reliability_bins(p, y)
    np.testing.assert_allclose(bins[:, 0], predicted)
    np.testing.assert_allclose(bins[:, 1], observed)
    assert bins[:, 2].tolist() == [20.0] * 15


def test_a_histogram_counts_in_twentieths_and_one_belongs_to_the_last():
    counts = histogram(np.array([0.0, 0.049, 0.05, 0.5, 1.0]))
    assert len(counts) == 20
    assert (counts[0], counts[1], counts[10], counts[19], sum(counts)) == (2, 1, 1, 1, 5)


def test_forecasts_of_cost_by_hand():
    # 2 for 1 and 3 for 4; free and unrecorded calls have no relative error
    expected, recorded = np.array([2.0, 3.0, 1.0, 9.0]), np.array([1.0, 4.0, 0.0, NAN])
    mape, bias = cost_forecast(expected, recorded)
    assert mape == pytest.approx((1 / 1 + 1 / 4) / 2)
    assert bias == pytest.approx(6 / 5 - 1)


def test_without_recorded_costs_the_forecast_has_no_error():
    assert np.isnan(cost_forecast(np.ones(3), np.full(3, NAN))).all()


# --------------------------------------------------------------------------- choices


def test_an_outcome_leaves_out_unscored_choices_and_counts_them():
    Y = np.array([[1.0, 0.0], [0.5, NAN], [1.0, 1.0], [0.0, 0.0]])
    cost = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0], [7.0, 8.0]])
    result = outcome(np.array([0, 1, 1, -1]), Y, cost)
    assert (result.quality, result.cost) == (
        1.0,
        3.5,
    )  # rows 0 and 2: scores 1 and 1, costs 1 and 6
    assert (result.n_scored, result.n_unscored, result.n_unserved) == (2, 1, 1)


def test_recorded_dollars_stand_before_expected_ones_but_not_beside_factors():
    unknown = np.full((1, 2), NAN)
    labels = LabelMatrix(
        ("a", "b"), np.ones((1, 2)), np.array([[0.5, NAN]]), unknown, unknown, unknown
    )
    expected = np.array([[0.1, 0.2]])
    assert actual_cost(labels, expected).tolist() == [[0.5, 0.2]]
    assert actual_cost(labels, expected, cost_unit="relative").tolist() == [[0.1, 0.2]]


def test_the_best_single_model_is_the_cheaper_of_equals():
    Y, cost = np.ones((4, 3)), np.tile([3.0, 1.0, 2.0], (4, 1))
    assert best_single_model(Y, cost, all_eligible(Y)) == 1


def test_a_model_that_cannot_serve_every_query_is_not_the_best_single_one():
    Y, cost = np.array([[1.0, 0.5], [1.0, 0.5]]), np.ones((2, 2))
    assert best_single_model(Y, cost, np.array([[True, True], [False, True]])) == 1


def test_a_few_lucky_scores_do_not_make_the_best_single_model():
    Y = np.column_stack([np.tile([1.0, 0.0], 5), [1.0] + [NAN] * 9])
    assert best_single_model(Y, np.ones(Y.shape), all_eligible(Y)) == 0


def test_nothing_scored_has_no_best_single_model():
    Y = np.full((2, 2), NAN)
    assert best_single_model(Y, np.ones((2, 2)), all_eligible(Y)) is None


def test_labels_of_other_models_or_shapes_are_refused():
    labels = LabelMatrix.of_scores(("a", "b"), np.ones((3, 2)))
    good, short = np.ones((3, 2)), np.ones((2, 2))
    with pytest.raises(DataError, match="labels are of a, b, the probabilities of b, a"):
        check_aligned(good, labels, good, good > 0, model_ids=("b", "a"))
    with pytest.raises(DataError, match="differ in shape"):
        check_aligned(good, labels, short, good > 0, model_ids=("a", "b"))
