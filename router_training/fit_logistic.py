"""Fit the linear head: masked, soft-label logistic regressions with an L2 penalty."""

from __future__ import annotations

import logging

import numpy as np
from scipy.optimize import minimize

from router_runtime.prediction.heads.base import logit, sigmoid
from router_runtime.prediction.heads.logistic import LogisticHead
from router_runtime.types import F64
from router_training.fitting import (
    FitData,
    FitResult,
    LogisticConfig,
    base_rates,
    check_fit_data,
    in_memory,
    log_loss,
    standardisation,
)

logger = logging.getLogger(__name__)


def fit(data: FitData, config: LogisticConfig, *, seed: int) -> FitResult:
    """Fit all models at once on standardised features, for each ``C`` of the grid.

    The path runs from the strongest penalty to the weakest, each step starting at the solution of
    the one before, and ends when validation has become worse twice in a row. ``C`` is common to all
    models: chosen per model, it would follow the noise of a small validation split.

    Parameters
    ----------
    data : FitData
        Missing scores are masked; scores may be soft.
    config : LogisticConfig
        The grid of ``C``.
    seed : int
        Decides which rows are used where there are more than ``fitting.MATRIX_ROWS``; the problem
        is convex and the optimiser deterministic.

    Returns
    -------
    FitResult
        A ``LogisticHead`` on unscaled features; the log has the validation log loss per ``C``.

    Raises
    ------
    DataError
        See ``fitting.check_fit_data``.
    """
    check_fit_data(data)
    data = in_memory(data, seed=seed)
    mean, scale = standardisation(data.X_train)
    X = (data.X_train - mean) / scale
    X_validation = (data.X_validation - mean) / scale
    # Start at the base rates, the solution for an infinite penalty.
    weights = np.vstack(
        [np.zeros((data.n_features, data.n_models)), logit(base_rates(data.Y_train))]
    )
    best, best_loss, worse, path = weights, float("inf"), 0, []
    for C in sorted(config.C):
        weights = _solve(X, data.Y_train, C, start=weights, max_iterations=config.max_iterations)
        loss = log_loss(sigmoid(X_validation @ weights[:-1] + weights[-1]), data.Y_validation)
        path.append({"C": C, "validation_loss": loss})
        logger.info("C = %g: validation log loss %.4f", C, loss)
        worse = 0 if loss < best_loss else worse + 1
        if loss < best_loss:
            best, best_loss = weights, loss
        if worse == 2:
            break
    weight = best[:-1] / scale[:, None]
    C = min(path, key=lambda step: step["validation_loss"])["C"]
    head = LogisticHead(weight, best[-1] - mean @ weight)
    return FitResult(head, {"C": C, "path": path}, config.model_copy(update={"C": (C,)}))


def _solve(X: F64, Y: F64, C: float, *, start: F64, max_iterations: int) -> F64:
    """Minimise, summed over models, C * (summed log loss) + |w|^2 / 2; the intercept is free.

    The objective of a model is divided by C times its observed rows, so that models with many and
    with few scores are equally far from their optimum when L-BFGS stops. Returns
    (n_features + 1, n_models), intercepts last.
    """
    observed = ~np.isnan(Y)
    counts = np.maximum(observed.sum(axis=0), 1)
    per_row = observed / counts
    penalty = 1.0 / (C * counts)
    scores = np.where(observed, Y, 0.0)

    def objective(flat: F64) -> tuple[float, F64]:
        weights = flat.reshape(start.shape)
        Z = X @ weights[:-1] + weights[-1]
        # log(1 + exp(z)) - y z is the log loss of a soft score y.
        loss = np.sum(per_row * (np.logaddexp(0.0, Z) - scores * Z))
        loss += 0.5 * np.sum(penalty * np.square(weights[:-1]))
        residual = per_row * (sigmoid(Z) - scores)
        gradient = np.vstack([X.T @ residual + penalty * weights[:-1], residual.sum(axis=0)])
        return float(loss), gradient.ravel()

    options = {"maxiter": max_iterations, "maxcor": 20, "ftol": 1e-9, "gtol": 1e-6}
    found = minimize(objective, start.ravel(), jac=True, method="L-BFGS-B", options=options)
    return np.asarray(found.x).reshape(start.shape)
