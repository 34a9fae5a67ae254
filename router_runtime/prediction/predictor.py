"""The last step of every predictor, and ``FeaturePredictor``, which encodes queries first.

``predict_features`` is the only place where head, calibration and novelty meet, and
``predict_told`` the one where calibration meets what other kinds of predictors tell of queries.
Training calls them as well, so that what it tunes and evaluates on is what serving computes, to the
bit.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from router_runtime.errors import ConfigError
from router_runtime.prediction.calibration import Calibrator
from router_runtime.prediction.features import EmbeddingGenerator
from router_runtime.prediction.novelty import NoveltyModel
from router_runtime.types import F32, F64, Bool, Head, Prediction, Query, WeightsSize


@dataclass(frozen=True, eq=False)
class Told:
    """What a predictor without features tells of queries, before calibration.

    Parameters
    ----------
    P : ndarray of shape (n_queries, n_models), float64 in [0, 1]
        Of no meaning in rows that are not known.
    known : ndarray of shape (n_queries,), bool
        Whether it could tell anything.
    """

    P: F64
    known: Bool


def predict_told(
    told: Told, *, calibrator: Calibrator, base_rates: Sequence[float], tells_novelty: bool
) -> Prediction:
    """Calibrate what was told; where nothing was, return the base rates, which is what is known.

    Parameters
    ----------
    told : Told
    calibrator : Calibrator
    base_rates : sequence of float
        Each model's share of good answers.
    tells_novelty : bool
        Whether the prediction has a novelty: 1 where nothing was told, 0 elsewhere.
    """
    P = calibrator.apply(told.P)
    P[~told.known] = base_rates
    return Prediction(P, (~told.known).astype(np.float64) if tells_novelty else None)


class _Described(Protocol):
    @property
    def base_rates(self) -> Sequence[float]: ...


class TellingPredictor(ABC):
    """The end of every predictor without features: what it tells of queries, calibrated."""

    description: _Described
    calibrator: Calibrator

    @property
    def tells_novelty(self) -> bool:
        """Whether a prediction says 1 where nothing was told, and 0 elsewhere."""
        return False

    @abstractmethod
    def tell(self, queries: Sequence[Query]) -> Told:
        """Return what is told of queries, before calibration."""

    def predict(self, queries: Sequence[Query]) -> Prediction:
        """Return calibrated ``P`` (n_queries, n_models); base rates where nothing was told."""
        return predict_told(
            self.tell(queries),
            calibrator=self.calibrator,
            base_rates=self.description.base_rates,
            tells_novelty=self.tells_novelty,
        )

    def probabilities(self, queries: Sequence[Query]) -> F64:
        """Return calibrated ``P`` (n_queries, n_models), float64 in [0, 1]."""
        return self.predict(queries).P


def predict_features(
    X: F32, *, head: Head, calibrator: Calibrator, novelty: NoveltyModel | None = None
) -> Prediction:
    """Predict from features: head, then calibration, then shrinkage where the query is novel.

    Parameters
    ----------
    X : ndarray of shape (n_queries, n_features), float32
    head, calibrator : Head, Calibrator
        Of one artifact.
    novelty : NoveltyModel, optional
        Without it ``P`` is calibrated only and the prediction's novelty is None.

    Raises
    ------
    QueryError
        ``X`` is not what the head was fitted on.
    """
    P = calibrator.apply(head.predict_proba(X))
    if novelty is None:
        return Prediction(P)
    novel = novelty.novelty(X)
    return Prediction(novelty.shrink(P, novel), novel)


@dataclass(frozen=True)
class FeaturePredictor:
    """Predicts ``P`` from features.

    Parameters
    ----------
    model_ids : tuple of str
        Column order of ``P``.
    features : EmbeddingGenerator
        Queries to ``X``.
    head : Head
        ``X`` to uncalibrated ``P``.
    calibrator : Calibrator
        Uncalibrated to calibrated ``P``.
    novelty : NoveltyModel, optional
        Distance to the training data; None where the artifact has none.

    Raises
    ------
    ConfigError
        If the parts' widths do not fit each other.
    """

    model_ids: tuple[str, ...]
    features: EmbeddingGenerator
    head: Head
    calibrator: Calibrator
    novelty: NoveltyModel | None = None

    def __post_init__(self) -> None:
        if self.features.n_features != self.head.n_features:
            raise ConfigError(
                f"The head was trained on {self.head.n_features} features, but the encoders give "
                f"{self.features.n_features}. Use the encoders that the artifact was trained with."
            )
        if self.head.n_models != len(self.model_ids):
            raise ConfigError(
                f"The head has {self.head.n_models} outputs for {len(self.model_ids)} models."
            )

    @property
    def frozen(self) -> WeightsSize | None:
        """What the encoders load; None where one of them cannot tell."""
        total = WeightsSize()
        for encoder in self.features.encoders:
            if (loaded := encoder.frozen) is None:
                return None
            total = WeightsSize(
                total.parameters + loaded.parameters, total.n_bytes + loaded.n_bytes
            )
        return total

    def predict(self, queries: Sequence[Query]) -> Prediction:
        """Return ``P`` (n_queries, n_models) and novelty from one encoding of the queries."""
        return self.predict_features(self.features.encode(queries))

    def predict_features(self, X: F32) -> Prediction:
        """Return the same for features that were computed before."""
        return predict_features(X, head=self.head, calibrator=self.calibrator, novelty=self.novelty)

    def probabilities(self, queries: Sequence[Query]) -> F64:
        """Return calibrated ``P`` (n_queries, n_models), float64 in [0, 1]."""
        return self.predict(queries).P

    def probabilities_from_features(self, X: F32) -> F64:
        """Return calibrated ``P`` (n_queries, n_models) for features computed before."""
        return self.predict_features(X).P
