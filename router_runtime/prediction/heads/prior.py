"""The head that looks at nothing: each model's success rate in the training data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Self

import numpy as np

from router_runtime.prediction.heads.base import (
    BaseHead,
    HeadDescription,
    read_tensors,
    write_tensors,
)
from router_runtime.types import F32, F64


class PriorDescription(HeadDescription):
    """Sizes only."""

    kind: Literal["prior"] = "prior"


class PriorHead(BaseHead):
    """The same probabilities for every query; what any other head has to beat.

    Parameters
    ----------
    rates : ndarray of shape (n_models,), float64 in [0, 1]
        Mean score per model.
    n_features : int
        Columns of the ``X`` that callers pass, and this head ignores.
    """

    Description = PriorDescription

    def __init__(self, rates: F64, *, n_features: int) -> None:
        super().__init__(PriorDescription(n_features=n_features, n_models=len(rates)))
        self._rates = np.ascontiguousarray(rates, dtype=np.float64)

    def _probabilities(self, X: F32) -> F64:
        return np.tile(self._rates, (len(X), 1))

    def to_files(self, stem: str) -> dict[str, bytes]:
        """Return ``<stem>.safetensors``."""
        return write_tensors(stem, {"rates": self._rates})

    @classmethod
    def from_files(
        cls, description: PriorDescription, files: Mapping[str, bytes], *, stem: str
    ) -> Self:
        """Read ``<stem>.safetensors``."""
        tensors = read_tensors(files, stem, {"rates": (description.n_models,)})
        return cls(tensors["rates"], n_features=description.n_features)
