"""Fit what tells queries unlike the training data: a projection, reference rows and percentiles.

The projection and the reference rows come from training rows; the distances that become
percentiles are those of held-out rows (validation), never of training rows, each of which is its
own nearest row. Large tables are sampled: ``MAX_PCA_ROWS``, ``MAX_REFERENCE_ROWS`` and
``MAX_HELD_OUT_ROWS`` bound memory and time whatever the number of rows. The percentiles stay right,
because held-out rows are measured against the same reference rows as later queries.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from router_runtime.errors import DataError
from router_runtime.prediction.novelty import (
    N_QUANTILES,
    NoveltyDescription,
    NoveltyModel,
    coordinates,
)
from router_runtime.types import F32, F64, Int
from router_training.config import NoveltyConfig
from router_training.fitting import base_rates

MAX_PCA_ROWS: Final = 8192
MAX_REFERENCE_ROWS: Final = 2048
"""Every query is compared with all of them."""

MAX_HELD_OUT_ROWS: Final = 20_000

_NULL: Final = 1e-6  # of the largest standard deviation: a direction without variance


def fit_novelty(
    X: F32, Y: F64, *, train: Int, held_out: Int, config: NoveltyConfig, seed: int
) -> NoveltyModel:
    """Fit the novelty model.

    Parameters
    ----------
    X : ndarray of shape (n_queries, n_features), float32
        Features; may be memory-mapped, only sampled rows are read.
    Y : ndarray of shape (n_queries, n_models), float64 in [0, 1], NaN = unscored
        Their means over ``train`` are the prior that novel queries get.
    train, held_out : ndarray of int
        Rows of the training part, and rows of the same kind that share no group with them.
    config : NoveltyConfig
    seed : int
        Of the samples.

    Raises
    ------
    DataError
        There are fewer than two training rows, or no held-out ones.
    """
    if len(train) < 2 or not len(held_out):
        raise DataError(
            f"Novelty needs two training rows and one held-out row, not {len(train)} and "
            f"{len(held_out)}. Collect more records, or set 'novelty: {{enabled: false}}'."
        )
    rng = np.random.default_rng(seed)
    mean, components = _principal(_rows(X, train, MAX_PCA_ROWS, rng), config.components)
    reference = coordinates(_rows(X, train, MAX_REFERENCE_ROWS, rng), mean, components)

    def model(distances: F64) -> NoveltyModel:
        return NoveltyModel(
            NoveltyDescription(
                n_features=X.shape[1],
                n_models=Y.shape[1],
                n_components=components.shape[1],
                neighbours=min(config.neighbours, len(reference)),
                shrink_above=config.shrink_above,
            ),
            mean=mean,
            components=components,
            reference=reference,
            distances=distances,
            prior=base_rates(Y[train]),
        )

    unknown = np.zeros(N_QUANTILES)
    distances = model(unknown).distance(_rows(X, held_out, MAX_HELD_OUT_ROWS, rng))
    return model(np.quantile(distances, np.linspace(0.0, 1.0, N_QUANTILES)))


def _rows(X: F32, rows: Int, limit: int, rng: np.random.Generator) -> F32:
    """Return at most ``limit`` of the rows, drawn without replacement, in ascending order."""
    if len(rows) > limit:
        rows = rng.choice(rows, limit, replace=False)
    return np.asarray(X[np.sort(rows)])


def _principal(X: F32, n_components: int) -> tuple[F32, F32]:
    """Return the mean and the leading principal directions as orthonormal columns, float32.

    Directions without variance are left out; one is kept where there is no variance at all.
    """
    mean = X.mean(axis=0, dtype=np.float64)
    centred = X - mean
    variances, directions = np.linalg.eigh(centred.T @ centred)  # ascending
    kept = int(np.count_nonzero(variances > _NULL**2 * max(variances[-1], 0.0)))
    leading = directions[:, ::-1][:, : max(1, min(n_components, kept))]
    return mean.astype(np.float32), np.ascontiguousarray(leading, dtype=np.float32)
