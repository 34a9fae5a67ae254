"""The loop of every fine-tuning: AdamW, a warm-up and a decay, gradients cut, the best epoch kept.

Every step's dropout is drawn from seed and step, every epoch's order from seed and epoch. So a
fine-tuning that was interrupted and continued from its checkpoint ends, on one machine's CPU, with
the bits of one that was not.
"""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Literal

import numpy as np
import torch

from router_runtime.types import F64, Int, Json, Progress
from router_training.fine_tuning.checkpoints import Checkpoints, Saved
from router_training.fine_tuning.figures import Figures, measure
from router_training.fine_tuning.recording import Recorder

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pace:
    """How a fine-tuning goes; the fields are those of the predictors' configs.

    Parameters
    ----------
    epochs : int
        Passes over the rows at most.
    batch_size : int
        Rows that are computed together.
    accumulation : int
        So many of them make one step.
    learning_rate, weight_decay : float
        Of AdamW; the rate rises linearly over ``warmup_ratio`` of the steps, then follows
        ``schedule`` to 0, or stays.
    warmup_ratio : float
    schedule : {"linear", "cosine", "constant"}
    max_grad_norm : float
        Longer gradients are cut to this length.
    patience : int
        Epochs without a better validation before it stops.
    checkpoint_steps : int
        A killed process loses at most so many steps; Ctrl-C loses none.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    warmup_ratio: float
    max_grad_norm: float
    patience: int
    accumulation: int = 1
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    checkpoint_steps: int = 500


@dataclass(frozen=True, eq=False)
class FineTuned:
    """A network with the weights of its best epoch.

    Parameters
    ----------
    model : torch.nn.Module
    history : tuple of mapping
        Per epoch the training loss and the validation figures.
    best_epoch : int
        From 1.
    logits : ndarray of shape (n_validation, n_labels), float64
        Of the validation rows, by the best weights.
    """

    model: torch.nn.Module
    history: tuple[dict[str, Json], ...]
    best_epoch: int
    logits: F64


@dataclass
class _State:
    """What changes from step to step, beside weights and optimiser."""

    epoch: int = 0
    batch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    since_best: int = 0
    best_epoch: int = 0
    best_score: list[float] = field(default_factory=list)
    history: list[dict[str, Json]] = field(default_factory=list)


class Loop(ABC):
    """One fine-tuning; subclasses say what the loss of rows is and how validation is asked.

    Parameters
    ----------
    model : torch.nn.Module
        On ``device``; changed in place.
    n_rows : int
        Of training.
    validation : ndarray of shape (n_validation, n_labels), float64
        What ``_judge``'s logits are measured against.
    pace : Pace
    objective : str
        As in ``figures.measure``.
    seed : int
    device : torch.device
    checkpoints : Checkpoints, optional
        Where it continues, and keeps what it has done.
    recorder : Recorder, optional
    """

    def __init__(
        self,
        model: torch.nn.Module,
        *,
        n_rows: int,
        validation: F64,
        pace: Pace,
        objective: Literal["one", "several"],
        seed: int,
        device: torch.device,
        checkpoints: Checkpoints | None = None,
        recorder: Recorder | None = None,
    ) -> None:
        self._model = model
        self._n_rows = n_rows
        self._validation_Y = validation
        self._pace = pace
        self._objective: Literal["one", "several"] = objective
        self._seed = seed
        self._device = device
        self._checkpoints = checkpoints
        self._recorder = recorder
        self._batches = -(-n_rows // (pace.batch_size * pace.accumulation))
        self._steps = self._batches * pace.epochs
        self._optimizer = torch.optim.AdamW(
            [parameter for _, parameter in self._learned()],
            lr=pace.learning_rate,
            weight_decay=pace.weight_decay,
        )
        self._state = _State()
        self._best = self._weights()
        self._whole = True  # no update of the weights is under way

    @abstractmethod
    def _loss(self, rows: Int) -> torch.Tensor:
        """Return the mean loss of training rows, with its graph."""

    @abstractmethod
    def _judge(self) -> F64:
        """Return logits (n_validation, n_labels), float64, of the validation rows."""

    def _after_epoch(self, epoch: int) -> None:
        """Do what an epoch, from 1, is followed by; it may be done twice where a run was cut."""
        logger.debug("epoch %d ended", epoch)

    def _current(self) -> dict[str, torch.Tensor]:
        """Return the tensors that learning changes, by name; not copies."""
        return self._model.state_dict()

    def run(self, progress: Progress) -> FineTuned:
        """Learn until the last epoch, or until validation no longer improves.

        Raises
        ------
        KeyboardInterrupt
            Ctrl-C; what was done is kept, and the next run continues there.
        RouterError
            The checkpoint is damaged, or cannot be written.
        """
        self._resume()
        try:
            while self._state.epoch < self._pace.epochs and not self._is_over():
                self._epoch(progress)
        except KeyboardInterrupt:
            if self._whole:
                self._keep()
            raise
        progress(self._steps, self._steps)
        self._put(self._best)
        state = self._state
        return FineTuned(self._model, tuple(state.history), state.best_epoch, self._judge())

    def _is_over(self) -> bool:
        return self._state.since_best >= self._pace.patience

    def _epoch(self, progress: Progress) -> None:
        state, size = self._state, self._pace.batch_size * self._pace.accumulation
        order = np.random.default_rng([self._seed, state.epoch]).permutation(self._n_rows)
        while state.batch < self._batches:
            rows = order[state.batch * size : (state.batch + 1) * size]
            loss = self._update(rows)
            self._whole = False
            self._optimizer.step()
            state.loss_sum += loss * len(rows)
            state.batch += 1
            state.step += 1
            self._whole = True
            progress(state.step, self._steps)
            if state.step % self._pace.checkpoint_steps == 0:
                self._keep()
        self._end_epoch()
        self._keep()

    def _end_epoch(self) -> None:
        state = self._state
        found = measure(self._judge(), self._validation_Y, objective=self._objective)
        loss = state.loss_sum / self._n_rows
        self._tell(found, loss)
        self._after_epoch(state.epoch + 1)
        better = list(found.score(self._objective)) > state.best_score
        best = self._weights() if better else self._best
        self._whole = False
        state.history.append({"epoch": state.epoch + 1, "train_loss": loss, **asdict(found)})
        if better:
            state.best_score = list(found.score(self._objective))
            state.best_epoch = state.epoch + 1
            self._best = best
        state.since_best = 0 if better else state.since_best + 1
        state.epoch, state.batch, state.loss_sum = state.epoch + 1, 0, 0.0
        self._whole = True

    def _update(self, rows: Int) -> float:
        """Compute the cut gradients of one step; returns its mean loss."""
        for group in self._optimizer.param_groups:
            group["lr"] = self._pace.learning_rate * self._share(self._state.step)
        self._optimizer.zero_grad(set_to_none=True)
        devices = [self._device] if self._device.type == "cuda" else []
        total = 0.0
        for start in range(0, len(rows), self._pace.batch_size):
            some = rows[start : start + self._pace.batch_size]
            with torch.random.fork_rng(devices=devices):
                torch.manual_seed(_drawn(self._seed, self._state.step, start))
                loss = self._loss(some) * (len(some) / len(rows))
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        learned = [parameter for _, parameter in self._learned()]
        torch.nn.utils.clip_grad_norm_(learned, self._pace.max_grad_norm)
        return total

    def _share(self, step: int) -> float:
        """Return the share of the learning rate that a step, from 0, has."""
        warm = round(self._pace.warmup_ratio * self._steps)
        if step < warm:
            return (step + 1) / warm
        left = (self._steps - step) / max(1, self._steps - warm)
        match self._pace.schedule:
            case "linear":
                return left
            case "cosine":
                return 0.5 * (1.0 - math.cos(math.pi * left))
            case "constant":
                return 1.0

    def _tell(self, found: Figures, train_loss: float) -> None:
        state = self._state
        logger.info(
            "epoch %d: training loss %.4f, validation loss %.4f, accuracy %.4f, macro-F1 %.4f",
            state.epoch + 1,
            train_loss,
            found.loss,
            found.accuracy,
            found.macro_f1,
        )
        if self._recorder is not None:
            told = {"train/loss": train_loss, "epoch": float(state.epoch + 1)}
            told |= {f"validation/{name}": value for name, value in asdict(found).items()}
            self._recorder(told, step=state.step)

    # ------------------------------------------------------------------ keeping and continuing

    def _learned(self) -> list[tuple[str, torch.nn.Parameter]]:
        return [(n, p) for n, p in self._model.named_parameters() if p.requires_grad]

    def _weights(self) -> dict[str, torch.Tensor]:
        return {name: t.detach().cpu().clone() for name, t in self._current().items()}

    def _put(self, weights: Mapping[str, torch.Tensor]) -> None:
        with torch.no_grad():
            for name, tensor in self._current().items():
                tensor.copy_(weights[name])

    def _keep(self) -> None:
        if self._checkpoints is None:
            return
        tensors = {f"model.{name}": t for name, t in self._current().items()}
        tensors |= {f"best.{name}": t for name, t in self._best.items()}
        for name, parameter in self._learned():
            for kind, value in self._optimizer.state.get(parameter, {}).items():
                tensors[f"adam.{kind}.{name}"] = value
        self._checkpoints.write(tensors, asdict(self._state))

    def _resume(self) -> None:
        saved = None if self._checkpoints is None else self._checkpoints.read()
        if saved is None:
            return
        self._state = _State(**saved.values)
        logger.info("continuing at epoch %d, step %d", self._state.epoch + 1, self._state.step)
        self._put(_below(saved, "model."))
        self._best = _below(saved, "best.")
        for kind in ("step", "exp_avg", "exp_avg_sq"):
            found = _below(saved, f"adam.{kind}.")
            for name, parameter in self._learned():
                if name in found:
                    place = torch.device("cpu") if kind == "step" else self._device
                    self._optimizer.state[parameter][kind] = found[name].to(place)


def _below(saved: Saved, prefix: str) -> dict[str, torch.Tensor]:
    return {k.removeprefix(prefix): t for k, t in saved.tensors.items() if k.startswith(prefix)}


def _drawn(seed: int, step: int, start: int) -> int:
    entropy = [seed, step, start] if start else [seed, step]
    return int(np.random.SeedSequence(entropy).generate_state(1)[0])
