"""How unlike the training data a query is, and what that does to its probabilities.

A query is as novel as it is far from the nearest training rows. Distances are taken in a space of
few coordinates: the leading principal components of ``X``, not whitened, and as one more the length
of what they leave out. So a query that differs where no training row does, as the first picture
after thousands of texts, is far as well, and the distance is never above that between the rows of
``X`` themselves. It is told as a percentile: 0.99 means that 99 % of the held-out queries of the
training data's own kind are nearer than this one (a conformal p-value is one minus it; Bates et
al. 2023, "Testing for outliers with conformal p-values"). Where a query is beyond almost all of
them the head extrapolates, and each model's training base rate is the better forecast: ``P`` is
drawn to it.

It cannot see what features do not show: an unseen skill asked for in seen words looks familiar.

``router_training.fit_novelty`` makes the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Final, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from router_runtime.errors import ArtifactError, ArtifactIntegrityError
from router_runtime.prediction.heads.base import (
    RESTORE,
    check_features,
    chunks,
    read_tensors,
    write_tensors,
)
from router_runtime.types import F32, F64, Int, Json

N_QUANTILES: Final = 1001
"""Percentiles are kept in steps of 0.1 %."""

_STEM: Final = "novelty"

_COPY: Final = 1e-3
"""Nearer than this share of the training rows' spread is a copy: float32 cannot tell the rest."""

_LARGEST: Final = 1e15
"""Magnitude of what is kept; sums of squares of more overflow float32."""

_CHUNK_ROWS: Final = 512  # of X; with 2,048 reference rows a chunk of distances is 4 MiB


class NoveltyDescription(BaseModel):
    """The JSON that stands in the manifest beside ``novelty.safetensors``.

    Parameters
    ----------
    n_features, n_models, n_components : int
        Columns of ``X``, of ``P`` and of the projection.
    neighbours : int
        The distance is the mean over this many nearest reference rows.
    shrink_above : float in [0, 1]
        Up to this novelty ``P`` stays as it is; from here to 1 it goes linearly to the prior.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    n_features: int = Field(ge=1)
    n_models: int = Field(ge=1)
    n_components: int = Field(ge=1)
    neighbours: int = Field(ge=1)
    shrink_above: float = Field(ge=0, le=1)


def coordinates(X: F32, mean: F32, components: F32) -> F32:
    """Return ``X`` in the space of distances, float32 (n_rows, n_components + 1).

    The last column is the length of what the components leave out of ``X - mean``; two rows are at
    least as far apart as their lengths differ, whatever directions they leave out.

    Parameters
    ----------
    X : ndarray of shape (n_rows, n_features), float32
    mean : ndarray of shape (n_features,)
    components : ndarray of shape (n_features, n_components)
        Orthonormal columns.
    """
    centred = X - mean
    Z = np.empty((len(X), components.shape[1] + 1), dtype=np.float32)
    kept = np.matmul(centred, components, out=Z[:, :-1])
    left = np.vecdot(centred, centred) - np.vecdot(kept, kept)
    np.sqrt(np.maximum(left, 0.0), out=Z[:, -1])
    return Z


class NoveltyModel:
    """Distances to reference rows as a percentile, and shrinkage to the base rates.

    Holds read-only arrays and no scratch space, so that threads may share it.

    Parameters
    ----------
    description : NoveltyDescription
    mean : ndarray of shape (n_features,)
        Subtracted from ``X``.
    components : ndarray of shape (n_features, n_components)
        Orthonormal columns.
    reference : ndarray of shape (n_reference, n_components + 1)
        Coordinates of training rows, as ``coordinates`` returns them.
    distances : ndarray of shape (N_QUANTILES,), >= 0, non-decreasing
        Distances of held-out rows at equally spaced percentiles from 0 to 1.
    prior : ndarray of shape (n_models,), in [0, 1]
        Each model's mean training score.

    Raises
    ------
    ArtifactIntegrityError
        The arrays do not mean what they should: numbers too large, unsorted distances, a prior
        outside [0, 1], fewer reference rows than neighbours.
    """

    def __init__(
        self,
        description: NoveltyDescription,
        *,
        mean: F32,
        components: F32,
        reference: F32,
        distances: F64,
        prior: F64,
    ) -> None:
        bounds = {"mean": (mean, _LARGEST), "reference": (reference, _LARGEST)}
        bounds["components"] = (components, 1.001)  # orthonormal up to rounding
        for name, (array, most) in bounds.items():
            if np.abs(array).max(initial=0.0) > most:
                raise ArtifactIntegrityError(
                    f"The novelty model's {name} must lie within {most:g}. {RESTORE}"
                )
        self.description = description
        self._mean = np.asarray(mean, dtype=np.float32)
        self._components = np.asarray(components, dtype=np.float32)
        self._reference = np.asarray(reference, dtype=np.float32)
        self._distances = np.asarray(distances, dtype=np.float64)
        self._prior = np.asarray(prior, dtype=np.float64)
        if (np.diff(self._distances, prepend=0.0) < 0).any():
            raise ArtifactIntegrityError(
                f"The novelty model's distances must be >= 0 and not decrease. {RESTORE}"
            )
        if ((self._prior < 0) | (self._prior > 1)).any():
            raise ArtifactIntegrityError(
                f"The novelty model's prior must lie in [0, 1], not {self._prior.tolist()}. "
                f"{RESTORE}"
            )
        if len(self._reference) < description.neighbours:
            raise ArtifactIntegrityError(
                f"The novelty model asks for {description.neighbours} neighbours of "
                f"{len(self._reference)} reference rows. {RESTORE}"
            )

    @property
    def n_features(self) -> int:
        """Columns of ``X``."""
        return self.description.n_features

    @property
    def n_models(self) -> int:
        """Columns of ``P``."""
        return self.description.n_models

    def distance(self, X: F32) -> F64:
        """Return the mean distance (n_queries,) to the nearest reference rows, >= 0.

        Raises
        ------
        QueryError
            ``X`` is not a finite float32 matrix with ``n_features`` columns.
        """
        check_features(X, self.n_features)
        if len(X) <= _CHUNK_ROWS:
            return self._distance(X)
        return np.concatenate([self._distance(X[rows]) for rows in chunks(len(X), _CHUNK_ROWS)])

    def _distance(self, X: F32) -> F64:
        Z = coordinates(X, self._mean, self._components)
        # |z - r|^2 up to the constant |z|^2 finds the nearest; the few found are then measured
        # directly, since the expansion loses all digits where a row meets its own copy.
        near = Z @ self._against
        near += self._squares
        distance = _lengths(Z, self._reference, _smallest(near, self.description.neighbours))
        distance[distance < self._copy] = 0.0
        return distance

    def novelty(self, X: F32) -> F64:
        """Return the share (n_queries,) of held-out training-like queries that are nearer.

        A tie counts as not nearer, so that where many queries are copies of training rows a copy
        has novelty 0. Beyond the farthest held-out row novelty is 1.

        Parameters
        ----------
        X : ndarray of shape (n_queries, n_features), float32
            Features made by the artifact's own feature spec.

        Returns
        -------
        ndarray of shape (n_queries,), float64 in [0, 1]

        Raises
        ------
        QueryError
            See ``distance``.
        """
        distance = self.distance(X)
        knots, percentiles = self._knots
        novelty: F64 = np.interp(distance, knots, percentiles)
        novelty[~(distance <= knots[-1])] = 1.0  # NaN too: features so large that squares overflow
        return novelty

    def shrink(self, P: F64, novelty: F64) -> F64:
        """Draw calibrated probabilities to the base rates as far as the queries are novel.

        ``P' = prior + trust * (P - prior)`` with trust 1 up to ``shrink_above``, 0 at novelty 1
        and linear between; ``P`` of trusted rows is returned to the bit.

        Parameters
        ----------
        P : ndarray of shape (n_queries, n_models), float64 in [0, 1]
            Calibrated; not written to.
        novelty : ndarray of shape (n_queries,), float64 in [0, 1]

        Returns
        -------
        ndarray of shape (n_queries, n_models), float64 in [0, 1]
        """
        above = self.description.shrink_above
        rows = np.flatnonzero(novelty > above)
        if not rows.size:
            return P
        trust = ((1.0 - novelty[rows]) / (1.0 - above))[:, None]
        shrunken = P.copy()
        shrunken[rows] = trust * P[rows] + (1.0 - trust) * self._prior
        return shrunken

    @cached_property
    def _squares(self) -> F32:
        squares: F32 = np.vecdot(self._reference, self._reference)
        return squares

    @cached_property
    def _against(self) -> F32:
        against: F32 = np.ascontiguousarray(-2.0 * self._reference.T)
        return against

    @cached_property
    def _copy(self) -> float:
        return _COPY * float(np.sqrt(self._squares.mean()))

    @cached_property
    def _knots(self) -> tuple[F64, F64]:
        """Distinct distances with the least percentile of each."""
        knots, first = np.unique(self._distances, return_index=True)
        return knots, first / (len(self._distances) - 1)

    def with_model(self, base_rate: float) -> NoveltyModel:
        """Return the model for one column more of ``P``, the last, with its mean score."""
        description = self.description.model_copy(update={"n_models": self.n_models + 1})
        return NoveltyModel(
            description,
            mean=self._mean,
            components=self._components,
            reference=self._reference,
            distances=self._distances,
            prior=np.append(self._prior, base_rate),
        )

    def to_files(self) -> dict[str, bytes]:
        """Return ``{"novelty.safetensors": bytes}``."""
        return write_tensors(
            _STEM,
            {
                "mean": self._mean,
                "components": self._components,
                "reference": self._reference,
                "distances": self._distances,
                "prior": self._prior,
            },
        )

    def describe(self) -> dict[str, Json]:
        """Return the JSON that ``from_files`` needs besides the file."""
        return self.description.model_dump(mode="json")

    @classmethod
    def from_files(cls, description: Json, files: Mapping[str, bytes]) -> Self:
        """Build the model from what ``describe`` and ``to_files`` returned.

        Raises
        ------
        ArtifactError
            The description is malformed.
        ArtifactIntegrityError
            The file is missing or corrupt, or does not fit the description.
        """
        try:
            parsed = NoveltyDescription.model_validate(description)
        except ValidationError as error:
            problem = error.errors()[0]
            field = ".".join(map(str, problem["loc"])) or "novelty"
            raise ArtifactError(
                f"The description of the novelty model is malformed at '{field}': "
                f"{problem['msg']}. {RESTORE}"
            ) from error
        d, k, m = parsed.n_features, parsed.n_components, parsed.n_models
        lengths = {"mean": (d,), "components": (d, k), "prior": (m,)}
        tensors = read_tensors(
            files,
            _STEM,
            {**lengths, "reference": (None, k + 1), "distances": (N_QUANTILES,)},
        )
        return cls(parsed, **tensors)


def _smallest(values: F32, k: int) -> Int:
    """Return the columns (n_rows, k) of the smallest values of each row, in any order."""
    found: Int
    if k == 1:
        found = values.argmin(axis=1)[:, None]
    elif k < values.shape[1]:
        found = np.argpartition(values, k - 1, axis=1)[:, :k]
    else:
        found = np.broadcast_to(np.arange(k), (len(values), k))
    return found


def _lengths(Z: F32, reference: F32, columns: Int) -> F64:
    """Return the mean distance (n_rows,) of each row of ``Z`` to its own rows of ``reference``."""
    total = np.zeros(len(Z), dtype=np.float64)
    for column in columns.T:
        difference = Z - reference[column]
        total += np.sqrt(np.vecdot(difference, difference))
    total /= columns.shape[1]
    return total
