from __future__ import annotations

import numpy as np
import pytest

from router_runtime.errors import DataError
from router_runtime.prediction.heads.base import sigmoid
from router_runtime.prediction.heads.joined import deviation, moderated
from router_training.fit_added import fit_added
from router_training.metrics import auc


def problem(n: int, *, of_base: float = 0.0, of_features: float = 0.0, seed: int = 0):
    """Features, base probabilities and scores whose log odds follow either, and those log odds."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, 10)).astype(np.float32) * np.linspace(3, 0.5, 10, dtype=np.float32)
    P_base = sigmoid(rng.normal(size=(n, 2)))
    truth = 0.5 + of_features * X[:, 0] / 3 + of_base * np.log(P_base / (1 - P_base))[:, 0]
    return X, P_base, (rng.random(n) < sigmoid(truth)).astype(float), truth


def served(fit, X, P_base):
    return moderated(*fit.column.log_odds(X, P_base))


def test_what_the_base_head_finds_hard_is_found_hard():
    X, P, y, _ = problem(300, of_base=2.0)
    fit = fit_added(X, P, y)
    X_new, P_new, _, truth = problem(2000, of_base=2.0, seed=1)
    assert auc(served(fit, X_new, P_new), truth > 0) > 0.95
    assert fit.log["influence_of_base"] > 1 > fit.log["influence_of_features"]


def test_what_the_features_say_is_learned_where_the_base_head_says_nothing():
    X, P, y, _ = problem(300, of_features=3.0)
    fit = fit_added(X, P, y)
    X_new, P_new, _, truth = problem(2000, of_features=3.0, seed=1)
    assert auc(served(fit, X_new, P_new), truth > 0) > 0.9
    assert fit.log["influence_of_features"] > 1 > fit.log["influence_of_base"]


@pytest.mark.parametrize("seed", range(5))
def test_where_there_is_nothing_to_learn_the_base_rate_is_predicted(seed):
    X, P, y, _ = problem(100, seed=seed)
    p = served(fit_added(X, P, y), *problem(1000, seed=seed + 50)[:2])
    rate = sigmoid(np.array(0.5))
    assert np.mean((p - rate) ** 2) < 0.012  # Brier score above that of the truth, at most


def test_fewer_scores_are_wider_uncertainty():
    X, P, _, _ = problem(1000, of_base=1.0, seed=1)
    widths = []
    for n in (50, 200, 800):
        fit = fit_added(*problem(n, of_base=1.0)[:3])
        widths.append(deviation(*fit.column.log_odds(X, P)).mean())
    assert widths[0] > widths[1] > widths[2] > 0


def test_the_uncertainty_is_about_as_large_as_the_error():
    X, P, _, truth = problem(2000, of_base=1.0, seed=1)
    errors, widths = [], []
    for seed in range(8):
        fit = fit_added(*problem(100, of_base=1.0, seed=100 + seed)[:3])
        errors.append(np.mean((served(fit, X, P) - sigmoid(truth)) ** 2))
        widths.append(np.mean(deviation(*fit.column.log_odds(X, P)) ** 2))
    assert 0.5 < np.mean(widths) / np.mean(errors) < 2


def test_equal_input_gives_equal_bits():
    first, second = (fit_added(*problem(120, of_base=1.0)[:3]).column.tensors() for _ in "ab")
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])


def test_unscored_rows_are_left_out():
    X, P, y, _ = problem(120, of_base=1.0)
    some = y.copy()
    some[::3] = np.nan
    kept = ~np.isnan(some)
    first = fit_added(X, P, some)
    second = fit_added(X[kept], P[kept], y[kept])
    assert first.log == second.log
    assert first.log["labels"] == 80
    np.testing.assert_array_equal(first.column.mean, second.column.mean)


def test_the_base_rate_is_shrunken_by_one_score_of_either_kind():
    X, P, _, _ = problem(28)
    y = np.array([0.0] + [1.0] * 27)
    assert fit_added(X, P, y).log["base_rate"] == pytest.approx(28 / 30)


def test_a_half_score_twice_is_a_good_and_a_bad_answer():
    X, P, y, _ = problem(60, of_base=1.0)
    X, P = np.tile(X, (2, 1)), np.tile(P, (2, 1))
    unsure = np.arange(60) < 20
    halves = np.where(unsure, 0.5, y)
    one_each = np.concatenate([np.where(unsure, 1.0, y), np.where(unsure, 0.0, y)])
    soft = fit_added(X, P, np.tile(halves, 2))
    hard = fit_added(X, P, one_each)
    np.testing.assert_allclose(soft.column.mean, hard.column.mean, rtol=1e-6, atol=1e-9)


def test_copies_of_a_query_leave_fewer_directions():
    X, P, y, _ = problem(40)
    X = X[np.arange(40) % 4]
    fit = fit_added(X, P, y)
    assert fit.log["components"] == 3
    assert np.isfinite(served(fit, *problem(50, seed=2)[:2])).all()


def test_more_features_than_scores_are_fine():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(40, 500)).astype(np.float32)
    fit = fit_added(X, np.full((40, 2), 0.5), (np.arange(40) % 2).astype(float))
    assert fit.log["components"] == 39


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda X, P, y: (X, P, y[:-1]), "length"),
        (lambda X, P, y: (X, P, y + 0.5), "outside"),
        (lambda X, P, y: (X, P, np.where(np.arange(60) < 41, np.nan, y)), "19 scores"),
        (lambda X, P, y: (X, P, np.ones(60)), "All 60 scores of the new model are 1"),
        (lambda X, P, y: (np.zeros_like(X), P, y), "features of all scored queries are the same"),
    ],
)
def test_what_cannot_be_learned_from_is_refused(change, message):
    with pytest.raises(DataError, match=message):
        fit_added(*change(*problem(60)[:3]))
