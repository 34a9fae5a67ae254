from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from router_runtime.errors import DataError
from router_training import fitting
from router_training.fitting import (
    FitData,
    HeadConfig,
    KnnConfig,
    LogisticConfig,
    MlpConfig,
    PriorConfig,
    StackConfig,
    XGBoostConfig,
    base_rates,
    check_fit_data,
    fit_head,
    in_memory,
    log_loss,
    standardisation,
)
from router_training.rows import Rows


def good_data() -> FitData:
    X = np.arange(60, dtype=np.float32).reshape(30, 2)
    Y = np.tile([[0.0, 1.0], [1.0, 0.0]], (15, 1))
    return FitData(X, Y, X, Y, ("small", "big"))


def changed(name: str, index: object, value: float) -> FitData:
    array = getattr(good_data(), name).copy()
    array[index] = value
    return replace(good_data(), **{name: array})


def test_good_data_pass():
    check_fit_data(good_data())


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (changed("Y_train", (slice(None), 1), np.nan), "'big' is never scored.*Collect"),
        (changed("Y_train", (slice(None), 0), 1.0), "'small' has one class only.*30 scores are 1"),
        (changed("X_train", (4, 1), np.nan), "training.*row 4, column 1.*embed again"),
        (changed("X_validation", (0, 0), np.inf), "validation.*row 0, column 0"),
        (changed("Y_validation", ..., np.nan), "validation split.*no score.*larger share"),
        (changed("Y_train", (3, 0), 1.5), "'small' in row 3 is 1.5"),
        (replace(good_data(), X_train=np.zeros((30, 2))), "float64"),
        (replace(good_data(), X_train=np.ones((30, 2), np.float32)), "all 30.*the same.*encoder"),
        (replace(good_data(), groups=np.arange(29)), r"30 training rows and groups .*\(29,\)"),
        (replace(good_data(), X_train=np.zeros((29, 2), np.float32)), r"\(29, 2\)"),
        (replace(good_data(), model_ids=("a", "b", "c")), r"\(n, 3\)"),
        (
            replace(
                good_data(), X_train=good_data().X_train[:19], Y_train=good_data().Y_train[:19]
            ),
            "19 training rows; at least 20",
        ),
        (
            replace(
                good_data(), X_validation=good_data().X_train[:0], Y_validation=np.empty((0, 2))
            ),
            "0 rows and no score",
        ),
    ],
)
def test_unusable_data_are_refused_with_model_and_remedy(data, words):
    with pytest.raises(DataError, match=words):
        check_fit_data(data)


def test_a_fold_may_lose_a_class_but_checked_data_may_not():
    fold = changed("Y_train", (slice(None), 0), 1.0).divided(np.arange(10))
    check_fit_data(fold)
    assert len(fold.X_validation) == 10


def test_base_rates_ignore_missing_scores_and_pool_for_a_model_without_any():
    Y = np.array([[1.0, np.nan, np.nan], [0.0, 1.0, np.nan]])
    np.testing.assert_allclose(base_rates(Y), [0.5, 1.0, 2 / 3])


def test_log_loss_by_hand():
    P = np.array([[0.5, 0.25], [0.9, 0.1]])
    Y = np.array([[1.0, np.nan], [np.nan, 0.0]])
    assert log_loss(P, Y) == pytest.approx((np.log(2) - np.log(0.9)) / 2)
    assert np.isnan(log_loss(P, np.full((2, 2), np.nan)))


def test_constant_columns_are_ignored_by_their_scale():
    X = np.array([[1, 0.1, 0], [3, 0.1, 0]], np.float32)
    mean, scale = standardisation(X)
    np.testing.assert_allclose(mean, [2, 0.1, 0], rtol=1e-6)
    np.testing.assert_array_equal(scale, [1, np.inf, np.inf])


def test_the_mlps_defaults_are_the_published_ones():
    config = MlpConfig()
    assert config.hidden_dims == (512, 256, 128)
    assert (config.dropout, config.learning_rate, config.weight_decay) == (0.3, 1e-3, 1e-5)
    assert (config.batch_size, config.epochs, config.patience) == (64, 50, 10)


@pytest.mark.parametrize(
    "value",
    [
        {"kind": "mlp", "dropuot": 0.1},
        {"kind": "mlp", "batch_size": 1},
        {"kind": "knn", "k": []},
        {"kind": "forest"},
        {"kind": "stack", "heads": [{"kind": "stack"}]},
    ],
)
def test_configs_refuse_unknown_kinds_keys_and_values(value):
    with pytest.raises(ValidationError):
        TypeAdapter(HeadConfig).validate_python(value)


def test_a_config_is_chosen_by_its_kind():
    value = {"kind": "stack", "heads": [{"kind": "prior"}, {"kind": "logistic", "C": [0.5]}]}
    config = TypeAdapter(HeadConfig).validate_python(value)
    assert isinstance(config, StackConfig)
    assert [head.kind for head in config.heads] == ["prior", "logistic"]


@pytest.mark.parametrize(
    ("config", "total"),
    [
        (MlpConfig(hidden_dims=(4,), epochs=1, ensemble=2, search=1), 3),
        (XGBoostConfig(n_estimators=2), 2),
        (StackConfig(heads=(LogisticConfig(), PriorConfig()), folds=3), 6),
    ],
)
def test_long_fits_tell_their_progress(config, total):
    told = []
    fit_head(progress_data(), config, seed=0, progress=lambda *step: told.append(step))
    assert told == [(done, total) for done in range(1, total + 1)]


def progress_data() -> FitData:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(80, 3)).astype(np.float32)
    Y = (X[:, :2] > 0).astype(np.float64)
    return FitData(X[:60], Y[:60], X[60:], Y[60:], ("a", "b"))


def on_disk(data: FitData) -> FitData:
    """The same rows, named in one matrix."""
    n = len(data.X_train)
    X = np.concatenate([data.X_train, data.X_validation])
    return replace(
        data,
        X_train=Rows(X, np.arange(n)),
        X_validation=Rows(X, np.arange(n, len(X))),
    )


@pytest.mark.parametrize(
    "config",
    [
        MlpConfig(hidden_dims=(4,), epochs=2, device="cpu"),
        LogisticConfig(C=(0.1,)),
        KnnConfig(k=(5,), components=(2,)),
        XGBoostConfig(n_estimators=3),
        PriorConfig(),
    ],
    ids=lambda config: config.kind,
)
def test_rows_that_are_only_named_give_the_same_head(config):
    data = progress_data()
    files = fit_head(data, config, seed=0).head.to_files("head")
    assert fit_head(on_disk(data), config, seed=0).head.to_files("head") == files


def test_a_head_that_needs_a_matrix_sees_a_bounded_sample(monkeypatch, caplog):
    data = on_disk(progress_data())
    assert len(in_memory(data, seed=0).X_train) == len(data.X_train)
    monkeypatch.setattr(fitting, "MATRIX_ROWS", 15)
    found = in_memory(data, seed=0)
    assert found.X_train.shape == (15, data.n_features)
    assert len(found.Y_train) == len(found.Y_validation) == len(found.X_validation) == 15
    assert "15 random of" in caplog.text
    places = [int(np.flatnonzero((data.X_train.X == row).all(axis=1))[0]) for row in found.X_train]
    np.testing.assert_array_equal(found.Y_train, data.Y_train[places])
    np.testing.assert_array_equal(in_memory(data, seed=0).X_train, found.X_train)
    assert not np.array_equal(in_memory(data, seed=1).X_train, found.X_train)


def test_standardisation_in_chunks_is_that_of_all_rows():
    rng = np.random.default_rng(0)
    X = rng.normal(1000.0, [0.5, 2.0, 0.0], size=(9000, 3)).astype(np.float32)
    mean, scale = standardisation(X)
    np.testing.assert_allclose(mean, X.mean(axis=0, dtype=np.float64), rtol=1e-12)
    np.testing.assert_allclose(scale[:2], X[:, :2].std(axis=0, dtype=np.float64), rtol=1e-9)
    assert np.isinf(scale[2])


def test_a_bad_value_is_found_in_any_chunk():
    X = np.random.default_rng(0).normal(size=(5000, 1)).astype(np.float32)
    Y = (X > 0).astype(np.float64)
    X[4500, 0] = np.inf
    with pytest.raises(DataError, match=r"training.*first in row 4500, column 0"):
        check_fit_data(FitData(X, Y, X[:10], Y[:10], ("a",)))
