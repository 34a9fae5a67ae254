"""AdamW with a linear warm-up and decay, gradients cut, the best epoch kept.

Every step's dropout is drawn from seed and step, every epoch's order from seed and epoch. So a
fine-tuning that was interrupted and continued from its checkpoint ends, on one machine's CPU, with
the bits of one that was not.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Literal, Protocol

import numpy as np
import torch
from torch.nn import functional

from router_runtime.prediction.sequence_network import Reader, SequenceNetwork
from router_runtime.types import F64, Json, Progress
from router_training.predictor_configs import SequenceConfig
from router_training.sequence.checkpoints import Checkpoints, Saved
from router_training.sequence.figures import Figures, measure
from router_training.sequence.targets import Texts

logger = logging.getLogger(__name__)

CHECKPOINT_STEPS = 500
"""A killed process loses at most so many steps; Ctrl-C loses none."""


class Recorder(Protocol):
    """Where figures go while it learns, beside the artifact."""

    def __call__(self, figures: Mapping[str, float], *, step: int) -> None:
        """Take figures by name."""
        ...


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


class FineTuning:
    """One fine-tuning.

    Parameters
    ----------
    model : torch.nn.Module
        Changed in place.
    reader : Reader
    train, validation : Texts
    config : SequenceConfig
    objective : str
    seed : int
    device : torch.device
    checkpoints : Checkpoints, optional
        Where it continues, and keeps what it has done.
    recorder : Recorder, optional
    """

    def __init__(
        self,
        model: torch.nn.Module,
        reader: Reader,
        *,
        train: Texts,
        validation: Texts,
        config: SequenceConfig,
        objective: Literal["one", "several"],
        seed: int,
        device: torch.device,
        checkpoints: Checkpoints | None = None,
        recorder: Recorder | None = None,
    ) -> None:
        self._model = model.to(device)
        self._reader = reader
        self._train = train
        self._validation = validation
        self._config = config
        self._objective: Literal["one", "several"] = objective
        self._seed = seed
        self._device = device
        self._checkpoints = checkpoints
        self._recorder = recorder
        self._batches = -(-len(train) // config.batch_size)
        self._steps = self._batches * config.epochs
        self._optimizer = torch.optim.AdamW(
            self._model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
        )
        self._state = _State()
        self._best = self._weights()
        self._whole = True  # no update of the weights is under way

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
            while self._state.epoch < self._config.epochs and not self._is_over():
                self._epoch(progress)
        except KeyboardInterrupt:
            if self._whole:
                self._keep()
            raise
        progress(self._steps, self._steps)
        self._model.load_state_dict(self._best)
        state = self._state
        return FineTuned(self._model, tuple(state.history), state.best_epoch, self._judge())

    def _is_over(self) -> bool:
        return self._state.since_best >= self._config.patience

    def _epoch(self, progress: Progress) -> None:
        state, size = self._state, self._config.batch_size
        order = np.random.default_rng([self._seed, state.epoch]).permutation(len(self._train))
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
            if state.step % CHECKPOINT_STEPS == 0:
                self._keep()
        self._end_epoch()
        self._keep()

    def _end_epoch(self) -> None:
        state = self._state
        logits = self._judge()
        found = measure(logits, self._validation.Y, objective=self._objective)
        loss = state.loss_sum / len(self._train)
        self._tell(found, loss)
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

    def _update(self, rows: np.ndarray) -> float:
        """Compute the cut gradients of one batch; returns its loss."""
        batch = self._reader.read([self._train.texts[row] for row in rows])
        inputs = {name: tensor.to(self._device) for name, tensor in batch.items()}
        Y = torch.tensor(self._train.Y[rows], dtype=torch.float32, device=self._device)
        for group in self._optimizer.param_groups:
            group["lr"] = self._config.learning_rate * self._share(self._state.step)
        devices = [self._device] if self._device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(_drawn(self._seed, self._state.step))
            logits = self._model.train()(**inputs).logits
        loss = _LOSSES[self._objective](logits.float(), Y)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), self._config.max_grad_norm)
        return float(loss.detach())

    def _share(self, step: int) -> float:
        """Return the share of the learning rate that a step, from 0, has."""
        warm = round(self._config.warmup_ratio * self._steps)
        if step < warm:
            return (step + 1) / warm
        return (self._steps - step) / max(1, self._steps - warm)

    def _judge(self) -> F64:
        size = 2 * self._config.batch_size
        network = SequenceNetwork(self._model, self._reader, device=self._device, batch_size=size)
        return network.logits(self._validation.texts)

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

    def _weights(self) -> dict[str, torch.Tensor]:
        return {name: t.detach().cpu().clone() for name, t in self._model.state_dict().items()}

    def _keep(self) -> None:
        if self._checkpoints is None:
            return
        tensors = {f"model.{name}": t for name, t in self._model.state_dict().items()}
        tensors |= {f"best.{name}": t for name, t in self._best.items()}
        for name, parameter in self._model.named_parameters():
            for kind, value in self._optimizer.state.get(parameter, {}).items():
                tensors[f"adam.{kind}.{name}"] = value
        self._checkpoints.write(tensors, asdict(self._state))

    def _resume(self) -> None:
        saved = None if self._checkpoints is None else self._checkpoints.read()
        if saved is None:
            return
        self._state = _State(**saved.values)
        logger.info("continuing at epoch %d, step %d", self._state.epoch + 1, self._state.step)
        self._model.load_state_dict(_below(saved, "model."))
        self._best = _below(saved, "best.")
        for kind in ("step", "exp_avg", "exp_avg_sq"):
            found = _below(saved, f"adam.{kind}.")
            for name, parameter in self._model.named_parameters():
                if name in found:
                    place = torch.device("cpu") if kind == "step" else self._device
                    self._optimizer.state[parameter][kind] = found[name].to(place)


def _below(saved: Saved, prefix: str) -> dict[str, torch.Tensor]:
    return {k.removeprefix(prefix): t for k, t in saved.tensors.items() if k.startswith(prefix)}


def _drawn(seed: int, step: int) -> int:
    return int(np.random.SeedSequence([seed, step]).generate_state(1)[0])


def _one(logits: torch.Tensor, Y: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(logits, Y.argmax(dim=1))


def _several(logits: torch.Tensor, Y: torch.Tensor) -> torch.Tensor:
    """Return the mean over scored cells; an unscored one teaches nothing."""
    scored = ~torch.isnan(Y)
    return functional.binary_cross_entropy_with_logits(logits[scored], Y[scored])


_LOSSES: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "one": _one,
    "several": _several,
}
