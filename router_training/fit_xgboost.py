"""Fit gradient-boosted trees, one booster per model."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import xgboost

from router_runtime.errors import DataError
from router_runtime.prediction.heads.xgboost import XGBoostHead
from router_runtime.types import F32, F64, Progress
from router_training.fitting import (
    FitArrays,
    FitData,
    FitResult,
    XGBoostConfig,
    check_fit_data,
    in_memory,
    untold,
)

logger = logging.getLogger(__name__)


def fit(
    data: FitData, config: XGBoostConfig, *, seed: int, progress: Progress = untold
) -> FitResult:
    """Fit each model on the rows that it was scored on, stopped early on validation.

    A booster is cut after its best round. A model without a validation score gets the median
    number of rounds of the others.

    Parameters
    ----------
    data : FitData
        Scores may be soft: ``binary:logistic`` takes labels anywhere in [0, 1].
    config : XGBoostConfig
        Settings of the trees.
    seed : int
        Decides which rows and columns each tree sees.

    Returns
    -------
    FitResult
        An ``XGBoostHead``; the log has the number of trees and the validation log loss per model.

    Raises
    ------
    DataError
        See ``fitting.check_fit_data``; also where a fold leaves a model without any score.
    """
    check_fit_data(data)
    data = in_memory(data, seed=seed)
    boosters: dict[int, xgboost.Booster] = {}
    losses: dict[int, float] = {}
    has_validation = ~np.isnan(data.Y_validation).all(axis=0)
    for j in np.flatnonzero(has_validation).tolist():
        boosters[j], losses[j] = _fit_stopped(data, j, config, seed)
        progress(len(boosters), data.n_models)
    trees = [booster.num_boosted_rounds() for booster in boosters.values()]
    for j in np.flatnonzero(~has_validation).tolist():
        train, parameters = _train_matrix(data, j, config, seed)
        boosters[j] = xgboost.train(parameters, train, num_boost_round=int(np.median(trees)))
        progress(len(boosters), data.n_models)
    log = [
        {
            "model_id": model_id,
            "trees": boosters[j].num_boosted_rounds(),
            "validation_loss": losses.get(j),
        }
        for j, model_id in enumerate(data.model_ids)
    ]
    ordered = [boosters[j] for j in range(data.n_models)]
    return FitResult(XGBoostHead(ordered, n_features=data.n_features), {"models": log})


def fit_rounds(
    data: FitData, config: XGBoostConfig, rounds: Sequence[int], *, seed: int
) -> XGBoostHead:
    """Fit each model to a known number of rounds, which cross-validation has found, say.

    Parameters
    ----------
    data : FitData
        Its validation rows play no part.
    config : XGBoostConfig
        ``n_estimators`` and ``patience`` play no part.
    rounds : sequence of int
        Per model.
    seed : int
        Decides which rows and columns each tree sees.
    """
    arrays = in_memory(data, seed=seed)
    boosters = []
    for j, count in enumerate(rounds):
        train, parameters = _train_matrix(arrays, j, config, seed)
        boosters.append(xgboost.train(parameters, train, num_boost_round=max(count, 1)))
    return XGBoostHead(boosters, n_features=data.n_features)


def _fit_stopped(
    data: FitArrays, j: int, config: XGBoostConfig, seed: int
) -> tuple[xgboost.Booster, float]:
    """Return model j's booster, cut after its best round, and its validation log loss."""
    train, parameters = _train_matrix(data, j, config, seed)
    validation = _matrix(data.X_validation, data.Y_validation[:, j], config.threads)
    booster = xgboost.train(
        parameters,
        train,
        num_boost_round=config.n_estimators,
        evals=[(validation, "validation")],
        early_stopping_rounds=config.patience,
        verbose_eval=False,
    )
    loss = float(booster.best_score)
    logger.info(
        "%s: %d trees, validation log loss %.4f",
        data.model_ids[j],
        booster.best_iteration + 1,
        loss,
    )
    return booster[: booster.best_iteration + 1], loss


def _train_matrix(
    data: FitArrays, j: int, config: XGBoostConfig, seed: int
) -> tuple[xgboost.DMatrix, dict[str, object]]:
    """Return model j's training rows and the settings of its booster."""
    scores = data.Y_train[:, j]
    if np.isnan(scores).all():
        raise DataError(
            f"A fold has no score of model '{data.model_ids[j]}'. Use fewer folds, or collect "
            "more scores for it."
        )
    parameters: dict[str, object] = {
        "objective": "binary:logistic",
        "eval_metric": "logloss",
        "tree_method": "hist",
        "max_depth": config.max_depth,
        "learning_rate": config.learning_rate,
        "subsample": config.subsample,
        "colsample_bytree": config.colsample,
        "min_child_weight": config.min_child_weight,
        "reg_lambda": config.reg_lambda,
        # Its own estimate is not finite where a fold has one class only.
        "base_score": float(np.clip(np.nanmean(scores), 1e-3, 1 - 1e-3)),
        "nthread": config.threads,
        "seed": seed + j,
        "verbosity": 0,
    }
    return _matrix(data.X_train, scores, config.threads), parameters


def _matrix(X: F32, scores: F64, threads: int) -> xgboost.DMatrix:
    observed = ~np.isnan(scores)
    return xgboost.DMatrix(X[observed], label=scores[observed], nthread=threads or -1)
