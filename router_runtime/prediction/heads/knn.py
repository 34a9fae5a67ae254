"""The neighbour head: what the models scored on the most similar training queries.

It keeps projections of the training features (at most 64 numbers per row) and their scores, never a
text or a picture.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field

from router_runtime.prediction.heads.base import (
    BaseHead,
    HeadDescription,
    chunks,
    read_tensors,
    write_tensors,
)
from router_runtime.types import F32, F64, Int

_CELLS = 4_000_000  # pairs of query and row, times models, held at a time, should all rows tie


class KnnDescription(HeadDescription):
    """Sizes and rule; see ``KnnHead``."""

    kind: Literal["knn"] = "knn"
    components: int = Field(ge=1, le=64)
    metric: Literal["cosine", "euclidean"]
    k: int = Field(ge=1)
    bandwidth: float = Field(gt=0)
    pseudo_count: float = Field(gt=0)


class KnnHead(BaseHead):
    """Mean score of the ``k`` nearest training rows, weighted by distance, drawn to the base rate.

    With u = distance / bandwidth a neighbour weighs ``exp(-u^2 / 2)``, and ``pseudo_count``
    neighbours of weight 1 that scored the model's base rate are added. The bandwidth is a constant
    of the training data, so a query far from all of it is predicted at the base rates, as is a
    model that none of the neighbours was scored for.

    Rows at the same distance as the k-th nearest all count: which of several copies is used must
    not depend on the rounding of a matrix product, hence on the size of the batch.

    Parameters
    ----------
    description : KnnDescription
        ``metric`` ``cosine`` measures distances between projections scaled to length 1.
    tensors : mapping of str to ndarray
        ``projection`` (n_features, components) and ``center`` (components,): a query is
        ``x @ projection - center``; ``rows`` (n_rows, components), float16, projected training
        queries; ``scores`` (n_rows, n_models), float32, NaN = missing; ``prior`` (n_models,).
    """

    Description = KnnDescription

    def __init__(
        self, description: KnnDescription, tensors: Mapping[str, npt.NDArray[Any]]
    ) -> None:
        super().__init__(description)
        self._knn = description
        self._tensors = dict(tensors)
        self._projection = np.ascontiguousarray(tensors["projection"], dtype=np.float64)
        self._center = np.asarray(tensors["center"], dtype=np.float64)
        self._prior = np.asarray(tensors["prior"], dtype=np.float64)
        # Distances in units of the bandwidth, in float64: rounding then separates equal from near.
        self._rows = np.asarray(tensors["rows"], dtype=np.float64) / description.bandwidth
        self._square = np.square(self._rows).sum(axis=1)
        self._rows_32 = self._rows.astype(np.float32)
        self._square_32 = self._square.astype(np.float32)
        self._largest = float(self._square.max(initial=0.0))
        scores = np.asarray(tensors["scores"], dtype=np.float64)
        self._observed = (~np.isnan(scores)).astype(np.float64)
        self._scores = np.nan_to_num(scores)

    def _probabilities(self, X: F32) -> F64:
        Z = project(X, self._projection, self._center, metric=self._knn.metric)
        Z /= self._knn.bandwidth
        P = np.empty((len(X), self.n_models))
        for part in chunks(len(X), max(1, _CELLS // self._scores.size)):
            P[part] = self._smooth(Z[part])
        return P

    def _smooth(self, Z: F64) -> F64:
        """Return ``P`` for projected queries in units of the bandwidth."""
        near = self._near(Z[0]) if len(Z) == 1 else slice(None)
        D = np.square(Z).sum(axis=1)[:, None] - 2.0 * (Z @ self._rows[near].T) + self._square[near]
        D = np.round(np.maximum(D, 0.0), 9)
        k = min(self._knn.k, D.shape[1])
        farthest = np.partition(D, k - 1, axis=1)[:, k - 1]
        query, row = np.nonzero(D <= farthest[:, None])
        weight = np.exp(-0.5 * D[query, row])[:, None]
        if not isinstance(near, slice):
            row = near[row]
        starts = np.searchsorted(query, np.arange(len(Z)))
        good = _sum_runs(weight * self._scores[row], starts)
        total = _sum_runs(weight * self._observed[row], starts)
        pseudo = self._knn.pseudo_count
        P: F64 = (good + pseudo * self._prior) / (total + pseudo)
        return np.clip(P, 0.0, 1.0)

    def _near(self, z: F64) -> Int:
        """Return rows among which the k nearest are, with all that tie, from float32 distances.

        One query takes as long as its rows take to read, and these are half as long. The margin is
        twice what the rounding of a product of ``components`` numbers and of its terms can be.
        """
        D = self._square_32 - np.float32(2) * (self._rows_32 @ z.astype(np.float32))
        k = min(self._knn.k, len(D))
        rounding = 2 * (self._knn.components + 4) * float(np.finfo(np.float32).eps)
        margin = rounding * (self._largest + float(z @ z))
        return np.flatnonzero(np.partition(D, k - 1)[k - 1] + np.float32(margin) >= D)

    def to_files(self, stem: str) -> dict[str, bytes]:
        """Return ``<stem>.safetensors``."""
        return write_tensors(stem, self._tensors)

    @classmethod
    def from_files(
        cls, description: KnnDescription, files: Mapping[str, bytes], *, stem: str
    ) -> Self:
        """Read ``<stem>.safetensors``."""
        d, r, m = description.n_features, description.components, description.n_models
        shapes: dict[str, tuple[int | None, ...]] = {
            "projection": (d, r),
            "center": (r,),
            "rows": (None, r),
            "scores": (None, m),
            "prior": (m,),
        }
        return cls(description, read_tensors(files, stem, shapes, may_be_nan=frozenset({"scores"})))


def project(X: F32, projection: F64, center: F64, *, metric: str) -> F64:
    """Return ``X @ projection - center``, with rows scaled to length 1 for ``cosine``, float64."""
    Z: F64 = X @ projection - center
    if metric == "cosine":
        Z /= np.maximum(np.linalg.norm(Z, axis=1, keepdims=True), 1e-12)
    return Z


def _sum_runs(values: F64, starts: Int) -> F64:
    """Sum runs of consecutive rows; run i begins at ``starts[i]``, and none is empty."""
    return np.add.reduceat(values, starts, axis=0)
