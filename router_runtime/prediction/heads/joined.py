"""A head with columns that were added after it was fitted, each with its uncertainty.

``router_training.fit_added`` fits a column from some hundred scores of one more model; the other
models' columns stay what they were, to the bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from router_runtime.errors import ArtifactError
from router_runtime.prediction.heads.base import (
    CHUNK_ROWS,
    RESTORE,
    BaseHead,
    HeadDescription,
    check_features,
    chunks,
    load_head,
    logit,
    read_tensors,
    sigmoid,
    write_tensors,
)
from router_runtime.prediction.heads.knn import project
from router_runtime.types import F32, F64, Head

MAX_COMPONENTS: Final = 64

LOGIT_EPS: Final = 1e-3
"""Clip of the base head's probabilities: one that is certain counts 6.9 in log odds, no more."""

_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(32)
_WEIGHTS = _WEIGHTS / _WEIGHTS.sum()


class AddedDescription(BaseModel):
    """Size of one added column."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    components: int = Field(ge=1, le=MAX_COMPONENTS)


class JoinedDescription(HeadDescription):
    """The base head's description, and one entry per added column, in order."""

    kind: Literal["joined"] = "joined"
    base: dict[str, Any]
    added: tuple[AddedDescription, ...] = Field(min_length=1)


@dataclass(frozen=True, eq=False)
class AddedColumn:
    """A Gaussian over the log odds of one model, linear in what is known of a query.

    ``f = [1, logit(P_base), z] @ weights`` with ``weights ~ N(mean, factor @ factor.T)``, where
    ``P_base`` are the base head's probabilities before calibration and ``z`` the query projected
    onto a few directions and scaled to length 1. So the new model is told from the others by what
    they find hard, and by the features themselves.

    Parameters
    ----------
    projection : ndarray of shape (n_features, n_components), float32
    center : ndarray of shape (n_components,), float64
        ``z`` is the direction of ``x @ projection - center``.
    mean : ndarray of shape (1 + n_base_models + n_components,), float64
    factor : ndarray of shape (1 + n_base_models + n_components, the same), float64
        A square root of the covariance.
    """

    projection: F32
    center: F64
    mean: F64
    factor: F64

    def log_odds(self, X: F32, P_base: F64) -> tuple[F64, F64]:
        """Return mean and variance of ``f``, each float64 (n_queries,)."""
        inputs = added_inputs(X, P_base, projection=self.projection, center=self.center)
        return inputs @ self.mean, np.square(inputs @ self.factor).sum(axis=1)

    def tensors(self) -> dict[str, F32 | F64]:
        """Return what is kept of the column."""
        return {
            "projection": self.projection,
            "center": self.center,
            "mean": self.mean,
            "factor": self.factor,
        }


def added_inputs(X: F32, P_base: F64, *, projection: F32, center: F64) -> F64:
    """Return ``[1, logit(P_base), z]``, float64 (n_queries, 1 + n_base_models + n_components)."""
    Z = project(X, np.asarray(projection, dtype=np.float64), center, metric="cosine")
    return np.hstack([np.ones((len(X), 1)), logit(P_base, eps=LOGIT_EPS), Z])


def moderated(mean: F64, variance: F64) -> F64:
    """Return the expectation of ``sigmoid(f)`` for ``f ~ N(mean, variance)``, same shape.

    The closed form of MacKay, "The evidence framework applied to classification networks" (Neural
    Computation 4, 1992): the less is known, the nearer to one half.
    """
    return sigmoid(mean / np.sqrt(1.0 + np.pi * variance / 8.0))


def deviation(mean: F64, variance: F64) -> F64:
    """Return the standard deviation of ``sigmoid(f)`` for ``f ~ N(mean, variance)``, same shape.

    By Gauss-Hermite quadrature.
    """
    P = sigmoid(mean[:, None] + np.sqrt(variance)[:, None] * _NODES)
    around = np.square(P - (P @ _WEIGHTS)[:, None])
    result: F64 = np.sqrt(around @ _WEIGHTS)
    return result


class JoinedHead(BaseHead):
    """The columns of a base head, then the added ones.

    Every added column rests on the base head alone, so that their order does not matter and a
    joined head is extended, never nested (``with_column``).

    Parameters
    ----------
    base : Head
        Of any other kind.
    added : sequence of AddedColumn
        At least one.
    """

    Description = JoinedDescription

    def __init__(self, base: Head, added: Sequence[AddedColumn]) -> None:
        super().__init__(
            JoinedDescription(
                n_features=base.n_features,
                n_models=base.n_models + len(added),
                base=base.describe(),
                added=tuple(AddedDescription(components=len(column.center)) for column in added),
            )
        )
        self._base = base
        self._added = tuple(added)

    @property
    def base(self) -> Head:
        """The head that was there first."""
        return self._base

    def with_column(self, column: AddedColumn) -> JoinedHead:
        """Return the head with one more column, the last."""
        return JoinedHead(self._base, (*self._added, column))

    def _probabilities(self, X: F32) -> F64:
        P = self._base.predict_proba(X)
        columns = [moderated(*column.log_odds(X, P)) for column in self._added]
        return np.column_stack([P, *columns])

    def uncertainty(self, X: F32) -> F64:
        """Return how far each probability may be off for want of scores to learn from.

        Parameters
        ----------
        X : ndarray of shape (n_queries, n_features), float32, finite

        Returns
        -------
        ndarray of shape (n_queries, n_models), float64 in [0, 0.5]
            Standard deviation of the probability under the posterior of the added column; NaN for
            the base head's columns, where nobody knows it.

        Raises
        ------
        QueryError
            ``X`` is not a finite float32 matrix with ``n_features`` columns.
        """
        check_features(X, self.n_features)
        result = np.full((len(X), self.n_models), np.nan)
        for rows in chunks(len(X), CHUNK_ROWS):
            P = self._base.predict_proba(X[rows])
            for j, column in enumerate(self._added, start=self._base.n_models):
                result[rows, j] = deviation(*column.log_odds(X[rows], P))
        return result

    def to_files(self, stem: str) -> dict[str, bytes]:
        """Return the base head's files under ``<stem>-base`` and ``<stem>-added-<i>``."""
        files = dict(self._base.to_files(f"{stem}-base"))
        for i, column in enumerate(self._added):
            files |= write_tensors(f"{stem}-added-{i}", column.tensors())
        return files

    @classmethod
    def from_files(
        cls, description: JoinedDescription, files: Mapping[str, bytes], *, stem: str
    ) -> Self:
        """Read the base head and every added column."""
        if description.base.get("kind") == "joined":  # also bounds a hostile recursion
            raise ArtifactError(f"The base of '{stem}' is itself a joined head. {RESTORE}")
        base = load_head(description.base, files, f"{stem}-base")
        sizes = (base.n_features, base.n_models + len(description.added))
        if sizes != (description.n_features, description.n_models):
            raise ArtifactError(
                f"The base of '{stem}' and its added columns take {sizes[0]} features and predict "
                f"{sizes[1]} models; the head takes {description.n_features} and predicts "
                f"{description.n_models}. {RESTORE}"
            )
        added = [
            _read_column(files, f"{stem}-added-{i}", base, entry.components)
            for i, entry in enumerate(description.added)
        ]
        return cls(base, added)


def _read_column(files: Mapping[str, bytes], stem: str, base: Head, components: int) -> AddedColumn:
    width = 1 + base.n_models + components
    shapes: dict[str, tuple[int | None, ...]] = {
        "projection": (base.n_features, components),
        "center": (components,),
        "mean": (width,),
        "factor": (width, width),
    }
    return AddedColumn(**read_tensors(files, stem, shapes))
