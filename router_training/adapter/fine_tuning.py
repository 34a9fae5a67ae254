"""Supervised fine-tuning of a router adapter: the prompt is read, the answer alone is learned.

The loss of a row is the negative log-probability of its whole answer, end included: that which
candidates' names are scored by when it serves.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from router_runtime.prediction.adapter_network import PromptReader  # isort: skip - torchvision

import numpy as np
import torch
from torch.nn import functional

from router_runtime.errors import DataError
from router_runtime.experts.batches import collated, continued, score_all
from router_runtime.experts.prompts import Prompt
from router_runtime.types import F64, Int, Json
from router_training.adapter.lessons import Lesson, Requests
from router_training.adapter.lora import learned, tensors_of, write_folder
from router_training.fine_tuning.checkpoints import Checkpoints
from router_training.fine_tuning.loop import Loop, Pace
from router_training.fine_tuning.recording import Recorder
from router_training.predictor_configs import AdapterConfig

UNTAUGHT = -100
"""Label of a token that teaches nothing, as PyTorch's cross-entropy has it."""

CHECKPOINT_STEPS = 50
"""A killed process loses at most so many steps; they take long, and the adapter is small."""


@dataclass(frozen=True)
class EpochFolders:
    """Where the adapter of every epoch is kept.

    Parameters
    ----------
    folder : Path
    keep : int
        Of the newest so many.
    """

    folder: Path
    keep: int

    def write(self, epoch: int, adapter: Mapping[str, Json], weights: bytes) -> None:
        """Write one epoch's folder, and remove those that are too old.

        Raises
        ------
        RouterError
            It cannot be written.
        """
        write_folder(self.folder / _named(epoch), adapter, weights)
        kept = {_named(number) for number in range(epoch - self.keep + 1, epoch + 1)}
        for old in self.folder.glob("epoch-*"):
            if old.name not in kept:
                shutil.rmtree(old, ignore_errors=True)


def _named(epoch: int) -> str:
    return f"epoch-{epoch:03d}"


class FineTuning(Loop):
    """One fine-tuning.

    Parameters
    ----------
    reader : PromptReader
        Its base has the matrices of ``adapter`` on it (``lora.add_lora``); changed in place.
    lesson : Lesson
    adapter : mapping
        PEFT's config.
    config : AdapterConfig
    seed : int
    checkpoints : Checkpoints, optional
        Where it continues, and keeps what it has done.
    recorder : Recorder, optional
    epochs : EpochFolders, optional
    """

    def __init__(
        self,
        reader: PromptReader,
        lesson: Lesson,
        *,
        adapter: Mapping[str, Json],
        config: AdapterConfig,
        seed: int,
        checkpoints: Checkpoints | None = None,
        recorder: Recorder | None = None,
        epochs: EpochFolders | None = None,
    ) -> None:
        self._base = reader.base
        self._reader = reader
        self._lesson = lesson
        self._adapter = adapter
        self._eval_batch_size = config.eval_batch_size
        self._epochs = epochs
        super().__init__(
            reader.base.model,
            n_rows=len(lesson.train),
            validation=lesson.validation.shares,
            pace=Pace(
                epochs=config.epochs,
                batch_size=config.batch_size,
                accumulation=config.accumulation,
                learning_rate=config.learning_rate,
                weight_decay=config.weight_decay,
                warmup_ratio=config.warmup_ratio,
                schedule=config.schedule,
                max_grad_norm=config.max_grad_norm,
                patience=config.patience,
                checkpoint_steps=CHECKPOINT_STEPS,
            ),
            objective="one",
            seed=seed,
            device=reader.base.device,
            checkpoints=checkpoints,
            recorder=recorder,
        )

    def _loss(self, rows: Int) -> torch.Tensor:
        train = self._lesson.train
        labels = train.drawn(seed=self._seed, epoch=self._state.epoch)[rows]
        answers = [self._reader.answers[label] for label in labels]
        batch, taught = self.batch([_prompt(self._reader, train, int(at)) for at in rows], answers)
        # The logits of a token tell the next one; no others are computed.
        told = (taught != UNTAUGHT).any(dim=0).nonzero()[:, 0]
        self._base.attached.forget()
        model = self._model.train()
        logits = model(**batch, use_cache=False, logits_to_keep=told - 1).logits
        each = functional.cross_entropy(
            logits.float().transpose(1, 2),
            taught[:, told],
            ignore_index=UNTAUGHT,
            reduction="none",
        )
        return each.sum(dim=1).mean()

    def batch(
        self, prompts: Sequence[Prompt], answers: Sequence[Sequence[int]]
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Return what the model is called with, and int64 labels of the same shape as its tokens.

        The labels are the tokens of the answers where those stand, and else ``UNTAUGHT``.
        """
        whole = [continued(p, tokens) for p, tokens in zip(prompts, answers, strict=True)]
        batch = collated(self._base, whole, left=False)
        taught = torch.full_like(batch["input_ids"], UNTAUGHT)
        for at, (prompt, tokens) in enumerate(zip(prompts, answers, strict=True)):
            end = prompt.n_tokens + len(tokens)
            taught[at, prompt.n_tokens : end] = torch.tensor(tokens, device=taught.device)
        return batch, taught

    def _judge(self) -> F64:
        rows = self._lesson.validation
        self._model.eval()
        found = []
        size = 8 * self._eval_batch_size  # prompts in memory
        for start in range(0, len(rows), size):
            places = range(start, min(start + size, len(rows)))
            prompts = [_prompt(self._reader, rows, at) for at in places]
            found.append(
                score_all(
                    self._base, prompts, self._reader.answers, batch_size=self._eval_batch_size
                )
            )
        scores: F64 = np.concatenate(found)
        return scores

    def _after_epoch(self, epoch: int) -> None:
        if self._epochs is not None:
            weights = tensors_of(self._base, self._weights())
            self._epochs.write(epoch, self._adapter, weights)

    def _current(self) -> dict[str, torch.Tensor]:
        return learned(self._model)

    def _weights(self) -> dict[str, torch.Tensor]:
        """Return copies in the base's type, in which they are kept and served."""
        dtype = self._base.dtype
        return {n: t.detach().to("cpu", dtype, copy=True) for n, t in self._current().items()}


def _prompt(reader: PromptReader, rows: Requests, at: int) -> Prompt:
    found = reader.read(rows.queries[at])
    if found is None:
        raise DataError(
            f"The base model '{reader.base.name}' cannot read row '{rows.names[at]}': its pictures "
            "are too many or of an odd shape, or do not fit the chat template. Remove the row, or "
            "lower 'max_side'."
        )
    return found
