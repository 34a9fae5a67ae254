"""Fit one more model's column on top of a fitted head, from some hundred of its scores.

A Bayesian logistic regression on the base head's log odds and on the features' strongest
directions. How much either may say is not chosen but weighed, by the evidence: with few scores
nearly nothing departs from the base rate, and no fold is lost to a choice. That the scores are few
stays visible, as the column's uncertainty.
"""

from __future__ import annotations

import itertools
import logging
from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy.linalg import eigh

from router_runtime.errors import DataError
from router_runtime.prediction.heads.base import logit, sigmoid
from router_runtime.prediction.heads.joined import MAX_COMPONENTS, AddedColumn, added_inputs
from router_runtime.types import F32, F64, Bool, Json
from router_training.fitting import MIN_TRAINING_ROWS, standardisation

logger = logging.getLogger(__name__)

INFLUENCES: Final = (0.01, 0.125, 0.25, 0.5, 1.0, 2.0, 4.0)
"""Tried for the base head and for the features: how far, in log odds, they move a typical query.

The prior standard deviation of their share in the log odds; 0.01 is next to nothing.
"""

INTERCEPT_DEVIATION: Final = 1.0
"""Prior standard deviation of the intercept around the base rate's log odds."""

_NEGLIGIBLE_EVIDENCE = 1e-4
_NEWTON_STEPS = 50
_TOLERANCE = 1e-8  # of the log posterior, in nats


@dataclass(frozen=True)
class AddedFit:
    """A fitted column, and ``log``: what the evidence says about where it comes from."""

    column: AddedColumn
    log: Json


def fit_added(X: F32, P_base: F64, y: F64) -> AddedFit:
    """Fit the column of one more model.

    The posterior over the weights is Laplace's approximation, and the two scales of the prior are
    averaged over a grid with the evidence as weight (MacKay, "The evidence framework applied to
    classification networks", Neural Computation 4, 1992); the mixture is kept as the one Gaussian
    of equal mean and covariance. A score between 0 and 1 counts as that share of a good answer.

    Parameters
    ----------
    X : ndarray of shape (n_queries, n_features), float32
        Features of the scored queries, made as for the base head.
    P_base : ndarray of shape (n_queries, n_base_models), float64 in [0, 1]
        What the base head predicts for them, before calibration. Not calibrated, so that the
        head's files suffice; a map would only bend what is weighed here anyway.
    y : ndarray of shape (n_queries,), float64 in [0, 1], NaN = missing
        Scores of the new model; rows without one are left out.

    Returns
    -------
    AddedFit
        Nothing is random: equal input gives equal output.

    Raises
    ------
    DataError
        Shapes disagree, a score is outside [0, 1], fewer than 20 rows are scored, or all scores
        are the same.
    """
    scored = _checked(X, P_base, y)
    X, P_base, y = X[scored], P_base[scored], y[scored]
    projection, center = _directions(X)
    inputs = added_inputs(X, P_base, projection=projection, center=center)
    to_raw, blocks = _scaling(inputs, n_base=P_base.shape[1])
    F = inputs @ to_raw
    base_rate = (y.sum() + 1.0) / (len(y) + 2.0)
    prior = np.zeros(F.shape[1])
    prior[0] = logit(np.array(base_rate))
    mean, covariance, log = _averaged(F, y, prior, blocks)
    factor = to_raw @ np.linalg.cholesky(covariance)
    log |= {"labels": len(y), "base_rate": float(base_rate), "components": len(center)}
    logger.info("added column: %s", log)
    return AddedFit(AddedColumn(projection, center, to_raw @ mean, factor), log)


def _checked(X: F32, P_base: F64, y: F64) -> Bool:
    """Return which rows are scored, bool (n_queries,)."""
    if not len(X) == len(P_base) == len(y) or y.ndim != 1:
        raise DataError(
            f"Features {X.shape}, base probabilities {P_base.shape} and scores {y.shape} differ in "
            "length; give one row per query."
        )
    scored: Bool = ~np.isnan(y)
    known = y[scored]
    if ((known < 0) | (known > 1)).any():
        raise DataError("A score lies outside [0, 1]; scale the scores.")
    if len(known) < MIN_TRAINING_ROWS:
        raise DataError(
            f"The new model has {len(known)} scores; at least {MIN_TRAINING_ROWS} are needed. "
            "Score more queries."
        )
    if np.ptp(known) == 0:
        raise DataError(
            f"All {len(known)} scores of the new model are {known[0]:g}, so that nothing can be "
            "learned. Score queries that it answers otherwise."
        )
    return scored


def _directions(X: F32) -> tuple[F32, F64]:
    """Return (n_features, r) and (r,): principal components of the standardised features.

    Directions in which the rows do not differ are left out.
    """
    mean, scale = standardisation(X)
    Z = (X - mean) / scale
    last = X.shape[1] - 1
    first = max(0, last - MAX_COMPONENTS + 1)
    values, vectors = eigh(Z.T @ Z, subset_by_index=(first, last))
    if values[-1] <= 0:
        raise DataError("The features of all scored queries are the same. Check the encoder.")
    vectors = vectors[:, ::-1][:, values[::-1] > 1e-8 * values[-1]]
    projection = (vectors / scale[:, None]).astype(np.float32)
    return projection, mean @ projection.astype(np.float64)


def _scaling(inputs: F64, *, n_base: int) -> tuple[F64, list[slice]]:
    """Return the matrix from raw to scaled inputs, and the columns of the two blocks.

    Log odds are standardised, all are centred, and each block is divided by the root of its mean
    squared length, so that one prior deviation means the same for both.
    """
    size = inputs.shape[1]
    blocks = [slice(1, 1 + n_base), slice(1 + n_base, size)]
    center = inputs.mean(axis=0)
    scale = np.ones(size)
    scale[blocks[0]] = np.maximum(inputs[:, blocks[0]].std(axis=0), 1e-9)
    for block in blocks:
        centred = (inputs[:, block] - center[block]) / scale[block]
        scale[block] *= max(float(np.sqrt(np.square(centred).sum(axis=1).mean())), 1e-9)
    to_raw = np.diag(1.0 / scale)
    to_raw[0, 1:] = -center[1:] / scale[1:]
    to_raw[0, 0] = 1.0
    return to_raw, blocks


def _averaged(F: F64, y: F64, prior: F64, blocks: list[slice]) -> tuple[F64, F64, Json]:
    """Return mean and covariance of the weights, averaged over the grid by the evidence."""
    grid = list(itertools.product(INFLUENCES, repeat=len(blocks)))
    fits = []
    for influences in grid:
        precision = np.full(len(prior), INTERCEPT_DEVIATION**-2)
        for block, influence in zip(blocks, influences, strict=True):
            precision[block] = influence**-2
        fits.append(_laplace(F, y, prior, precision))
    evidence = np.array([fit[2] for fit in fits])
    share = np.exp(evidence - evidence.max())
    share = np.where(share > _NEGLIGIBLE_EVIDENCE, share, 0.0)
    share /= share.sum()
    used = [(share[i], *fits[i][:2]) for i in np.flatnonzero(share)]
    mean = np.sum([weight * found for weight, found, _ in used], axis=0)
    covariance = np.zeros((len(prior), len(prior)))
    for weight, found, hessian in used:
        covariance += weight * (np.linalg.inv(hessian) + np.outer(found - mean, found - mean))
    log = {
        name: float(share @ np.array([influences[k] for influences in grid]))
        for k, name in enumerate(("influence_of_base", "influence_of_features"))
    }
    return mean, (covariance + covariance.T) / 2.0, log


def _laplace(F: F64, y: F64, prior: F64, precision: F64) -> tuple[F64, F64, float]:
    """Return the most probable weights, the Hessian there, and the log evidence but a constant.

    Damped Newton steps on the (convex) negative log posterior.
    """

    def cost(weights: F64) -> float:
        Z = F @ weights
        fit = np.sum(np.logaddexp(0.0, Z) - y * Z)
        return float(fit + 0.5 * np.sum(precision * np.square(weights - prior)))

    weights, value = prior, cost(prior)
    for _ in range(_NEWTON_STEPS):
        step = np.linalg.solve(*_newton(F, y, weights, prior, precision))
        size = 1.0
        while (found := cost(weights - size * step)) > value and size > 1e-4:
            size /= 2.0
        gain = value - found
        if gain <= 0:
            break
        weights, value = weights - size * step, found
        if gain < _TOLERANCE:
            break
    hessian, _ = _newton(F, y, weights, prior, precision)
    volume = np.sum(np.log(precision)) - np.linalg.slogdet(hessian)[1]
    return weights, hessian, -value + 0.5 * float(volume)


def _newton(F: F64, y: F64, weights: F64, prior: F64, precision: F64) -> tuple[F64, F64]:
    """Return Hessian and gradient of the negative log posterior."""
    P = sigmoid(F @ weights)
    hessian = (F * (P * (1.0 - P))[:, None]).T @ F + np.diag(precision)
    return hessian, F.T @ (P - y) + precision * (weights - prior)
