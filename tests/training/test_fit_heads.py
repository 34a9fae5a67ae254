"""One suite for every kind of head: whatever is fitted must behave the same."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
import pytest

from router_runtime.errors import ArtifactIntegrityError, DataError, QueryError
from router_runtime.prediction.heads.base import HEADS, load_head
from router_training.fitting import (
    FITS,
    FitData,
    FitResult,
    HeadConfig,
    KnnConfig,
    LogisticConfig,
    MlpConfig,
    PriorConfig,
    StackConfig,
    XGBoostConfig,
    base_rates,
    fit_head,
    log_loss,
)

MLP = MlpConfig(
    hidden_dims=(16, 8), dropout=0.1, learning_rate=5e-3, batch_size=32, epochs=15, device="cpu"
)
CONFIGS: dict[str, HeadConfig] = {
    "knn": KnnConfig(k=(5, 20), components=(2, 6)),
    "logistic": LogisticConfig(C=(0.01, 0.1, 1.0)),
    "mlp": MLP.model_copy(update={"ensemble": 2}),
    "prior": PriorConfig(),
    "stack": StackConfig(heads=(LogisticConfig(C=(0.1,)), KnnConfig(k=(20,)), MLP), folds=2),
    "xgboost": XGBoostConfig(n_estimators=40, learning_rate=0.2),
}
KINDS = sorted(CONFIGS)
LEARNERS = [kind for kind in KINDS if kind != "prior"]


@cache
def separable() -> FitData:
    """Three models: good where feature 0 is high, where it is low, and where feature 1 is high.

    Feature 5 is constant and a tenth of the scores is missing.
    """
    rng = np.random.default_rng(0)
    X = rng.normal(size=(400, 6)).astype(np.float32)
    X[:, 5] = 0.5
    Z = np.column_stack([3 * X[:, 0], -3 * X[:, 0], 3 * X[:, 1] + 1])
    Y = (rng.random(Z.shape) < 1 / (1 + np.exp(-Z))).astype(np.float64)
    Y[rng.random(Y.shape) < 0.1] = np.nan
    return FitData(X[:300], Y[:300], X[300:], Y[300:], ("up", "down", "side"))


@cache
def fitted(kind: str) -> FitResult:
    return fit_head(separable(), CONFIGS[kind], seed=3)


def predictions(kind: str) -> np.ndarray:
    return fitted(kind).head.predict_proba(separable().X_validation)


def test_every_kind_has_a_fit_and_a_place_in_this_suite():
    assert set(HEADS) - {"joined"} == set(FITS) == set(CONFIGS)


@pytest.mark.parametrize("kind", LEARNERS)
def test_learns_what_separates_the_models(kind):
    data = separable()
    prior = np.tile(base_rates(data.Y_train), (len(data.X_validation), 1))
    assert log_loss(predictions(kind), data.Y_validation) < 0.85 * log_loss(
        prior, data.Y_validation
    )


def test_prior_predicts_base_rates_everywhere():
    np.testing.assert_array_equal(predictions("prior")[7], base_rates(separable().Y_train))


@pytest.mark.parametrize("kind", KINDS)
def test_probabilities_are_float64_in_the_unit_interval_with_a_row_per_query(kind):
    P = predictions(kind)
    assert P.shape == (100, 3)
    assert P.dtype == np.float64
    assert ((P >= 0) & (P <= 1)).all()
    head = fitted(kind).head
    assert head.predict_proba(np.empty((0, 6), np.float32)).shape == (0, 3)
    assert (head.kind, head.n_features, head.n_models) == (kind, 6, 3)


@pytest.mark.parametrize("kind", KINDS)
def test_extreme_queries_still_get_probabilities(kind):
    X = np.array([[1e6] * 6, [-1e6] * 6], np.float32)
    P = fitted(kind).head.predict_proba(X)
    assert ((P >= 0) & (P <= 1)).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_equals_its_queries_one_by_one(kind):
    X = separable().X_validation
    single = np.vstack([fitted(kind).head.predict_proba(x[None]) for x in X])
    np.testing.assert_allclose(single, predictions(kind), rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_written_and_read_it_predicts_the_same_bits(kind):
    head = fitted(kind).head
    files = head.to_files("head")
    assert all(name.startswith("head") for name in files)
    again = load_head(head.describe(), files)
    np.testing.assert_array_equal(again.predict_proba(separable().X_validation), predictions(kind))
    assert again.describe() == head.describe()
    assert again.to_files("head") == files


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_or_corrupt_file_is_named(kind):
    head = fitted(kind).head
    files = head.to_files("head")
    for name in files:
        for broken in (
            {other: files[other] for other in files if other != name},
            files | {name: files[name][:50]},
            files | {name: b""},
        ):
            with pytest.raises(ArtifactIntegrityError, match=f"'{name}'"):
                load_head(head.describe(), broken)


@pytest.mark.parametrize("kind", KINDS)
def test_a_description_that_does_not_fit_the_file_is_refused(kind):
    head = fitted(kind).head
    description = head.describe() | {"n_models": 4}
    with pytest.raises(Exception, match="head") as caught:
        load_head(description, head.to_files("head"))
    assert type(caught.value).__module__ == "router_runtime.errors"


@pytest.mark.parametrize("kind", KINDS)
def test_fitting_again_with_the_seed_gives_the_same_bits(kind):
    again = fit_head(separable(), CONFIGS[kind], seed=3)
    assert again.head.to_files("head") == fitted(kind).head.to_files("head")


@pytest.mark.parametrize("kind", KINDS)
def test_eight_threads_get_the_same_answers(kind):
    X = separable().X_validation
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: fitted(kind).head.predict_proba(X), range(24)))
    for P in answers:
        np.testing.assert_array_equal(P, predictions(kind))


@pytest.mark.parametrize("kind", ["logistic", "mlp", "prior", "xgboost", "knn"])
def test_a_row_without_scores_is_as_if_it_were_not_there(kind):
    data = separable()
    junk = np.tile(data.X_train[:1], (4, 1))
    nothing = np.full((4, 3), np.nan)
    more = FitData(
        data.X_train,
        data.Y_train,
        np.vstack([data.X_validation, junk]),
        np.vstack([data.Y_validation, nothing]),
        data.model_ids,
    )
    head = fit_head(more, CONFIGS[kind], seed=3).head
    np.testing.assert_allclose(
        head.predict_proba(data.X_validation), predictions(kind), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("kind", ["logistic", "prior", "xgboost"])
def test_a_models_missing_scores_equal_dropping_its_rows(kind):
    """Model 0 alone on its scored rows is model 0 among others with NaN where it was not scored."""
    data = separable()
    config = CONFIGS[kind]
    if kind == "logistic":
        config = LogisticConfig(C=(0.1,))
    if kind == "xgboost":
        config = config.model_copy(update={"subsample": 1.0})
    rows = ~np.isnan(data.Y_train[:, 0])
    X = data.X_train.copy()
    X[~rows] = X[rows][: (~rows).sum()]
    masked = FitData(X, data.Y_train, data.X_validation, data.Y_validation, data.model_ids)
    dropped = FitData(
        X[rows], data.Y_train[rows, :1], data.X_validation, data.Y_validation[:, :1], ("up",)
    )
    P = fit_head(masked, config, seed=3).head.predict_proba(data.X_validation)[:, :1]
    alone = fit_head(dropped, config, seed=3).head.predict_proba(data.X_validation)
    tolerance = 0.02 if kind == "logistic" else 1e-6  # scaling of X saw other rows
    np.testing.assert_allclose(P, alone, rtol=0, atol=tolerance)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("X", "words"),
    [
        (np.zeros((2, 5), np.float32), "5 columns.*6"),
        (np.zeros(6, np.float32), "2-D float32"),
        (np.zeros((1, 6)), "2-D float32.*float64"),
        (np.full((1, 6), np.nan, np.float32), "query 0.*NaN"),
        (np.full((1, 6), np.inf, np.float32), "infinity"),
    ],
)
def test_features_of_another_shape_type_or_with_nan_are_refused(kind, X, words):
    with pytest.raises(QueryError, match=words):
        fitted(kind).head.predict_proba(X)


@pytest.mark.parametrize("kind", KINDS)
def test_soft_scores_are_learned_from(kind):
    data = separable()
    soft = FitData(
        data.X_train,
        0.2 + 0.6 * data.Y_train,
        data.X_validation,
        0.2 + 0.6 * data.Y_validation,
        data.model_ids,
    )
    config = CONFIGS[kind]
    P = fit_head(soft, config, seed=3).head.predict_proba(data.X_validation)
    assert abs(np.nanmean(P) - np.nanmean(soft.Y_validation)) < 0.07


@pytest.mark.parametrize("kind", KINDS)
def test_every_fit_checks_its_data_itself(kind):
    data = separable()
    few = FitData(
        data.X_train[:10], data.Y_train[:10], data.X_validation, data.Y_validation, data.model_ids
    )
    with pytest.raises(DataError, match="10 training rows"):
        fit_head(few, CONFIGS[kind], seed=0)


def test_the_log_is_json():
    import json

    for kind in KINDS:
        json.dumps(fitted(kind).log, allow_nan=False)
