"""Fine-tuning a classifier that reads text, all of its weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch.nn import functional

from router_runtime.prediction.sequence_network import Reader, SequenceNetwork
from router_runtime.types import F64, Int
from router_training.fine_tuning.checkpoints import Checkpoints
from router_training.fine_tuning.loop import Loop, Pace
from router_training.fine_tuning.recording import Recorder
from router_training.predictor_configs import SequenceConfig
from router_training.sequence.targets import Texts


class FineTuning(Loop):
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
        super().__init__(
            model.to(device),
            n_rows=len(train),
            validation=validation.Y,
            pace=Pace(
                epochs=config.epochs,
                batch_size=config.batch_size,
                learning_rate=config.learning_rate,
                weight_decay=config.weight_decay,
                warmup_ratio=config.warmup_ratio,
                max_grad_norm=config.max_grad_norm,
                patience=config.patience,
            ),
            objective=objective,
            seed=seed,
            device=device,
            checkpoints=checkpoints,
            recorder=recorder,
        )
        self._reader = reader
        self._train = train
        self._validation = validation

    def _loss(self, rows: Int) -> torch.Tensor:
        batch = self._reader.read([self._train.texts[row] for row in rows])
        inputs = {name: tensor.to(self._device) for name, tensor in batch.items()}
        Y = torch.tensor(self._train.Y[rows], dtype=torch.float32, device=self._device)
        logits = self._model.train()(**inputs).logits
        return _LOSSES[self._objective](logits.float(), Y)

    def _judge(self) -> F64:
        size = 2 * self._pace.batch_size
        network = SequenceNetwork(self._model, self._reader, device=self._device, batch_size=size)
        return network.logits(self._validation.texts)


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
