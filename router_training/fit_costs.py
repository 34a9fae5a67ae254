"""Learn from recorded usage what a call will consume: the verb that makes a ``CostModel``."""

from __future__ import annotations

import numpy as np
from scipy.optimize import nnls

from router_runtime.errors import DataError
from router_runtime.prediction.costs import (
    SIZE_NAMES,
    Additive,
    CostModel,
    LogLinear,
    size_amounts,
)
from router_runtime.pricing import CHARS_PER_TOKEN
from router_runtime.types import F64
from router_training.labels import LabelMatrix

MIN_ROWS = 30
"""Below this many recorded calls a model's mean is a better forecast than a regression."""

RIDGE = 1.0
"""Penalty on the standardised coefficients, in rows: keeps collinear sizes from cancelling."""

REWEIGHTINGS = 5
"""Rounds after which the weights of ``_fit_additive`` have settled."""

MARGIN = 1.5
"""Forecasts stay within the observed range widened by this factor on either side."""


def fit_costs(Z: F64, labels: LabelMatrix) -> CostModel:
    """Fit tokens and dollars per call of each model as functions of the query's size.

    Input tokens add up: so many per character, picture, newline and digit, and the model's own
    preamble. A sum without negative terms holds for sizes that were never recorded, too.

    Output tokens and dollars are log-linear, because they grow by factors and are skewed; the
    expectation is won back with Duan's smearing factor, the mean of the exponentiated residuals
    (Duan, "Smearing estimate: a nonparametric retransformation method", JASA 78, 1983), since the
    exponential of a mean logarithm is too low. Calls that consumed nothing (a refusal, a free
    model) have no logarithm: the fit is of the positive ones, times their share (the two-part model
    of Duan et al. 1983, "A comparison of alternative models for the demand for medical care", JBES
    1).

    A model with fewer than ``MIN_ROWS`` positive records of these gets their mean. One without
    records stays unknown.

    Parameters
    ----------
    Z : ndarray of shape (n_samples, n_sizes)
        ``query_sizes`` of the samples.
    labels : LabelMatrix
        NaN in ``cost_usd``, ``input_tokens`` and ``output_tokens`` means not recorded.

    Raises
    ------
    DataError
        ``Z`` and ``labels`` have different numbers of rows.
    """
    if len(Z) != len(labels.Y):
        raise DataError(f"There are sizes of {len(Z)} queries but labels of {len(labels.Y)}.")
    return CostModel(
        model_ids=tuple(labels.model_ids),
        output_tokens=_fit_columns(Z, labels.output_tokens),
        input_tokens=_fit_additive(Z, labels.input_tokens, per_char=1.0 / CHARS_PER_TOKEN),
        usd=_fit_columns(Z, labels.cost_usd),
        usd_beyond=_fit_additive(Z, labels.cost_usd, per_char=0.0),
        largest=Z.max(axis=0, initial=0.0),
    )


def _fit_additive(Z: F64, values: F64, *, per_char: float) -> Additive:
    amounts = size_amounts(Z)
    return Additive(np.array([_fit_sum(amounts, column, per_char) for column in values.T]))


def _fit_sum(amounts: F64, y: F64, per_char: float) -> F64:
    """Return what each unit adds, (n_sizes,), >= 0: least squares of the relative error.

    The weights are 1 / forecast and not 1 / record, which would make forecasts too low. ``RIDGE``
    rows draw characters to ``per_char`` each and all else but pictures to 0, so that what all
    records have in common goes to their pictures, if each has some, and few records are enough.
    """
    recorded = np.isfinite(y)
    if not recorded.any():
        return np.full(amounts.shape[1], np.nan)
    amounts, y = amounts[recorded], y[recorded]
    mean = float(y.mean())
    if mean == 0:
        return np.zeros(amounts.shape[1])
    typical = amounts.mean(axis=0)
    typical[SIZE_NAMES.index("n_images")] = 0.0
    usual = np.zeros(len(typical))
    usual[SIZE_NAMES.index("log1p_chars")] = per_char
    pull = np.diag(typical) * np.sqrt(RIDGE) / mean
    forecast = np.full(len(y), mean)
    for _ in range(REWEIGHTINGS):
        weight = 1.0 / np.maximum(forecast, 1e-3 * mean)
        rows = np.vstack([amounts * weight[:, None], pull])
        coefficients, _ = nnls(rows, np.concatenate([y * weight, pull @ usual]))
        forecast = amounts @ coefficients
    return np.asarray(coefficients, dtype=np.float64)


def _fit_columns(Z: F64, values: F64) -> LogLinear:
    fitted = [_fit_column(Z, column) for column in values.T]
    return LogLinear(
        coefficients=np.array([coefficients for coefficients, *_ in fitted]),
        scale=np.array([scale for _, scale, *_ in fitted]),
        low=np.array([low for *_, low, _ in fitted]),
        high=np.array([high for *_, high in fitted]),
    )


def _fit_column(Z: F64, y: F64) -> tuple[F64, float, float, float]:
    """Return coefficients, scale and bounds of one model."""
    recorded = y[np.isfinite(y)]
    if len(recorded) == 0:
        return np.full(Z.shape[1], np.nan), np.nan, np.nan, np.nan
    positive = np.isfinite(y) & (y > 0)
    share = float(positive.sum() / len(recorded))
    low, high = float(recorded.min() / MARGIN), float(recorded.max() * MARGIN)
    if positive.sum() < MIN_ROWS:
        return np.zeros(Z.shape[1]), float(recorded.mean()), low, high
    Zp, log_y = Z[positive], np.log(y[positive])
    coefficients = _ridge(Zp, log_y)
    smearing = float(np.exp(log_y - Zp @ coefficients).mean())
    return coefficients, share * smearing, low, high


def _ridge(Z: F64, target: F64) -> F64:
    """Ridge regression on standardised columns; the first, constant one is the free intercept."""
    centre, spread = Z.mean(axis=0), Z.std(axis=0)
    varies = spread > 1e-9
    scaled = (Z - centre)[:, varies] / spread[varies]
    gram = scaled.T @ scaled + RIDGE * np.eye(scaled.shape[1])
    slopes = np.zeros(Z.shape[1])
    slopes[varies] = np.linalg.solve(gram, scaled.T @ (target - target.mean())) / spread[varies]
    slopes[0] = target.mean() - centre @ slopes
    return slopes
