from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import xgboost

from router_runtime.errors import ArtifactIntegrityError, DataError, MissingDependencyError
from router_runtime.prediction.heads.base import load_head
from router_runtime.prediction.heads.xgboost import XGBoostHead
from router_training.fit_xgboost import fit
from router_training.fitting import FitData, XGBoostConfig, log_loss

FAST = XGBoostConfig(n_estimators=60, learning_rate=0.3, patience=5)


def data() -> FitData:
    """Model a: good inside a ring (no linear head sees it); model b: pure chance."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(500, 4)).astype(np.float32)
    ring = np.hypot(X[:, 0], X[:, 1]) < 1.2
    Y = np.column_stack([ring, rng.random(500) < 0.5]).astype(float)
    return FitData(X[:350], Y[:350], X[350:], Y[350:], ("a", "b"))


def test_what_is_not_linear_is_learned_and_boosters_end_at_their_best_round():
    result = fit(data(), FAST, seed=0)
    P = result.head.predict_proba(data().X_validation)
    assert ((P[:, 0] > 0.5) == data().Y_validation[:, 0]).mean() > 0.85
    a, b = result.log["models"]
    assert b["trees"] < a["trees"] <= 60
    for j, entry in enumerate((a, b)):
        loss = log_loss(P[:, [j]], data().Y_validation[:, [j]])
        assert loss == pytest.approx(entry["validation_loss"], abs=1e-5)


def test_a_model_without_validation_scores_gets_the_median_number_of_trees():
    Y = data().Y_validation.copy()
    Y[:, 1] = np.nan
    a, b = fit(replace(data(), Y_validation=Y), FAST, seed=0).log["models"]
    assert b["trees"] == a["trees"]
    assert b["validation_loss"] is None


def test_a_fold_with_one_class_is_fitted_and_one_without_scores_is_explained():
    fold = data().divided(np.flatnonzero(data().Y_train[:, 0] != 1))
    assert (fit(fold, FAST, seed=0).head.predict_proba(data().X_validation)[:, 0] > 0.9).all()
    empty = replace(fold, Y_train=np.full_like(fold.Y_train, np.nan))
    with pytest.raises(DataError, match=r"'a'. Use fewer folds"):
        fit(empty, FAST, seed=0)


@pytest.mark.parametrize("models", [1, 2])
def test_the_head_predicts_to_the_bit_what_each_booster_predicts_alone(models):
    some = data()
    some = replace(
        some,
        Y_train=some.Y_train[:, :models],
        Y_validation=some.Y_validation[:, :models],
        model_ids=some.model_ids[:models],
    )
    head = fit(some, FAST, seed=0).head
    X = np.random.default_rng(1).normal(size=(300, 4)).astype(np.float32)
    alone = [
        xgboost.Booster(model_file=bytearray(raw)).inplace_predict(X)
        for raw in head.to_files("head").values()
    ]
    np.testing.assert_array_equal(head.predict_proba(X), np.column_stack(alone))
    np.testing.assert_array_equal(head.predict_proba(X[:1]), head.predict_proba(X)[:1])
    assert head.predict_proba(X[:0]).shape == (0, models)


def test_an_xgboost_that_cannot_join_boosters_is_refused_with_the_remedy():
    class Old(xgboost.Booster):
        """Writes one base score as XGBoost before 3.1, which misreads a list of them."""

        def save_raw(self, raw_format="ubj"):
            return bytearray(
                super().save_raw(raw_format).replace(b'score":"[5E-1]"', b'score":"5E-1"')
            )

    matrix = xgboost.DMatrix(np.eye(4), label=[0, 1, 0, 1])
    raw = xgboost.train({"objective": "binary:logistic", "base_score": 0.5}, matrix, 1).save_raw()
    with pytest.raises(MissingDependencyError, match=r"xgboost >= 3\.1.*model-router\[train\]"):
        XGBoostHead([Old(model_file=raw)], n_features=4)


def test_a_changed_booster_is_refused_before_xgboost_reads_it():
    head = fit(data(), FAST, seed=0).head
    files = head.to_files("head")
    raw = bytearray(files["head-1.ubj"])
    raw[len(raw) // 2] ^= 1
    with pytest.raises(ArtifactIntegrityError, match=r"'head-1.ubj' was changed"):
        load_head(head.describe(), files | {"head-1.ubj": bytes(raw)})


def test_boosters_of_another_width_are_refused():
    head = fit(data(), FAST, seed=0).head
    with pytest.raises(ArtifactIntegrityError, match=r"\[4\] features, expected 9"):
        load_head(head.describe() | {"n_features": 9}, head.to_files("head"))
