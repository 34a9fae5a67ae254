"""Learn from recorded usage what a call will consume: the verb that makes a ``CostModel``."""

from __future__ import annotations

import numpy as np

from router_runtime.errors import DataError
from router_runtime.prediction.costs import CostModel, LogLinear, size_chars
from router_runtime.types import F64
from router_training.labels import LabelMatrix

MIN_ROWS = 30
"""Below this many recorded calls a model's mean is a better forecast than a regression."""

RIDGE = 1.0
"""Penalty on the standardised coefficients, in rows: keeps collinear sizes from cancelling."""

MARGIN = 1.5
"""Forecasts stay within the observed range widened by this factor on either side."""


def fit_costs(Z: F64, labels: LabelMatrix) -> CostModel:
    """Fit tokens and dollars per call of each model as log-linear functions of the query's size.

    Logarithms, because tokens and dollars grow by factors and are skewed; the expectation is won
    back with Duan's smearing factor, the mean of the exponentiated residuals (Duan, "Smearing
    estimate: a nonparametric retransformation method", JASA 78, 1983), since the exponential of a
    mean logarithm is too low. Calls that consumed nothing (a refusal, a free model) have no
    logarithm: the fit is of the positive ones, times their share (the two-part model of Duan et al.
    1983, "A comparison of alternative models for the demand for medical care", JBES 1).

    A model with fewer than ``MIN_ROWS`` positive records gets their mean, one without records stays
    unknown.

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
        input_tokens_per_char=_fit_columns(Z, labels.input_tokens / size_chars(Z)[:, None]),
        usd=_fit_columns(Z, labels.cost_usd),
    )


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
