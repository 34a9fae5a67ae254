from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from router_runtime.errors import DataError
from router_runtime.prediction.heads.base import sigmoid
from router_training.fit_stack import _folds, _left_out_logits, _weights, fit
from router_training.fitting import (
    FitData,
    FitResult,
    KnnConfig,
    LogisticConfig,
    PriorConfig,
    StackConfig,
    XGBoostConfig,
    fit_head,
    log_loss,
)

HEADS = (
    LogisticConfig(C=(0.1,)),
    KnnConfig(k=(20,), components=(4,)),
    XGBoostConfig(n_estimators=40, learning_rate=0.2),
    PriorConfig(),
)
CONFIG = StackConfig(heads=HEADS, folds=3)


@cache
def data() -> FitData:
    """Odds with a linear part and a bump, which no single member has both of."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(900, 5)).astype(np.float32)
    bump = 4.0 * (np.hypot(X[:, 1], X[:, 2]) < 1) - 2
    Z = np.column_stack([1.5 * X[:, 0] + bump, bump - 1.5 * X[:, 0]])
    Y = (rng.random(Z.shape) < sigmoid(Z)).astype(float)
    Y[rng.random(Y.shape) < 0.1] = np.nan
    return FitData(X[:500], Y[:500], X[500:700], Y[500:700], ("a", "b"))


@cache
def new_rows() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    X = rng.normal(size=(2000, 5)).astype(np.float32)
    bump = 4.0 * (np.hypot(X[:, 1], X[:, 2]) < 1) - 2
    Z = np.column_stack([1.5 * X[:, 0] + bump, bump - 1.5 * X[:, 0]])
    return X, (rng.random(Z.shape) < sigmoid(Z)).astype(float)


@cache
def result() -> FitResult:
    return fit(data(), CONFIG, seed=0)


def test_on_new_rows_it_is_not_clearly_worse_than_its_best_member():
    X, Y = new_rows()
    members = [log_loss(fit_head(data(), head, seed=0).head.predict_proba(X), Y) for head in HEADS]
    assert log_loss(result().head.predict_proba(X), Y) < min(members) + 0.02


def test_a_combination_that_is_better_than_its_members_is_kept():
    """The linear head knows one half of the odds and the neighbours the other."""
    combined = fit(data(), StackConfig(heads=HEADS[:2]), seed=0)
    comparison = combined.log["validation_loss"]
    assert comparison["kept"] == "stack"
    assert comparison["stack"] < min(comparison["members"]) - 0.01
    P = combined.head.predict_proba(data().X_validation)
    assert log_loss(P, data().Y_validation) == pytest.approx(comparison["stack"])


def test_a_member_that_is_better_alone_is_kept_alone():
    """Scores of one half: the head that is least sure wins, and that is no combination."""
    flat = replace(data(), Y_validation=np.full_like(data().Y_validation, 0.5))
    kept = fit(flat, CONFIG, seed=0)
    comparison = kept.log["validation_loss"]
    best = int(np.argmin(comparison["members"]))
    assert comparison["kept"] == f"member {best}"
    alone = fit_head(flat, HEADS[best], seed=0).head
    np.testing.assert_allclose(
        kept.head.predict_proba(flat.X_validation),
        alone.predict_proba(flat.X_validation),
        atol=2e-6,
    )


def test_weights_are_not_negative_and_shrink_to_equal_ones():
    rng = np.random.default_rng(0)
    L = rng.normal(size=(2, 400, 2))
    Y = (rng.random((400, 2)) < sigmoid(L[0] - L[1])).astype(float)  # the second is misleading
    free, _ = _weights(L, Y, shrinkage=1e-3)
    np.testing.assert_allclose(free[1], 0, atol=1e-6)
    assert (free[0] > 0.5).all()
    held, intercept = _weights(L, Y, shrinkage=1e7)
    np.testing.assert_allclose(held, 0.5, atol=1e-3)
    np.testing.assert_allclose(intercept, 0, atol=1e-3)


def test_models_with_few_scores_borrow_the_common_weights():
    rng = np.random.default_rng(0)
    z = rng.normal(size=(3000, 3))
    Y = (rng.random((3000, 3)) < sigmoid(z)).astype(float)
    Y[20:, 2] = np.nan
    weight, _ = _weights(np.stack([z, rng.normal(size=z.shape)]), Y, shrinkage=5.0)
    assert weight[0, 2] > weight[1, 2] + 0.2
    assert np.abs(weight[:, 2] - weight[:, :2].mean(axis=1)).max() < 0.35


def test_every_row_is_predicted_by_heads_that_have_not_seen_it():
    """A one-neighbour head has seen its own rows: in sample it would know their scores."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(100, 3)).astype(np.float32)
    Y = rng.integers(0, 2, (100, 1)).astype(float)
    chance = FitData(X, Y, X, Y, ("a",))
    nearest = KnnConfig(k=(1,), components=(3,), pseudo_count=0.01)
    inside = fit_head(chance, nearest, seed=0).head.predict_proba(X)
    left_out = sigmoid(_left_out_logits(chance, [nearest], 5, 0)[0])
    assert ((inside > 0.5) == Y).mean() == 1.0
    assert 0.3 < ((left_out > 0.5) == Y).mean() < 0.7


def test_too_few_scores_for_the_folds_is_explained():
    Y = data().Y_train.copy()
    Y[5:, 1] = np.nan
    Y[:5, 1] = [0, 1, 0, 1, 0]
    with pytest.raises(DataError, match=r"'b' has 5 scored.*3 folds needs 6"):
        fit(replace(data(), Y_train=Y), CONFIG, seed=0)


def test_settings_chosen_once_are_not_searched_again():
    config = StackConfig(heads=(LogisticConfig(C=(0.01, 0.1)), KnnConfig()), folds=2)
    settled = fit(data(), config, seed=0).settled
    assert len(settled.heads[0].C) == 1
    assert len(settled.heads[1].k) == 1


def test_rows_of_one_group_share_a_fold_and_folds_are_of_even_size():
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 40, 300)
    fold = _folds(groups, 5, 0)
    assert all(len(set(fold[groups == group])) == 1 for group in set(groups))
    sizes = np.bincount(fold, minlength=5)
    assert sizes.min() > 40
    np.testing.assert_array_equal(fold, _folds(groups, 5, 0))
    alone = np.bincount(_folds(np.arange(301), 5, 0))
    assert alone.max() - alone.min() <= 1


def test_fewer_groups_than_folds_are_refused():
    rng = np.random.default_rng(0)
    X, Y = rng.normal(size=(30, 2)).astype(np.float32), np.tile([[0.0], [1.0]], (15, 1))
    data = FitData(X, Y, X, Y, ("a",), groups=np.arange(30) // 10)
    with pytest.raises(DataError, match=r"3 groups.*5 folds"):
        fit(data, StackConfig(heads=(PriorConfig(),)), seed=0)


def test_a_member_that_recognises_its_group_is_not_trusted_for_it():
    """Each query stands there twice, with one random score: neighbours know it only by its twin."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(150, 8)).astype(np.float32)
    Y = (rng.random((150, 1)) < 0.5).astype(float)
    V, Z = rng.normal(size=(80, 8)).astype(np.float32), (rng.random((80, 1)) < 0.5).astype(float)
    data = FitData(np.repeat(X, 2, axis=0), np.repeat(Y, 2, axis=0), V, Z, ("a",))
    config = StackConfig(heads=(KnnConfig(k=(2,), pseudo_count=0.1), PriorConfig()))

    def weight_of_knn(some):
        return fit(some, config, seed=0).log["weight"][0][0]

    fooled, honest = weight_of_knn(data), weight_of_knn(replace(data, groups=np.arange(300) // 2))
    assert honest < 0.5 * fooled
