"""What every ``fit_*`` shares: its data, its configuration, its result, and the checks before it.

``fit_head`` dispatches to the module of the configured kind. Every module has
``fit(data, config, *, seed) -> FitResult`` and calls ``check_fit_data`` first. ``FitData`` has no
test rows, so that no choice made here can look at them.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import cast

import numpy as np

from router_runtime.errors import DataError
from router_runtime.prediction.heads.base import import_optional
from router_runtime.types import F32, F64, Head, Int, Json, Progress
from router_training.predictor_configs import (
    HeadConfig,
    KnnConfig,
    LogisticConfig,
    MemberConfig,
    MlpConfig,
    PlateauConfig,
    PriorConfig,
    StackConfig,
    XGBoostConfig,
)
from router_training.rows import Features, join, read_chunks, take

__all__ = [
    "FITS",
    "FOLDS",
    "MATRIX_ROWS",
    "MIN_TRAINING_ROWS",
    "FitArrays",
    "FitData",
    "FitResult",
    "HeadConfig",
    "KnnConfig",
    "LogisticConfig",
    "MemberConfig",
    "MlpConfig",
    "PlateauConfig",
    "PriorConfig",
    "StackConfig",
    "XGBoostConfig",
    "base_rates",
    "check_fit_data",
    "fit_head",
    "in_memory",
    "log_loss",
    "standardisation",
    "untold",
]

logger = logging.getLogger(__name__)

MIN_TRAINING_ROWS = 20
FOLDS = 5
"""Parts that are held out in turn to judge the column of a model that is added."""

MATRIX_ROWS = 100_000
"""Training rows, and validation rows, that a head sees which needs them in memory all at once."""

FITS: dict[str, str] = {
    "knn": "router_training.fit_knn",
    "logistic": "router_training.fit_logistic",
    "mlp": "router_training.fit_mlp",
    "prior": "router_training.fit_prior",
    "stack": "router_training.fit_stack",
    "xgboost": "router_training.fit_xgboost",
}
_STEPWISE = ("mlp", "stack", "xgboost")
_EXTRAS = dict.fromkeys(("torch", "sklearn", "scipy", "xgboost"), "train")


def untold(done: int, total: int) -> None:
    """Ignore progress."""


@dataclass(frozen=True)
class FitData:
    """Features and scores to fit on.

    Parameters
    ----------
    X_train, X_validation : ndarray or Rows of shape (n_queries, n_features), float32
        Features, in memory or named in a file. Validation serves early stopping and the choice of
        settings; a stack is also fitted on it, by cross-validation.
    Y_train, Y_validation : ndarray of shape (n_queries, n_models), float64 in [0, 1], NaN = missing
        Scores; columns follow ``model_ids``.
    model_ids : tuple of str
        Column order of ``Y`` and of the head's ``P``.
    groups : ndarray of shape (n_training_rows,), int, optional
        Training rows of one group (the same picture, the same prompt) are never on both sides of a
        fold; each row by itself by default.
    validation_groups : ndarray of shape (n_validation_rows,), int, optional
        The same of the validation rows, numbered alike.
    is_fold : bool
        These are some training rows of data that has been checked already, in which a model may
        have lost one class.
    """

    X_train: Features
    Y_train: F64
    X_validation: Features
    Y_validation: F64
    model_ids: tuple[str, ...]
    groups: Int | None = None
    validation_groups: Int | None = None
    is_fold: bool = False

    @property
    def n_features(self) -> int:
        """Columns of ``X``."""
        return int(self.X_train.shape[1])

    @property
    def n_models(self) -> int:
        """Columns of ``Y``."""
        return len(self.model_ids)

    def pooled(self) -> FitData:
        """Return training and validation rows together as training rows."""
        groups = self.groups
        if groups is not None:
            own = self.validation_groups
            if own is None:
                own = groups.max(initial=-1) + 1 + np.arange(len(self.X_validation))
            groups = np.concatenate([groups, own])
        return replace(
            self,
            X_train=join(self.X_train, self.X_validation),
            Y_train=np.concatenate([self.Y_train, self.Y_validation]),
            groups=groups,
        )

    def divided(self, left_out: Int) -> FitData:
        """Return a fold: these training rows validate, the others train."""
        rest = np.setdiff1d(np.arange(len(self.X_train)), left_out)
        return FitData(
            self.X_train[rest],
            self.Y_train[rest],
            self.X_train[left_out],
            self.Y_train[left_out],
            self.model_ids,
            None if self.groups is None else self.groups[rest],
            is_fold=True,
        )


@dataclass(frozen=True)
class FitArrays(FitData):
    """``FitData`` whose features are in memory; made by ``in_memory``."""

    X_train: F32
    X_validation: F32


def in_memory(data: FitData, *, seed: int) -> FitArrays:
    """Read the features, of at most ``MATRIX_ROWS`` random training and validation rows each.

    For heads that need their rows as one matrix: what they hold, some of it in float64, must not
    grow with the file. ``mlp`` and ``prior`` do without and see every row.
    """
    rng = np.random.default_rng(seed)
    train, validation = (
        np.sort(rng.permutation(len(X))[:MATRIX_ROWS]) if len(X) > MATRIX_ROWS else slice(None)
        for X in (data.X_train, data.X_validation)
    )
    if len(data.X_train) > MATRIX_ROWS:
        logger.warning("fitting on %d random of %d rows", MATRIX_ROWS, len(data.X_train))
    return FitArrays(
        take(data.X_train, train),
        data.Y_train[train],
        take(data.X_validation, validation),
        data.Y_validation[validation],
        data.model_ids,
        None if data.groups is None else data.groups[train],
        is_fold=data.is_fold,
    )


@dataclass(frozen=True)
class FitResult:
    """A fitted head and what happened on the way.

    Parameters
    ----------
    head : Head
        Fitted on the training rows.
    log : Json
        For the report.
    settled : HeadConfig, optional
        The configuration with every choice made that validation decides; fitting with it again
        searches no more. None where there was nothing to choose.
    """

    head: Head
    log: Json
    settled: HeadConfig | None = None


def fit_head(
    data: FitData, config: HeadConfig, *, seed: int, progress: Progress = untold
) -> FitResult:
    """Fit the configured kind of head.

    ``progress`` is told (done, total) by the kinds that take long: networks of ``mlp``, models of
    ``xgboost``, fits of ``stack``.

    Raises
    ------
    DataError
        The data cannot be learned from; see ``check_fit_data``.
    MissingDependencyError
        The kind needs a package that is not installed.
    """
    module = import_optional(FITS[config.kind], _EXTRAS)
    stepwise = {"progress": progress} if config.kind in _STEPWISE else {}
    return cast(FitResult, module.fit(data, config, seed=seed, **stepwise))


def check_fit_data(data: FitData) -> None:
    """Refuse data that no head can learn from.

    Constant columns of ``X`` are fine as long as one varies. A model whose observed training scores
    are all equal has one class only; soft scores that differ on one side of one half are two.

    Raises
    ------
    DataError
        Naming the model, the rows or the column, and what to do about it.
    """
    if data.is_fold:
        return
    _check_arrays("training", data.X_train, data.Y_train, data)
    _check_arrays("validation", data.X_validation, data.Y_validation, data)
    n = len(data.X_train)
    if data.groups is not None and data.groups.shape != (n,):
        raise DataError(f"There are {n} training rows and groups of shape {data.groups.shape}.")
    if n < MIN_TRAINING_ROWS:
        raise DataError(
            f"There are {n} training rows; at least {MIN_TRAINING_ROWS} are needed. "
            "Collect more evaluation records, or give training a larger share of the split."
        )
    if not _any_varies(data.X_train):
        raise DataError(
            f"The features of all {n} training rows are the same, so that nothing tells one query "
            "from another. Check the encoder, and that the prompts differ."
        )
    if np.isnan(data.Y_validation).all():
        raise DataError(
            f"The validation split has {len(data.X_validation)} rows and no score; early stopping "
            "and the choice of settings need some. Give validation a larger share of the split."
        )
    for j, model_id in enumerate(data.model_ids):
        _check_scores(model_id, data.Y_train[:, j])


def _any_varies(X: Features) -> bool:
    first = take(X, slice(0, 1))
    return any((chunk != first).any() for _, chunk in read_chunks(X))


def _check_arrays(split: str, X: Features, Y: F64, data: FitData) -> None:
    if X.ndim != 2 or X.dtype != np.float32 or X.shape[1] == 0:
        raise DataError(
            f"The {split} features are {X.dtype} of shape {X.shape}; expected a float32 matrix "
            "with a row per query and at least one column. Configure at least one encoder."
        )
    if Y.shape != (len(X), data.n_models) or X.shape[1] != data.n_features:
        raise DataError(
            f"The {split} features have shape {X.shape} and the scores {Y.shape}; expected "
            f"(n, {data.n_features}) and (n, {data.n_models})."
        )
    for place, chunk in read_chunks(X):
        finite = np.isfinite(chunk)
        if not finite.all():
            row, column = (int(index) for index in np.argwhere(~finite)[0])
            raise DataError(
                f"The {split} features hold NaN or infinity, first in row {place.start + row}, "
                f"column {column}. Delete the cached embeddings and embed again."
            )
    with np.errstate(invalid="ignore"):
        outside = np.argwhere((Y < 0) | (Y > 1))
    if len(outside):
        row, j = (int(index) for index in outside[0])
        raise DataError(
            f"The {split} score of model '{data.model_ids[j]}' in row {row} is {Y[row, j]}; "
            "scores lie in [0, 1] or are missing (NaN)."
        )


def _check_scores(model_id: str, scores: F64) -> None:
    observed = scores[~np.isnan(scores)]
    if not len(observed):
        raise DataError(
            f"Model '{model_id}' is never scored in the training rows. Collect scores for it, or "
            "remove it from the models to train."
        )
    if np.ptp(observed) == 0:
        raise DataError(
            f"Model '{model_id}' has one class only in the training rows: all {len(observed)} "
            f"scores are {observed[0]:g}. Collect rows that it answers otherwise, or remove it "
            "from the models to train."
        )


def base_rates(Y: F64) -> F64:
    """Return the mean observed score per model, float64 (n_models,).

    A model without any score, which only a fold can contain, gets the mean over all scores.
    """
    observed = ~np.isnan(Y)
    totals, counts = np.where(observed, Y, 0.0).sum(axis=0), observed.sum(axis=0)
    pooled = totals.sum() / max(counts.sum(), 1)
    return cast(F64, np.where(counts > 0, totals / np.maximum(counts, 1), pooled))


def log_loss(P: F64, Y: F64, *, eps: float = 1e-7) -> float:
    """Return the mean negative log-likelihood over the observed scores, in nats.

    Scores may be soft. NaN where ``Y`` has no observed score.
    """
    observed = ~np.isnan(Y)
    if not observed.any():
        return float("nan")
    p, y = np.clip(P[observed], eps, 1 - eps), Y[observed]
    return float(-np.mean(y * np.log(p) + (1 - y) * np.log1p(-p)))


def standardisation(X: Features) -> tuple[F64, F64]:
    """Return mean and scale per column, float64 (n_features,), for ``(X - mean) / scale``.

    The scale is the standard deviation. A column that is constant up to float32 rounding has an
    infinite one: it becomes 0 and, once the scale is folded into the weights, it is ignored, also
    where a query has a value there that training never saw.

    Read once, in chunks, whose means and sums of squares are joined by the formula of Chan, Golub
    and LeVeque (1983, The American Statistician 37, eq. 2.1).
    """
    n, mean, squares, largest = 0, np.zeros(X.shape[1]), np.zeros(X.shape[1]), np.zeros(X.shape[1])
    for _, chunk in read_chunks(X):
        k = len(chunk)
        Z = chunk.astype(np.float64)
        shift = Z.mean(axis=0) - mean
        Z -= mean + shift
        mean = mean + shift * (k / (n + k))
        squares += np.einsum("ij,ij->j", Z, Z) + shift**2 * (n * k / (n + k))
        largest = np.maximum(largest, np.abs(chunk).max(axis=0))
        n += k
    deviation = np.sqrt(squares / max(n, 1))
    return mean, np.where(deviation <= 1e-5 * largest, np.inf, deviation)
