"""Fit the head that knows base rates only."""

from __future__ import annotations

from router_runtime.prediction.heads.prior import PriorHead
from router_training.fitting import (
    FitData,
    FitResult,
    PriorConfig,
    base_rates,
    check_fit_data,
    log_loss,
)
from router_training.rows import predict


def fit(data: FitData, config: PriorConfig, *, seed: int) -> FitResult:
    """Return a ``PriorHead`` with each model's mean training score.

    Parameters
    ----------
    data : FitData
        Missing scores do not count.
    config : PriorConfig
        Has no settings.
    seed : int
        Unused; nothing is random.

    Raises
    ------
    DataError
        See ``fitting.check_fit_data``.
    """
    check_fit_data(data)
    head = PriorHead(base_rates(data.Y_train), n_features=data.n_features)
    loss = log_loss(predict(head, data.X_validation), data.Y_validation)
    return FitResult(head, {"validation_loss": loss})
