from __future__ import annotations

import numpy as np
import pytest

from router_training.fit_knn import _principal_components, fit
from router_training.fitting import FitData, KnnConfig, base_rates, log_loss, standardisation


def clusters(n: int = 200) -> FitData:
    """Two kinds of task in twelve dimensions; each model is good at one of them."""
    rng = np.random.default_rng(0)
    kind = rng.integers(0, 2, n + 60)
    X = rng.normal(size=(n + 60, 12)).astype(np.float32)
    X[:, :4] += 4 * kind[:, None]
    Y = np.column_stack([kind, 1 - kind]).astype(float)
    return FitData(X[:n], Y[:n], X[n:], Y[n:], ("ones", "zeros"))


def test_the_setting_with_the_lowest_validation_loss_is_kept():
    data = clusters()
    result = fit(data, KnnConfig(k=(3, 30), components=(1, 8)), seed=0)
    table = result.log["search"]
    assert len(table) == 4
    best = min(table, key=lambda row: row["validation_loss"])
    assert result.log["chosen"] == best
    assert (result.settled.k, result.settled.components) == ((best["k"],), (best["components"],))
    P = result.head.predict_proba(data.X_validation)
    assert log_loss(P, data.Y_validation) == pytest.approx(best["validation_loss"])


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_clusters_are_found(metric):
    data = clusters()
    P = fit(data, KnnConfig(metric=metric), seed=0).head.predict_proba(data.X_validation)
    assert ((P > 0.5) == data.Y_validation).mean() > 0.95


def test_far_from_the_training_data_it_falls_back_to_the_base_rates():
    data = clusters()
    head = fit(data, KnnConfig(metric="euclidean"), seed=0).head
    P = head.predict_proba(np.full((1, 12), 1000, np.float32))
    np.testing.assert_allclose(P[0], base_rates(data.Y_train), atol=1e-6)


def test_it_keeps_at_most_64_numbers_per_row_and_no_features():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 100)).astype(np.float32)
    Y = rng.integers(0, 2, (60, 1)).astype(float)
    head = fit(FitData(X, Y, X, Y, ("a",)), KnnConfig(components=(64,), k=(5,)), seed=0).head
    assert head.describe()["components"] == 64
    assert X[0].tobytes() not in head.to_files("head")["head.safetensors"]


def test_more_components_than_features_means_all_of_them():
    result = fit(clusters(), KnnConfig(components=(16, 64), k=(5,)), seed=0)
    assert [row["components"] for row in result.log["search"]] == [12]


def test_principal_components_are_uncorrelated_and_sorted():
    X = clusters().X_train
    projection, center = _principal_components(X, 5)
    covariance = np.cov((X @ projection - center).T)
    variances = np.diag(covariance)
    np.testing.assert_allclose(covariance, np.diag(variances), atol=1e-4)
    assert (np.diff(variances) <= 0).all()
    mean, scale = standardisation(X)
    np.testing.assert_allclose(
        X @ projection - center, ((X - mean) / scale) @ (projection * scale[:, None]), atol=1e-6
    )


def test_copies_only_are_bearable():
    X = np.tile(np.array([[1.0, 0.0], [0.0, 1.0]], np.float32), (20, 1))
    Y = np.tile([[1.0], [0.0]], (20, 1))
    head = fit(FitData(X, Y, X, Y, ("a",)), KnnConfig(k=(5,)), seed=0).head
    np.testing.assert_allclose(head.predict_proba(X[:2])[:, 0], [1, 0], atol=0.1)
