"""Fit the calibration: per model, the map that cross-validation shows to be worth having."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, TypeAlias

import numpy as np
from scipy.optimize import minimize, minimize_scalar
from sklearn.isotonic import IsotonicRegression

from router_runtime.errors import ConfigError, DataError
from router_runtime.prediction.calibration import (
    CalibrationMap,
    Calibrator,
    IsotonicMap,
    NoneMap,
    SigmoidMap,
    TemperatureMap,
)
from router_runtime.prediction.heads.base import logit, sigmoid
from router_runtime.types import F64, Json

logger = logging.getLogger(__name__)

Method: TypeAlias = Literal["auto", "none", "temperature", "sigmoid", "isotonic"]

MIN_ISOTONIC_ROWS = 1000
FULL_TRUST_ROWS = 50
_PRIOR_ROWS = 10.0  # weight of the head's own mean probability in a model's estimated prior
_EPS = 1e-6


def fit_calibration(
    P: F64,
    Y: F64,
    *,
    model_ids: Sequence[str],
    method: Method = "auto",
    folds: int = 5,
    seed: int = 0,
) -> tuple[Calibrator, Json]:
    """Fit one map per model on rows that the head has not been fitted on.

    With ``auto``, a map replaces "none" only if its cross-validated log loss is lower by more than
    one standard error of the paired difference; of several such maps the lowest loss wins.
    Isotonic maps need 1,000 rows: with fewer they follow the noise. A model with fewer than 50 rows
    is drawn to its prior by ``(1 - rows / 50) / 2``, half way at most, because the head has
    learned from other rows what its handful here cannot refute; one with no row at all keeps the
    head's probabilities.

    Parameters
    ----------
    P : ndarray of shape (n_queries, n_models), float64 in [0, 1]
        Uncalibrated probabilities of the calibration rows.
    Y : ndarray of shape (n_queries, n_models), float64 in [0, 1], NaN = missing
        Their scores.
    model_ids : sequence of str
        Column order.
    method : str
        A fixed map for all models, or ``auto``.
    folds : int
        Cross-validation folds, at least 2; used by ``auto``.
    seed : int
        Decides the folds.

    Returns
    -------
    Calibrator
        Maps in column order.
    list of dict
        Per model: ``n`` rows, ``chosen`` map, ``cv_loss`` per tried map (mean log loss in nats),
        ``shrinkage``, and a ``note`` where something kept a map from being fitted.

    Raises
    ------
    DataError
        Shapes do not agree, or values lie outside [0, 1].
    ConfigError
        The method is unknown or ``folds`` is below 2.
    """
    _check(P, Y, model_ids, method, folds)
    maps, log = [], []
    for j, model_id in enumerate(model_ids):
        rng = np.random.default_rng([seed, j])
        scored = ~np.isnan(Y[:, j])
        fitted, entry = _fit_model(P[scored, j], Y[scored, j], method, folds, rng)
        maps.append(fitted)
        log.append({"model_id": model_id} | entry)
        logger.info("calibration of %s: %s", model_id, entry)
    return Calibrator(tuple(maps)), log


def _check(P: F64, Y: F64, model_ids: Sequence[str], method: str, folds: int) -> None:
    if method != "auto" and method not in _FITS:
        raise ConfigError(
            f"Unknown calibration method '{method}' (known: auto, {', '.join(_FITS)})."
        )
    if folds < 2:
        raise ConfigError(f"Calibration is cross-validated with at least 2 folds, not {folds}.")
    if P.ndim != 2 or P.shape != Y.shape or P.shape[1] != len(model_ids):
        raise DataError(
            f"Calibration needs a probability and a score per row and model: probabilities have "
            f"shape {P.shape}, scores {Y.shape}, and there are {len(model_ids)} models."
        )
    if not ((P >= 0) & (P <= 1)).all():
        raise DataError("Probabilities to calibrate must lie in [0, 1]; check the head.")
    if not (np.isnan(Y) | ((Y >= 0) & (Y <= 1))).all():
        raise DataError("Scores to calibrate on must lie in [0, 1] or be missing (NaN).")


def _fit_model(
    p: F64, y: F64, method: Method, folds: int, rng: np.random.Generator
) -> tuple[CalibrationMap, dict[str, Json]]:
    n = len(y)
    if n == 0:
        note = "no scored row in the calibration split; the head's probabilities are kept"
        return NoneMap(), {"n": 0, "chosen": "none", "cv_loss": {}, "shrinkage": 0.0, "note": note}
    note = ""
    cv_loss: dict[str, float] = {}
    if method == "auto":
        chosen, cv_loss = _choose(p, y, folds, rng)
    elif method == "isotonic" and n < MIN_ISOTONIC_ROWS:
        chosen = "sigmoid"
        note = f"isotonic needs {MIN_ISOTONIC_ROWS} rows; sigmoid is used instead"
    else:
        chosen = method
    shrinkage = max(0.0, (1 - n / FULL_TRUST_ROWS) / 2)
    prior = float((y.sum() + _PRIOR_ROWS * p.mean()) / (n + _PRIOR_ROWS))
    fitted = _FITS[chosen](p, y).model_copy(update={"prior": prior, "shrinkage": shrinkage})
    entry = {"n": n, "chosen": chosen, "cv_loss": cv_loss, "shrinkage": shrinkage}
    return fitted, entry | ({"note": note} if note else {})


def _choose(p: F64, y: F64, folds: int, rng: np.random.Generator) -> tuple[str, dict[str, float]]:
    """Return the winning map and the cross-validated log loss of each that was tried."""
    n = len(y)
    methods = ["none", "temperature", "sigmoid"]
    methods += ["isotonic"] if n >= MIN_ISOTONIC_ROWS else []
    if n < 2 * folds:
        return "none", {}
    fold = rng.permutation(n) % folds
    losses = {name: np.empty(n) for name in methods}
    for k in range(folds):
        held_out, rest = fold == k, fold != k
        for name in methods:
            fitted = Calibrator((_FITS[name](p[rest], y[rest]),))
            calibrated = fitted.apply(p[held_out, None])[:, 0]
            losses[name][held_out] = _row_losses(calibrated, y[held_out])
    winner = "none"
    for name in methods[1:]:
        gain = losses["none"] - losses[name]
        standard_error = gain.std(ddof=1) / np.sqrt(n)
        if gain.mean() > standard_error and losses[name].mean() < losses[winner].mean():
            winner = name
    return winner, {name: float(loss.mean()) for name, loss in losses.items()}


def _row_losses(p: F64, y: F64) -> F64:
    p = np.clip(p, _EPS, 1 - _EPS)
    return -(y * np.log(p) + (1 - y) * np.log1p(-p))


def _smooth(y: F64) -> F64:
    """Draw scores in from 0 and 1 by about one row, after Platt (1999).

    Keeps maps finite where all scores are equal or the classes separate.
    """
    good, bad = y.sum(), len(y) - y.sum()
    return np.asarray(y * (good + 1) / (good + 2) + (1 - y) / (bad + 2))


def _fit_none(p: F64, y: F64) -> CalibrationMap:
    return NoneMap()


def _fit_temperature(p: F64, y: F64) -> CalibrationMap:
    z, target = logit(p), _smooth(y)

    def loss(log_temperature: float) -> float:
        scaled = z * np.exp(-log_temperature)
        return float(np.mean(np.logaddexp(0.0, scaled) - target * scaled))

    found = minimize_scalar(loss, bounds=(np.log(0.05), np.log(20.0)), method="bounded")
    return TemperatureMap(temperature=float(np.exp(found.x)))


def _fit_sigmoid(p: F64, y: F64) -> CalibrationMap:
    z, target = logit(p), _smooth(y)

    def loss(parameters: F64) -> tuple[float, F64]:
        slope, intercept = parameters
        scaled = slope * z + intercept
        residual = sigmoid(scaled) - target
        value = np.mean(np.logaddexp(0.0, scaled) - target * scaled)
        return float(value), np.array([np.mean(residual * z), np.mean(residual)])

    bounds = [(0.0, 20.0), (-20.0, 20.0)]
    found = minimize(loss, np.array([1.0, 0.0]), jac=True, method="L-BFGS-B", bounds=bounds)
    return SigmoidMap(slope=float(found.x[0]), intercept=float(found.x[1]))


def _fit_isotonic(p: F64, y: F64) -> CalibrationMap:
    """Fit a step function and keep its knots, never nearer to 0 or 1 than half a row."""
    floor = 1.0 / (2.0 * len(y))
    regression = IsotonicRegression(y_min=floor, y_max=1 - floor).fit(p, y)
    x, first = np.unique(regression.X_thresholds_, return_index=True)
    heights = np.maximum.accumulate(regression.y_thresholds_[first])
    return IsotonicMap(x=tuple(x.tolist()), y=tuple(heights.tolist()))


_FITS: Mapping[str, Callable[[F64, F64], CalibrationMap]] = {
    "none": _fit_none,
    "temperature": _fit_temperature,
    "sigmoid": _fit_sigmoid,
    "isotonic": _fit_isotonic,
}
