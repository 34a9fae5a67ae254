"""One number that makes a distribution over labels as sure as it is right."""

from __future__ import annotations

import math

from scipy.optimize import minimize_scalar
from scipy.special import logsumexp

from router_runtime.types import F64

_LEAST_T, _MOST_T = 0.05, 20.0


def fit_temperature(logits: F64, Y: F64) -> float:
    """Return what divides logits so that the softmax has the least log loss on these rows.

    One number for all labels, so that the likeliest label stays so (Guo et al. 2017). Each row
    counts as if one row more of every label had been seen beside all of them (as Platt's targets
    do): rows that are all told right would otherwise have certainty, however few they are.
    """
    n, n_labels = Y.shape
    targets = (n * Y + 1.0) / (n + n_labels)

    def loss(log_temperature: float) -> float:
        scaled = logits / math.exp(log_temperature)
        log_p = scaled - logsumexp(scaled, axis=1, keepdims=True)
        return -float((targets * log_p).sum(axis=1).mean())

    found = minimize_scalar(loss, bounds=(math.log(_LEAST_T), math.log(_MOST_T)), method="bounded")
    return math.exp(float(found.x))
