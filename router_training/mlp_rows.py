"""Standardised features as torch tensors: all of them in memory, or a window of them at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
import torch

from router_runtime.types import F32, F64
from router_training.rows import Features, read_chunks, shuffled_windows, take

Batch: TypeAlias = tuple[torch.Tensor, torch.Tensor]
"""Numbers (n,) and features (n, n_features) of rows."""

IN_MEMORY_BYTES = 2**28
"""Features of more bytes than this are read anew in every epoch, window by window."""
WINDOW_BYTES = 2**26
"""Features held at a time then."""


class TrainingRows(Protocol):
    """Rows on the device, in random order to learn from or in order to measure on."""

    @property
    def n_features(self) -> int:
        """Columns of every batch."""
        ...

    def batches(self, size: int, order: torch.Generator) -> Iterator[Batch]:
        """Yield the numbers (n,) and the features (n, n_features) of every row once, shuffled."""
        ...

    def chunks(self) -> Iterator[torch.Tensor]:
        """Yield all features in order."""
        ...


@dataclass(frozen=True)
class _InMemory:
    X: torch.Tensor

    @property
    def n_features(self) -> int:
        return int(self.X.shape[1])

    def batches(self, size: int, order: torch.Generator) -> Iterator[Batch]:
        rows = torch.randperm(len(self.X), generator=order).to(self.X.device)
        return ((batch, self.X.index_select(0, batch)) for batch in cut(rows, size))

    def chunks(self) -> Iterator[torch.Tensor]:
        return iter((self.X,))


@dataclass(frozen=True)
class _OnDisk:
    """Reads ``WINDOW_BYTES`` at a time; see ``rows.shuffled_windows`` for the order."""

    X: Features
    mean: F32 | None
    scale: F32 | None
    device: torch.device

    @property
    def n_features(self) -> int:
        return int(self.X.shape[1])

    def batches(self, size: int, order: torch.Generator) -> Iterator[Batch]:
        seed = int(torch.randint(2**63 - 1, (), generator=order))
        window = WINDOW_BYTES // (4 * self.n_features)
        for places in shuffled_windows(len(self.X), window, np.random.default_rng(seed)):
            X = self._tensor(take(self.X, places))  # a copy, because places are numbers
            rows = torch.from_numpy(places).to(self.device)
            shuffled = torch.randperm(len(rows), generator=order).to(self.device)
            for batch in cut(shuffled, size):
                yield rows[batch], X.index_select(0, batch)

    def chunks(self) -> Iterator[torch.Tensor]:
        return (self._tensor(np.array(chunk)) for _, chunk in read_chunks(self.X))

    def _tensor(self, X: F32) -> torch.Tensor:
        _standardise(X, self.mean, self.scale)
        return torch.from_numpy(X).to(self.device)


def open_rows(
    X: Features, *, mean: F64 | None, scale: F64 | None, device: torch.device
) -> TrainingRows:
    """Return ``(X - mean) / scale`` in float32, in memory if it takes at most ``IN_MEMORY_BYTES``.

    Parameters
    ----------
    X : ndarray or Rows of shape (n, n_features), float32
        Only read.
    mean, scale : ndarray of shape (n_features,), float64, optional
        Exact in float32.
    device : torch.device
        Where batches lie.
    """
    mean32, scale32 = (None if v is None else v.astype(np.float32) for v in (mean, scale))
    if 4 * len(X) * X.shape[1] > IN_MEMORY_BYTES:
        return _OnDisk(X, mean32, scale32, device)
    whole = np.empty(X.shape, dtype=np.float32)
    for place, chunk in read_chunks(X):
        whole[place] = chunk
        _standardise(whole[place], mean32, scale32)
    return _InMemory(torch.from_numpy(whole).to(device))


def cut(rows: torch.Tensor, size: int) -> tuple[torch.Tensor, ...]:
    """Cut into batches; a last one of a single row, of no use to BatchNorm, joins its neighbour."""
    batches = torch.split(rows, size)
    if len(batches) > 1 and len(batches[-1]) == 1:
        batches = (*batches[:-2], torch.cat(batches[-2:]))
    return batches


def _standardise(X: F32, mean: F32 | None, scale: F32 | None) -> None:
    """Write ``(X - mean) / scale`` over ``X``."""
    if mean is not None and scale is not None:
        X -= mean
        X /= scale
