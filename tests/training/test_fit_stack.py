from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from router_runtime.errors import DataError
from router_runtime.prediction.heads.base import logit, sigmoid
from router_training.fit_stack import (
    CrossFitted,
    combine,
    cross_fit,
    fit,
    folds_of,
    stack_weights,
)
from router_training.fit_xgboost import fit_rounds
from router_training.fitting import (
    FitData,
    FitResult,
    KnnConfig,
    LogisticConfig,
    MlpConfig,
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
    comparison = fit(data(), StackConfig(heads=HEADS[:2]), seed=0).log["left_out_loss"]
    assert comparison["kept"] == "stack"
    assert comparison["stack"] < min(comparison["members"]) - 0.01


def test_a_member_that_is_clearly_better_alone_is_kept_alone():
    """With an endless pull to equal weights, a member that knows nothing spoils the combination."""
    rng = np.random.default_rng(0)
    Z = 3 * rng.normal(size=(2000, 2))
    Y = (rng.random(Z.shape) < sigmoid(Z)).astype(float)
    head = fit_head(data(), HEADS[0], seed=0).head
    knows = CrossFitted(head, Z, HEADS[0], {})
    guesses = CrossFitted(head, 5 * rng.normal(size=Z.shape), HEADS[1], {})
    kept, log = combine([guesses, knows], Y, shrinkage=1e9)
    assert log["left_out_loss"]["kept"] == "member 1"
    X = data().X_validation
    np.testing.assert_allclose(kept.predict_proba(X), head.predict_proba(X), atol=2e-6)
    assert combine([guesses, knows], Y, shrinkage=1.0)[1]["left_out_loss"]["kept"] == "stack"


def test_weights_are_not_negative_and_shrink_to_equal_ones():
    rng = np.random.default_rng(0)
    L = rng.normal(size=(2, 400, 2))
    Y = (rng.random((400, 2)) < sigmoid(L[0] - L[1])).astype(float)  # the second is misleading
    free, _ = stack_weights(L, Y, shrinkage=1e-3)
    np.testing.assert_allclose(free[1], 0, atol=1e-6)
    assert (free[0] > 0.5).all()
    held, intercept = stack_weights(L, Y, shrinkage=1e7)
    np.testing.assert_allclose(held, 0.5, atol=1e-3)
    np.testing.assert_allclose(intercept, 0, atol=1e-3)


def test_models_with_few_scores_borrow_the_commonstack_weights():
    rng = np.random.default_rng(0)
    z = rng.normal(size=(3000, 3))
    Y = (rng.random((3000, 3)) < sigmoid(z)).astype(float)
    Y[20:, 2] = np.nan
    weight, _ = stack_weights(np.stack([z, rng.normal(size=z.shape)]), Y, shrinkage=5.0)
    assert weight[0, 2] > weight[1, 2] + 0.2
    assert np.abs(weight[:, 2] - weight[:, :2].mean(axis=1)).max() < 0.35


def test_every_row_is_predicted_by_heads_that_have_not_seen_it():
    """A one-neighbour head has seen its own rows: in sample it would know their scores."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(150, 3)).astype(np.float32)
    Y = rng.integers(0, 2, (150, 1)).astype(float)
    chance = FitData(X[:100], Y[:100], X[100:], Y[100:], ("a",))
    nearest = KnnConfig(k=(1,), components=(3,), pseudo_count=0.01)
    fold = folds_of(chance.pooled(), 5, seed=0)
    crossed = cross_fit(chance, nearest, fold, seed=0)
    assert ((crossed.head.predict_proba(X) > 0.5) == Y).mean() == 1.0
    assert crossed.left_out.shape == (150, 1)
    assert 0.3 < ((crossed.left_out > 0) == Y).mean() < 0.7


def test_networks_of_the_folds_are_averaged():
    network = MlpConfig(hidden_dims=(8, 4), epochs=3, ensemble=2)
    fold = folds_of(data().pooled(), 3, seed=0)
    crossed = cross_fit(data(), network, fold, seed=0)
    assert crossed.head.describe()["members"] == 6
    X = data().X_validation
    left_out = crossed.left_out[len(data().X_train) :]
    rows = fold[len(data().X_train) :] == 0
    together = logit(crossed.head.predict_proba(X))[rows]
    assert np.corrcoef(together[:, 0], left_out[rows, 0])[0, 1] > 0.5
    assert not np.allclose(together, left_out[rows])


def test_trees_are_grown_again_to_the_median_of_the_folds_rounds():
    trees = XGBoostConfig(n_estimators=40, learning_rate=0.2, patience=3)
    fold = folds_of(data().pooled(), 3, seed=0)
    crossed = cross_fit(data(), trees, fold, seed=0)
    rounds = np.median([[m["trees"] for m in log["models"]] for log in crossed.log], axis=0)
    again = fit_rounds(data().pooled(), trees, rounds.astype(int).tolist(), seed=0)
    X = data().X_validation
    np.testing.assert_array_equal(crossed.head.predict_proba(X), again.predict_proba(X))
    assert rounds.min() < 40


def test_other_heads_are_fitted_again_on_training_and_validation_rows():
    fold = folds_of(data().pooled(), 3, seed=0)
    rates = cross_fit(data(), PriorConfig(), fold, seed=0).head.predict_proba(data().X_train[:1])
    every = np.concatenate([data().Y_train, data().Y_validation])
    np.testing.assert_allclose(rates[0], np.nanmean(every, axis=0))


def test_too_few_scores_for_the_folds_is_explained():
    Y = data().Y_train.copy()
    Y[5:, 1] = np.nan
    Y[:5, 1] = [0, 1, 0, 1, 0]
    unscored = data().Y_validation.copy()
    unscored[:, 1] = np.nan
    with pytest.raises(DataError, match=r"'b' has 5 scored.*3 folds needs 6"):
        fit(replace(data(), Y_train=Y, Y_validation=unscored), CONFIG, seed=0)


def test_settings_chosen_once_are_not_searched_again():
    config = StackConfig(heads=(LogisticConfig(C=(0.01, 0.1)), KnnConfig()), folds=2)
    settled = fit(data(), config, seed=0).settled
    assert len(settled.heads[0].C) == 1
    assert len(settled.heads[1].k) == 1


def grouped(groups: np.ndarray) -> FitData:
    n = len(groups)
    X, Y = np.zeros((n, 1), dtype=np.float32), np.zeros((n, 1))
    return FitData(X, Y, X[:0], Y[:0], ("a",), groups)


def test_pooled_rows_keep_their_groups_and_a_fold_is_what_validates():
    base = replace(data(), groups=np.arange(500) // 5, validation_groups=np.arange(200) // 2)
    pool = base.pooled()
    assert len(pool.X_train) == len(pool.groups) == 700
    np.testing.assert_array_equal(pool.groups[500:], np.arange(200) // 2)
    part = pool.divided(np.arange(10, 20))
    np.testing.assert_array_equal(part.X_validation, data().X_train[10:20])
    assert len(part.X_train) == 690
    unknown = replace(base, validation_groups=None).pooled().groups
    assert set(unknown[500:]).isdisjoint(unknown[:500])


def test_rows_of_one_group_share_a_fold_and_folds_are_of_even_size():
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 40, 300)
    fold = folds_of(grouped(groups), 5, seed=0)
    assert all(len(set(fold[groups == group])) == 1 for group in set(groups))
    sizes = np.bincount(fold, minlength=5)
    assert sizes.min() > 40
    np.testing.assert_array_equal(fold, folds_of(grouped(groups), 5, seed=0))
    alone = np.bincount(folds_of(grouped(np.arange(301)), 5, seed=0))
    assert alone.max() - alone.min() <= 1


def test_fewer_groups_than_folds_are_refused():
    rng = np.random.default_rng(0)
    X, Y = rng.normal(size=(30, 2)).astype(np.float32), np.tile([[0.0], [1.0]], (15, 1))
    groups = np.arange(30) // 10
    data = FitData(X, Y, X, Y, ("a",), groups=groups, validation_groups=groups)
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
