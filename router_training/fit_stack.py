"""Fit a shrunken combination of heads by cross-validation (stacking, Wolpert 1992).

Training and validation rows are pooled and divided into folds. Every member is fitted once per fold
on the other folds' rows and stops early, if it does, on the fold's own; what it predicts there is
what the weights are fitted on. So each row helps to fit members, to stop them and to weigh them,
and no held-out part is spent on one of these alone. Settings (``C``, ``k``) are chosen before, on
the validation rows.

What serves in the end: the networks of all folds, averaged, which is an ensemble for free; trees
grown again on all rows, to the median of the folds' rounds; linear and neighbour heads fitted again
on all rows, with their settings.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
from scipy.optimize import minimize

from router_runtime.errors import DataError
from router_runtime.prediction.heads.base import import_optional, logit, sigmoid
from router_runtime.prediction.heads.mlp import MLPHead
from router_runtime.prediction.heads.stack import StackHead
from router_runtime.types import F64, Head, Int, Json, Progress
from router_training.fitting import (
    FitData,
    FitResult,
    KnnConfig,
    LogisticConfig,
    MemberConfig,
    MlpConfig,
    StackConfig,
    XGBoostConfig,
    check_fit_data,
    fit_head,
    log_loss,
    untold,
)
from router_training.rows import predict

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CrossFitted:
    """A member of the stack, and what it predicts for rows that it has not seen.

    Parameters
    ----------
    head : Head
        Fitted on every row, or the average of the folds' networks.
    left_out : ndarray of shape (n_rows, n_models), float64
        Log odds of each pooled row by the head of the fold that leaves it out.
    config : MemberConfig
        With every choice settled.
    log : Json
        Of each fold's fit.
    """

    head: Head
    left_out: F64
    config: MemberConfig
    log: Json


def fit(data: FitData, config: StackConfig, *, seed: int, progress: Progress = untold) -> FitResult:
    """Cross-fit the members and combine them.

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
        A ``StackHead``. The log has the left-out log loss of each member and of the combination,
        which of them was kept, the weights, and the members' own logs.

    Raises
    ------
    DataError
        See ``fitting.check_fit_data``; also a model with fewer than two scores per fold, or fewer
        groups than folds.
    """
    check_fit_data(data)
    pool = data.pooled()
    _check_folds(pool, config.folds)
    fold = folds_of(pool, config.folds, seed=seed)
    total = len(config.heads) * config.folds
    members = []
    for place, member in enumerate(config.heads):

        def told(done: int, _: int, before: int = place * config.folds) -> None:
            progress(before + done, total)

        members.append(cross_fit(data, member, fold, seed=seed, progress=told))
    head, log = combine(members, pool.Y_train, shrinkage=config.shrinkage)
    settled = config.model_copy(update={"heads": tuple(member.config for member in members)})
    return FitResult(head, log, settled)


def folds_of(pool: FitData, folds: int, *, seed: int) -> Int:
    """Return the fold of each row: groups in random order, each to the fold with the fewest rows.

    Rows of one group in two folds would let a member predict what it has seen, and be trusted for
    it.
    """
    groups = np.arange(len(pool.X_train)) if pool.groups is None else pool.groups
    _, group, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    place = np.empty(len(sizes), dtype=np.int64)
    load = np.zeros(folds, dtype=np.int64)
    for each in np.random.default_rng(seed).permutation(len(sizes)):
        place[each] = np.argmin(load)
        load[place[each]] += sizes[each]
    return place[group]


def cross_fit(
    data: FitData, member: MemberConfig, fold: Int, *, seed: int, progress: Progress = untold
) -> CrossFitted:
    """Fit one member fold by fold, and once more on all rows where that is what will serve.

    Parameters
    ----------
    data : FitData
        Training and validation rows, not yet pooled.
    member : MemberConfig
    fold : ndarray of shape (n_training_rows + n_validation_rows,), int
        See ``folds_of``.
    seed : int
        Of the member; every fold derives its own from it.
    """
    config = _settle(data, member, seed=seed)
    pool = data.pooled()
    left_out = np.empty(pool.Y_train.shape)
    results = []
    n_folds = int(fold.max()) + 1
    for k in range(n_folds):
        rows = np.flatnonzero(fold == k)
        part = pool.divided(rows)
        own_seed = int(np.random.SeedSequence([seed, k]).generate_state(1)[0])
        results.append(fit_head(part, config, seed=own_seed))
        left_out[rows] = logit(predict(results[-1].head, part.X_validation))
        progress(k + 1, n_folds)
    head = _served(pool, config, results, seed=seed)
    return CrossFitted(head, left_out, config, [result.log for result in results])


def _settle(data: FitData, member: MemberConfig, *, seed: int) -> MemberConfig:
    """Make the choices that validation decides, if there are any."""
    match member:
        case LogisticConfig(C=values) if len(values) == 1:
            return member
        case KnnConfig(k=k, components=components) if len(k) == len(components) == 1:
            return member
        case MlpConfig(search=0) | XGBoostConfig():
            return member
    settled = fit_head(data, member, seed=seed).settled
    return member if settled is None else cast(MemberConfig, settled)


def _served(
    pool: FitData, config: MemberConfig, results: Sequence[FitResult], *, seed: int
) -> Head:
    if isinstance(config, MlpConfig):
        return MLPHead.average([cast(MLPHead, result.head) for result in results])
    if isinstance(config, XGBoostConfig):
        trees = [[model["trees"] for model in result.log["models"]] for result in results]
        rounds = np.median(trees, axis=0).astype(int).tolist()
        module = import_optional("router_training.fit_xgboost", {"xgboost": "train"})
        return cast(Head, module.fit_rounds(pool, config, rounds, seed=seed))
    return fit_head(replace(pool, is_fold=True), config, seed=seed).head


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
                f"Model '{model_id}' has {count} scored rows; a stack of {folds} folds "
                f"needs {2 * folds}. Collect more scores for it, use fewer folds or another head."
            )


def combine(
    members: Sequence[CrossFitted], Y: F64, *, shrinkage: float
) -> tuple[StackHead, dict[str, Json]]:
    """Weigh the members by their left-out predictions.

    The weights are those that predict the left-out rows best, not negative, pulled towards weights
    common to all models and those towards equal ones. A member replaces the combination only if its
    left-out log loss is lower by more than a standard error of the difference: a stack must not end
    up clearly behind its best member, and a few hundred rows cannot tell smaller differences from
    chance.

    Parameters
    ----------
    members : sequence of CrossFitted
    Y : ndarray of shape (n_rows, n_models)
        Scores of the rows of ``CrossFitted.left_out``.
    shrinkage : float
        See ``StackConfig``.

    Returns
    -------
    head : StackHead
    log : Json
    """
    L = np.stack([member.left_out for member in members])
    weight, intercept = stack_weights(L, Y, shrinkage=shrinkage)
    P = sigmoid(np.einsum("knm,km->nm", L, weight) + intercept)
    losses = [log_loss(sigmoid(Z), Y) for Z in L]
    best = int(np.argmin(losses))
    excess = _row_losses(P, Y) - _row_losses(sigmoid(L[best]), Y)
    alone = excess.mean() > excess.std() / np.sqrt(len(excess))
    log: dict[str, Json] = {
        "left_out_loss": {
            "stack": log_loss(P, Y),
            "members": losses,
            "kept": f"member {best}" if alone else "stack",
        },
        "members": [{"kind": member.config.kind, "folds": member.log} for member in members],
        "weight": weight.tolist(),
        "intercept": intercept.tolist(),
    }
    logger.info("stack: left-out log loss %s", log["left_out_loss"])
    heads = [member.head for member in members]
    if alone:
        heads, weight, intercept = [heads[best]], np.ones((1, Y.shape[1])), np.zeros(Y.shape[1])
    return StackHead(heads, weight=weight, intercept=intercept), log


def stack_weights(L: F64, Y: F64, *, shrinkage: float) -> tuple[F64, F64]:
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


def _row_losses(P: F64, Y: F64) -> F64:
    """Return the mean log loss of each row with a score, (n_scored_rows,), in nats."""
    scored = ~np.isnan(Y).all(axis=1)
    p, y = np.clip(P[scored], 1e-7, 1 - 1e-7), Y[scored]
    rows: F64 = np.nanmean(-(y * np.log(p) + (1 - y) * np.log1p(-p)), axis=1)
    return rows
