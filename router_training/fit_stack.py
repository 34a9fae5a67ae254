"""Fit a shrunken combination of heads by cross-validation (stacking, Wolpert 1992)."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
from scipy.optimize import minimize

from router_runtime.errors import DataError
from router_runtime.prediction.heads.base import logit, sigmoid
from router_runtime.prediction.heads.stack import StackHead
from router_runtime.types import F64, Head, Int, Json, Progress
from router_training.fitting import (
    FitData,
    FitResult,
    HeadConfig,
    StackConfig,
    check_fit_data,
    fit_head,
    log_loss,
    untold,
)

logger = logging.getLogger(__name__)


def fit(data: FitData, config: StackConfig, *, seed: int, progress: Progress = untold) -> FitResult:
    """Fit the members on all training rows, and their weights on left-out predictions.

    Every member is fitted once on all rows, which settles its choices, and once per fold without
    the fold's rows. The weights are those that predict the left-out rows best, not negative, pulled
    towards weights common to all models and those towards equal ones. A member replaces the
    combination only if its validation log loss is lower by more than a standard error of the
    difference: a stack must not end up clearly behind its best member, and a few hundred rows
    cannot tell smaller differences from chance.

    Parameters
    ----------
    data : FitData
        Missing scores are masked.
    config : StackConfig
        Members, folds and shrinkage.
    seed : int
        Decides the folds, which keep groups together, and is passed on to the members.

    Returns
    -------
    FitResult
        A ``StackHead``. The log has the validation log loss of each member and of the combination,
        which of them was kept, the weights, and the members' own logs.

    Raises
    ------
    DataError
        See ``fitting.check_fit_data``; also a model with fewer than two scores per fold, or fewer
        groups than folds.
    """
    check_fit_data(data)
    _check_folds(data, config.folds)
    total = len(config.heads) * (config.folds + 1)
    results = []
    for done, member in enumerate(config.heads, start=1):
        results.append(fit_head(data, member, seed=seed))
        progress(done, total)
    settled = [
        result.settled or member for result, member in zip(results, config.heads, strict=True)
    ]
    L = _left_out_logits(data, settled, config.folds, seed, progress)
    weight, intercept = _weights(L, data.Y_train, shrinkage=config.shrinkage)
    heads = [result.head for result in results]
    head, comparison = _best_on_validation(data, heads, weight, intercept)
    log = {
        "validation_loss": comparison,
        "members": [
            {"kind": member.kind, "log": result.log}
            for member, result in zip(config.heads, results, strict=True)
        ],
        "weight": weight.tolist(),
        "intercept": intercept.tolist(),
    }
    logger.info("stack: validation log loss %s", comparison)
    return FitResult(head, log, config.model_copy(update={"heads": tuple(settled)}))


def _check_folds(data: FitData, folds: int) -> None:
    n_groups = folds if data.groups is None else len(np.unique(data.groups))
    if n_groups < folds:
        raise DataError(
            f"The training rows are of {n_groups} groups, too few for a stack of {folds} folds. "
            "Use fewer folds or another head."
        )
    counts = (~np.isnan(data.Y_train)).sum(axis=0)
    for model_id, count in zip(data.model_ids, counts, strict=True):
        if count < 2 * folds:
            raise DataError(
                f"Model '{model_id}' has {count} scored training rows; a stack of {folds} folds "
                f"needs {2 * folds}. Collect more scores for it, use fewer folds or another head."
            )


def _left_out_logits(
    data: FitData, configs: Sequence[HeadConfig], folds: int, seed: int, progress: Progress = untold
) -> F64:
    """Return (n_members, n_rows, n_models): each row predicted by heads that have not seen it."""
    n = len(data.X_train)
    fold = _folds(np.arange(n) if data.groups is None else data.groups, folds, seed)
    L = np.empty((len(configs), n, data.n_models))
    for k in range(folds):
        rest, left_out = np.flatnonzero(fold != k), np.flatnonzero(fold == k)
        part = data.fold(rest)
        for i, config in enumerate(configs):
            head = fit_head(part, config, seed=seed).head
            L[i, left_out] = logit(head.predict_proba(data.X_train[left_out]))
            progress((k + 1) * len(configs) + i + 1, (folds + 1) * len(configs))
    return L


def _folds(groups: Int, folds: int, seed: int) -> Int:
    """Return the fold of each row: groups in random order, each to the fold with the fewest rows.

    Rows of one group in two folds would let a member predict what it has seen, and be trusted for
    it.
    """
    _, group, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    place = np.empty(len(sizes), dtype=np.int64)
    load = np.zeros(folds, dtype=np.int64)
    for each in np.random.default_rng(seed).permutation(len(sizes)):
        place[each] = np.argmin(load)
        load[place[each]] += sizes[each]
    return place[group]


def _weights(L: F64, Y: F64, *, shrinkage: float) -> tuple[F64, F64]:
    """Minimise the summed log loss plus the pulls on weights and intercepts.

    With w_j the weights and b_j the intercept of model j, c the common weights and s the shrinkage:
    ``sum_j loss_j(w_j, b_j) + s/2 * (sum_j |w_j - c|^2 + |c - 1/K|^2 + |b|^2)``. The problem is
    convex in (w, b, c) together. Returns (n_members, n_models) and (n_models,).
    """
    K, _, m = L.shape
    observed = ~np.isnan(Y)
    scores = np.where(observed, Y, 0.0)
    rows = max(int(observed.sum()), 1)  # scales the problem; the optimum stays

    def objective(flat: F64) -> tuple[float, F64]:
        w, c, b = flat[: K * m].reshape(K, m), flat[K * m : K * m + K], flat[K * m + K :]
        Z = np.einsum("knm,km->nm", L, w) + b
        residual = observed * (sigmoid(Z) - scores)
        apart, uneven = w - c[:, None], c - 1.0 / K
        loss = np.sum(observed * (np.logaddexp(0.0, Z) - scores * Z))
        loss += 0.5 * shrinkage * (np.sum(apart**2) + np.sum(uneven**2) + np.sum(b**2))
        gradient = np.concatenate(
            [
                (np.einsum("knm,nm->km", L, residual) + shrinkage * apart).ravel(),
                shrinkage * (uneven - apart.sum(axis=1)),
                residual.sum(axis=0) + shrinkage * b,
            ]
        )
        return float(loss) / rows, gradient / rows

    start = np.concatenate([np.full(K * m + K, 1.0 / K), np.zeros(m)])
    bounds = [(0.0, None)] * (K * m + K) + [(None, None)] * m
    options = {"maxiter": 1000, "ftol": 1e-12, "gtol": 1e-8}
    found = minimize(objective, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
    return found.x[: K * m].reshape(K, m), found.x[K * m + K :]


def _best_on_validation(
    data: FitData, heads: Sequence[Head], weight: F64, intercept: F64
) -> tuple[StackHead, dict[str, Json]]:
    """Return the combination, or the member that is better alone by more than a standard error."""
    stack = StackHead(heads, weight=weight, intercept=intercept)
    P = stack.predict_proba(data.X_validation)
    alone = [head.predict_proba(data.X_validation) for head in heads]
    losses = [log_loss(p, data.Y_validation) for p in alone]
    best = int(np.argmin(losses))
    comparison: dict[str, Json] = {
        "stack": log_loss(P, data.Y_validation),
        "members": losses,
        "kept": "stack",
    }
    excess = _row_losses(P, data.Y_validation) - _row_losses(alone[best], data.Y_validation)
    if excess.mean() <= excess.std() / np.sqrt(len(excess)):
        return stack, comparison
    ones = np.ones((1, data.n_models))
    only = StackHead([heads[best]], weight=ones, intercept=np.zeros(data.n_models))
    return only, comparison | {"kept": f"member {best}"}


def _row_losses(P: F64, Y: F64) -> F64:
    """Return the mean log loss of each row with a score, (n_scored_rows,), in nats."""
    scored = ~np.isnan(Y).all(axis=1)
    p, y = np.clip(P[scored], 1e-7, 1 - 1e-7), Y[scored]
    rows: F64 = np.nanmean(-(y * np.log(p) + (1 - y) * np.log1p(-p)), axis=1)
    return rows
