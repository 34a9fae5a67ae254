from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from router_training.fit_logistic import fit
from router_training.fitting import FitData, LogisticConfig, log_loss, standardisation


def data(n: int = 300) -> FitData:
    rng = np.random.default_rng(0)
    X = (rng.normal(size=(n + 100, 8)) * np.arange(1, 9) + 3).astype(np.float32)
    Y = np.column_stack([X[:, 0] > 3 + rng.normal(size=n + 100), X[:, 7] < 2]).astype(float)
    Y[::7, 1] = np.nan
    return FitData(X[:n], Y[:n], X[n:], Y[n:], ("a", "b"))


@pytest.mark.parametrize("C", [0.01, 1.0])
def test_it_solves_the_problem_that_scikit_learn_solves(C):
    found = data()
    P = fit(found, LogisticConfig(C=(C,)), seed=0).head.predict_proba(found.X_validation)
    mean, scale = standardisation(found.X_train)
    for j in range(2):
        rows = ~np.isnan(found.Y_train[:, j])
        model = LogisticRegression(C=C, tol=1e-8, max_iter=5000)
        model.fit(((found.X_train - mean) / scale)[rows], found.Y_train[rows, j])
        expected = model.predict_proba((found.X_validation - mean) / scale)[:, 1]
        np.testing.assert_allclose(P[:, j], expected, atol=2e-4)


def test_C_is_the_one_with_the_lowest_validation_loss():
    found = data()
    result = fit(found, LogisticConfig(C=(1e-4, 1e-2, 1.0)), seed=0)
    best = min(result.log["path"], key=lambda step: step["validation_loss"])
    assert result.log["C"] == best["C"]
    assert result.settled.C == (best["C"],)
    P = result.head.predict_proba(found.X_validation)
    assert log_loss(P, found.Y_validation) == pytest.approx(best["validation_loss"], abs=1e-5)


def test_the_path_ends_when_validation_worsens_twice():
    rng = np.random.default_rng(0)
    X, Y = rng.normal(size=(80, 40)).astype(np.float32), rng.integers(0, 2, (80, 1)).astype(float)
    noise = FitData(X[:40], Y[:40], X[40:], Y[40:], ("chance",))
    path = fit(noise, LogisticConfig(C=(1e-4, 1e-3, 1e-2, 0.1, 1, 10)), seed=0).log["path"]
    assert len(path) == 3
