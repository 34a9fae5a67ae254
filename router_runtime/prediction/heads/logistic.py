"""The linear head: one logistic regression per model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Self

import numpy as np

from router_runtime.prediction.heads.base import (
    BaseHead,
    HeadDescription,
    clipped_logits,
    read_tensors,
    sigmoid,
    write_tensors,
)
from router_runtime.types import F32, F64


class LogisticDescription(HeadDescription):
    """Sizes only."""

    kind: Literal["logistic"] = "logistic"


class LogisticHead(BaseHead):
    """``P = sigmoid(X W + b)``.

    Parameters
    ----------
    weight : ndarray of shape (n_features, n_models)
        Coefficients on the unscaled features, kept as float32.
    bias : ndarray of shape (n_models,)
        Intercepts, kept as float32.
    """

    Description = LogisticDescription

    def __init__(self, weight: F32 | F64, bias: F32 | F64) -> None:
        n_features, n_models = weight.shape
        super().__init__(LogisticDescription(n_features=n_features, n_models=n_models))
        self._weight = np.ascontiguousarray(weight, dtype=np.float32)
        self._bias = np.ascontiguousarray(bias, dtype=np.float32)

    def _probabilities(self, X: F32) -> F64:
        return sigmoid(X @ self._weight + self._bias)

    def log_odds(self, X: F32) -> F64:
        return clipped_logits(X @ self._weight + self._bias)

    def to_files(self, stem: str) -> dict[str, bytes]:
        """Return ``<stem>.safetensors``."""
        return write_tensors(stem, {"weight": self._weight, "bias": self._bias})

    @classmethod
    def from_files(
        cls, description: LogisticDescription, files: Mapping[str, bytes], *, stem: str
    ) -> Self:
        """Read ``<stem>.safetensors``."""
        d, m = description.n_features, description.n_models
        tensors = read_tensors(files, stem, {"weight": (d, m), "bias": (m,)})
        return cls(tensors["weight"], tensors["bias"])
