"""FeaturePredictor: encoder + features + head + calibrator behind the ``Predictor`` Protocol."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from router_runtime.errors import ConfigError
from router_runtime.prediction.calibration import Calibrator
from router_runtime.prediction.features import EmbeddingGenerator
from router_runtime.types import F32, F64, Head, Query


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

    Raises
    ------
    ConfigError
        If the parts' widths do not fit each other.
    """

    model_ids: tuple[str, ...]
    features: EmbeddingGenerator
    head: Head
    calibrator: Calibrator

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

    def probabilities(self, queries: Sequence[Query]) -> F64:
        """Return calibrated ``P`` (n_queries, n_models), float64 in [0, 1]."""
        return self.probabilities_from_features(self.features.encode(queries))

    def probabilities_from_features(self, X: F32) -> F64:
        """Return calibrated ``P`` (n_queries, n_models) for features computed before."""
        return self.calibrator.apply(self.head.predict_proba(X))
