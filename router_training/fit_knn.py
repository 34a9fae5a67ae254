"""Fit the neighbour head: a projection, a bandwidth and ``k``, chosen on validation."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh

from router_runtime.prediction.heads.knn import KnnDescription, KnnHead, project
from router_runtime.types import F32, F64, Int, Json
from router_training.fitting import (
    FitArrays,
    FitData,
    FitResult,
    KnnConfig,
    base_rates,
    check_fit_data,
    in_memory,
    log_loss,
    standardisation,
)

logger = logging.getLogger(__name__)

_BANDWIDTH_ROWS = 1000
_SMALLEST_BANDWIDTH = 1e-3  # where most rows are copies of others
_FLOAT16_MAX = float(np.finfo(np.float16).max)


def fit(data: FitData, config: KnnConfig, *, seed: int) -> FitResult:
    """Try each number of components and each ``k``; keep the lowest validation log loss.

    The projection is onto the principal components of the standardised training features. The
    bandwidth is the median distance of a training row to its k-th nearest other row, so that within
    the training data all neighbours count, and beyond it ever less.

    Parameters
    ----------
    data : FitData
        Missing scores stay missing.
    config : KnnConfig
        The grid. A ``k`` above half the training rows is not tried, unless it is the smallest.
    seed : int
        Decides on which training rows the bandwidth is measured.

    Returns
    -------
    FitResult
        A ``KnnHead``; the log has the validation log loss per setting.

    Raises
    ------
    DataError
        See ``fitting.check_fit_data``.
    """
    check_fit_data(data)
    data = in_memory(data, seed=seed)
    n = len(data.X_train)
    sample = np.random.default_rng(seed).permutation(n)[:_BANDWIDTH_ROWS]
    widest = min(max(config.components), data.n_features)
    projection, center = _principal_components(data.X_train, widest)
    smallest = min(config.k)
    heads: list[KnnHead] = []
    table: list[dict[str, Json]] = []
    for components in sorted({min(r, widest) for r in config.components}):
        tensors = _tensors(data, projection[:, :components], center[:components], config.metric)
        for k in sorted({k for k in config.k if k <= n // 2 or k == smallest}):
            description = KnnDescription(
                n_features=data.n_features,
                n_models=data.n_models,
                components=components,
                metric=config.metric,
                k=k,
                bandwidth=_bandwidth(tensors["rows"], sample, k),
                pseudo_count=config.pseudo_count,
            )
            heads.append(KnnHead(description, tensors))
            loss = log_loss(heads[-1].predict_proba(data.X_validation), data.Y_validation)
            table.append({"components": components, "k": k, "validation_loss": loss})
            logger.info("kNN: %s", table[-1])
    best = min(range(len(table)), key=lambda i: float(table[i]["validation_loss"]))
    chosen = table[best]
    settled = config.model_copy(update={"k": (chosen["k"],), "components": (chosen["components"],)})
    return FitResult(heads[best], {"chosen": chosen, "search": table}, settled)


def _principal_components(X: F32, n_components: int) -> tuple[F64, F64]:
    """Return (n_features, r) and (r,): ``X @ first - second`` are the r strongest components."""
    mean, scale = standardisation(X)
    Z = (X - mean) / scale
    last = X.shape[1] - 1
    _, vectors = eigh(Z.T @ Z, subset_by_index=(last - n_components + 1, last))
    projection = vectors[:, ::-1] / scale[:, None]
    return projection, mean @ projection


def _tensors(data: FitArrays, projection: F64, center: F64, metric: str) -> dict[str, NDArray[Any]]:
    projection = projection.astype(np.float32).astype(np.float64)  # as the head will read it
    rows = project(data.X_train, projection, center, metric=metric)
    return {
        "projection": projection.astype(np.float32),
        "center": center,
        "rows": np.clip(rows, -_FLOAT16_MAX, _FLOAT16_MAX).astype(np.float16),
        "scores": data.Y_train.astype(np.float32),
        "prior": base_rates(data.Y_train),
    }


def _bandwidth(rows: NDArray[np.float16], sample: Int, k: int) -> float:
    """Return the median distance of the sampled rows to their k-th nearest other row."""
    Z = rows.astype(np.float64)
    square = np.square(Z).sum(axis=1)
    D = square[sample, None] - 2.0 * (Z[sample] @ Z.T) + square
    k = min(k, len(Z) - 1)  # position 0 is the row itself
    nearest = np.sqrt(np.maximum(np.partition(D, k, axis=1)[:, k], 0.0))
    return float(max(np.median(nearest), _SMALLEST_BANDWIDTH))
