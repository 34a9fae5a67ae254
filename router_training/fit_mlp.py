"""Fit the neural head.

A batch is one indexed read of a tensor: at these sizes a DataLoader would spend more time on
handing out rows than the network on learning from them. ``mlp_rows`` holds the features, all of
them or a part at a time; ``mlp_steps`` takes the steps.

The optimiser is AdamW. Adam with an L2 term divides the decay of a weight by the size of its
gradients, so that the weights which move most are held back least; decoupled decay (Loshchilov and
Hutter 2019, arXiv 1711.05101) means the same for every weight and every learning rate of the grid.

Validation is measured after every epoch, or every ``evaluate_steps`` steps whatever the epoch: with
few rows an epoch is too short to be judged, with many too long.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.optim.lr_scheduler import ReduceLROnPlateau

from router_runtime.errors import ConfigError
from router_runtime.prediction.heads.network import RouterNetwork, fold
from router_runtime.types import F64, Json, Progress
from router_training.fitting import (
    FitData,
    FitResult,
    MlpConfig,
    check_fit_data,
    standardisation,
    untold,
)
from router_training.mlp_log import Record, Recorder
from router_training.mlp_rows import Batch, TrainingRows, open_rows
from router_training.mlp_steps import Trainer
from router_training.rows import Features

logger = logging.getLogger(__name__)

SEARCH_GRID: dict[str, tuple[Any, ...]] = {
    "hidden_dims": ((256, 128), (512, 256), (512, 256, 128)),
    "dropout": (0.2, 0.3, 0.4, 0.5),
    "learning_rate": (1e-4, 5e-4, 1e-3),
    "batch_size": (32, 64, 128),
    "weight_decay": (0.0, 1e-6, 1e-5, 1e-4),
}


@dataclass(frozen=True)
class _Scored:
    """Standardised features, and the scores on the device; ``observed`` is 0 where one is missing.

    ``targets`` (n_queries, 2 * n_models + 1) is what a step needs, side by side: the slope and the
    target of the gradient per model (see ``Trainer.step``), and how many scores are observed.
    """

    X: TrainingRows
    Y: torch.Tensor
    observed: torch.Tensor
    targets: torch.Tensor


@dataclass(frozen=True)
class _Problem:
    """What all members and trials have in common.

    ``negative`` is the weight of a bad answer and ``odds`` that of a good one over it, per model.
    """

    train: _Scored
    validation: _Scored
    negative: torch.Tensor
    odds: torch.Tensor
    device: torch.device


@dataclass(frozen=True)
class _Member:
    network: RouterNetwork
    log: dict[str, Json]

    @property
    def loss(self) -> float:
        return float(self.log["best_validation_loss"])


def fit(data: FitData, config: MlpConfig, *, seed: int, progress: Progress = untold) -> FitResult:
    """Fit one network or an ensemble, each stopped early on validation and restored to its best.

    Parameters
    ----------
    data : FitData
        Missing scores are masked: the loss is the mean over the observed ones.
    config : MlpConfig
        With ``search`` > 0, that many settings of the published grid compete with the given ones.
    seed : int
        Decides the initial weights, the order of the rows, dropout and the trials. Two fits with
        one seed are equal to the bit on the same kind of CPU.

    Returns
    -------
    FitResult
        An ``MLPHead``. The log has the chosen settings, the search table, and per member its
        evaluations (losses: training as optimised since the one before, validation as log loss in
        nats; steps and learning rate) and which was best, counted from 1.

    Raises
    ------
    DataError
        See ``fitting.check_fit_data``.
    ConfigError
        ``device`` is ``cuda`` and there is none, or training diverged.
    MissingDependencyError
        ``tensorboard`` is asked for and not installed.
    """
    check_fit_data(data)
    mean, scale = _rounded_standardisation(data) if config.standardise else (None, None)
    problem = _problem(data, config, mean, scale)
    seeds = [int(s) for s in np.random.SeedSequence(seed).generate_state(config.ensemble)]
    counted = itertools.count(1)
    total = config.ensemble + config.search
    recorder = Recorder(config.tensorboard)

    def fit_member(settings: MlpConfig, member_seed: int) -> _Member:
        with recorder.network() as record:
            member = _fit_member(problem, settings, seed=member_seed, record=record)
        progress(next(counted), total)
        return member

    with _deterministic(problem.device):
        config, first, table = _search(fit_member, config, seed=seed, member_seed=seeds[0])
        members = [first, *(fit_member(config, s) for s in seeds[1:])]
    if not all(np.isfinite(member.loss) for member in members):
        raise ConfigError(
            f"Training diverged: with learning_rate {config.learning_rate:g} the validation loss "
            "was never finite. Lower head.learning_rate, or set head.standardise to true."
        )
    log = {
        "config": config.model_dump(mode="json"),
        "device": str(problem.device),
        "search": table,
        "members": [member.log for member in members],
    }
    head = fold([member.network for member in members], mean=mean, scale=scale)
    return FitResult(head, log, config.model_copy(update={"search": 0}))


def _rounded_standardisation(data: FitData) -> tuple[F64, F64]:
    """Return mean and scale as float32 holds them: exactly those with which rows are scaled."""
    mean, scale = standardisation(data.X_train)
    return mean.astype(np.float32).astype(np.float64), scale.astype(np.float32).astype(np.float64)


def _problem(data: FitData, config: MlpConfig, mean: F64 | None, scale: F64 | None) -> _Problem:
    device = _device(config.device)
    good, bad = _class_weights(data.Y_train, config.pos_weight)
    negative = torch.tensor(bad, dtype=torch.float32, device=device)
    odds = torch.tensor(good / bad, dtype=torch.float32, device=device)

    def scored(X: Features, scores: F64, *, smoothing: float) -> _Scored:
        seen = ~np.isnan(scores)
        filled = np.where(seen, scores, 0.5) * (1 - smoothing) + 0.5 * smoothing
        Y, observed = (torch.tensor(a, dtype=torch.float32, device=device) for a in (filled, seen))
        weight = observed * negative
        slope, target = weight * (1 + (odds - 1) * Y), weight * odds * Y
        targets = torch.cat([slope, target, observed.sum(dim=1, keepdim=True)], dim=1)
        return _Scored(open_rows(X, mean=mean, scale=scale, device=device), Y, observed, targets)

    return _Problem(
        scored(data.X_train, data.Y_train, smoothing=config.label_smoothing),
        scored(data.X_validation, data.Y_validation, smoothing=0.0),
        negative,
        odds,
        device,
    )


def _class_weights(Y: F64, pos_weight: str) -> tuple[F64, F64]:
    """Return the weight of a good and of a bad answer per model, each float64 (n_models,).

    Balanced, the two classes of a model weigh the same and its weights have mean 1. This multiplies
    the odds at the optimum by positive / negative, so training adds the logarithm of that ratio to
    the logits; what the network itself predicts are unshifted probabilities. A score between 0 and
    1 is that share of a good answer and the rest of a bad one, each with its weight.
    """
    ones = np.ones(Y.shape[1])
    if pos_weight == "none":
        return ones, ones
    observed = ~np.isnan(Y)
    n = observed.sum(axis=0)
    good = np.clip(np.where(observed, Y, 0.0).sum(axis=0), 0.5, np.maximum(n - 0.5, 0.5))
    return n / (2 * good), n / (2 * np.maximum(n - good, 0.5))


def _search(
    fit_member: Callable[[MlpConfig, int], _Member],
    config: MlpConfig,
    *,
    seed: int,
    member_seed: int,
) -> tuple[MlpConfig, _Member, list[Json]]:
    """Return the settings with the lowest validation log loss, their first member, and a table."""
    best, table = config, []
    member = fit_member(config, member_seed)
    if config.search:
        table.append(_table_row(config, member))
    for values in _trials(config.search, seed):
        candidate = config.model_copy(update=values)
        trial = fit_member(candidate, member_seed)
        table.append(_table_row(candidate, trial))
        logger.info("search: %s", table[-1])
        if trial.loss < member.loss:
            best, member = candidate, trial
    return best, member, table


def _trials(n: int, seed: int) -> Iterator[dict[str, Any]]:
    """Draw ``n`` different settings from the grid."""
    grid = list(itertools.product(*SEARCH_GRID.values()))
    order = np.random.default_rng(seed).permutation(len(grid))[:n]
    return (dict(zip(SEARCH_GRID, grid[i], strict=True)) for i in order)


def _table_row(config: MlpConfig, member: _Member) -> dict[str, Json]:
    settings = config.model_dump(mode="json", include=set(SEARCH_GRID))
    return settings | {
        "best_evaluation": member.log["best_evaluation"],
        "validation_loss": member.loss,
        "seconds": member.log["seconds"],
    }


def _fit_member(problem: _Problem, config: MlpConfig, *, seed: int, record: Record) -> _Member:
    """Train one network and put back the weights of its best evaluation.

    The best weights are cloned when they are met. A state dict only refers to the tensors that the
    optimiser goes on writing to, so keeping (a shallow copy of) it would keep the last weights.
    """
    started = time.perf_counter()
    torch.manual_seed(seed)
    order = torch.Generator().manual_seed(seed)
    network = RouterNetwork(
        problem.train.X.n_features, problem.train.Y.shape[1], hidden_dims=config.hidden_dims
    ).to(problem.device)
    trainer = Trainer(
        network,
        dropout=config.dropout,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        seed=seed,
    )
    plateau = _plateau(trainer, config)
    evaluations: list[dict[str, float]] = []
    best, best_loss, best_state, steps = 0, float("inf"), _snapshot(network), 0
    for n, batches in enumerate(_stretches(problem.train.X, config, order), start=1):
        rate = float(trainer.optimiser.param_groups[0]["lr"])
        train_loss, taken = _train(trainer, problem, batches)
        loss = _validation_loss(network, problem.validation)
        steps += taken
        figures = {"train": train_loss, "validation": loss, "learning_rate": rate}
        evaluations.append(figures | {"steps": steps})
        record({"loss/train": train_loss, "loss/validation": loss, "learning_rate": rate}, steps)
        logger.debug("step %d: train %.4f, validation %.4f", steps, train_loss, loss)
        if loss < best_loss:
            best, best_loss, best_state = n, loss, _snapshot(network)
        elif n - best >= config.patience:
            break
        if plateau is not None:
            plateau.step(loss)
    network.load_state_dict(best_state)
    network.eval()
    log = {
        "seed": seed,
        "evaluations": evaluations,
        "best_evaluation": best,
        "best_validation_loss": best_loss,
        "seconds": round(time.perf_counter() - started, 3),
    }
    return _Member(network, log)


def _plateau(trainer: Trainer, config: MlpConfig) -> ReduceLROnPlateau | None:
    """Return what lowers the learning rate; any smaller loss is a better one, as for patience."""
    if config.plateau is None:
        return None
    return ReduceLROnPlateau(
        trainer.optimiser,
        factor=config.plateau.factor,
        patience=config.plateau.patience,
        min_lr=config.plateau.min_learning_rate,
        threshold=0.0,
        eps=0.0,
    )


def _stretches(
    X: TrainingRows, config: MlpConfig, order: torch.Generator
) -> Iterator[Iterator[Batch]]:
    """Yield the batches between two evaluations, to be taken before the next are asked for."""
    epochs = (X.batches(config.batch_size, order) for _ in range(config.epochs))
    if config.evaluate_steps is None:
        yield from epochs
        return
    batches = itertools.chain.from_iterable(epochs)
    for first in batches:
        yield itertools.chain([first], itertools.islice(batches, config.evaluate_steps - 1))


@torch.no_grad()
def _train(trainer: Trainer, problem: _Problem, batches: Iterator[Batch]) -> tuple[float, int]:
    """Take one step per batch; return the mean loss over the observed scores, and the steps."""
    train, m = problem.train, problem.train.Y.shape[1]
    shift = problem.odds.log()
    visited, logits = [], []
    for rows, X in batches:
        slope, target, observed = torch.split(train.targets.index_select(0, rows), [m, m, 1], dim=1)
        count = observed.sum().clamp_(min=1)
        visited.append(rows)
        logits.append(trainer.step(X, slope, target, shift=shift, count=count))
    rows = torch.cat(visited)
    observed = train.observed[rows]
    loss = binary_cross_entropy_with_logits(
        torch.cat(logits),
        train.Y[rows],
        weight=observed * problem.negative,
        pos_weight=problem.odds,
        reduction="sum",
    )
    return float(loss / observed.sum().clamp_(min=1)), len(visited)


@torch.no_grad()
def _validation_loss(network: RouterNetwork, validation: _Scored) -> float:
    """Return the log loss over the observed scores, unweighted and unsmoothed."""
    network.eval()
    logits = torch.cat([network.logits(X) for X in validation.X.chunks()])
    loss = binary_cross_entropy_with_logits(
        logits, validation.Y, weight=validation.observed, reduction="sum"
    )
    return float(loss / validation.observed.sum())


def _snapshot(network: RouterNetwork) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}


def _device(name: str) -> torch.device:
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise ConfigError(
            "device 'cuda' is configured and torch finds no GPU. Use 'auto' or 'cpu'."
        )
    return torch.device("cuda" if available and name != "cpu" else "cpu")


@contextmanager
def _deterministic(device: torch.device) -> Iterator[None]:
    """Make torch deterministic inside, and leave its global state as it was found.

    Initial weights are drawn from the global generator, which therefore has to be seeded. An
    interrupt passes through and restores it too. Without cuBLAS's workspace setting a GPU warns
    instead of failing.

    One thread: sums do not depend on the number of cores, and a batch of 64 rows is too little
    work to share. Where other processes use the cores, several threads that wait for one another
    after every layer were measured to be up to ten times slower than one.

    New memory is not filled with NaN first, which costs 3 %: nothing here reads what it has not
    written.
    """
    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    memory: Any = torch.utils.deterministic  # without types
    filled = memory.fill_uninitialized_memory
    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.use_deterministic_algorithms(True, warn_only=True)
        memory.fill_uninitialized_memory = False
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)
            memory.fill_uninitialized_memory = filled
            torch.use_deterministic_algorithms(before, warn_only=warn_only)
