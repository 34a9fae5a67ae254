"""Some rows of a feature matrix that stays on disk, and reading them piece by piece.

The features of a million queries are gigabytes. They are stored as a file and mapped into memory,
where the operating system drops their pages again when it needs the room; what must not happen is
a copy of all of them. ``Rows`` names rows without reading them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias, cast

import numpy as np

from router_runtime.prediction.heads.base import chunks
from router_runtime.types import F32, F64, Head, Int

RUN_ROWS = 64
"""Neighbouring rows that are read together; 256 kB at 1,024 features."""


@dataclass(frozen=True, eq=False)
class Rows:
    """The rows ``index`` of ``X``, read when they are taken.

    Parameters
    ----------
    X : ndarray of shape (n, n_features), float32
        Usually memory-mapped.
    index : ndarray of shape (n_rows,), int
        Best in ascending order, so that reading goes forward through the file.
    """

    X: F32
    index: Int

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, rows: Int) -> Rows:
        """Name some of these rows, still without reading them."""
        return Rows(self.X, self.index[rows])

    @property
    def shape(self) -> tuple[int, int]:
        """``(n_rows, n_features)``."""
        return len(self.index), self.X.shape[1]

    @property
    def ndim(self) -> int:
        """Number of axes of the matrix."""
        return self.X.ndim

    @property
    def dtype(self) -> np.dtype[np.float32]:
        """Of the matrix."""
        return self.X.dtype

    def take(self, rows: Int | slice) -> F32:
        """Read some of these rows into a new array, (len(rows), n_features) float32."""
        return cast(F32, np.asarray(self.X[self.index[rows]]))


Features: TypeAlias = F32 | Rows
"""A feature matrix in memory, or rows of one that may be on disk."""


def take(X: Features, rows: Int | slice) -> F32:
    """Return some rows as an array; a slice of an array is a view."""
    return X.take(rows) if isinstance(X, Rows) else X[rows]


def read_chunks(X: Features) -> Iterator[tuple[slice, F32]]:
    """Yield all rows in order, a few thousand at a time, each with its place.

    Of no rows there is one chunk, empty, so that what is made of the chunks has the right width.
    """
    return ((place, take(X, place)) for place in chunks(max(len(X), 1)))


def join(first: Features, second: Features) -> Features:
    """Put rows below one another; rows of one matrix are only named."""
    if isinstance(first, Rows) and isinstance(second, Rows) and first.X is second.X:
        return Rows(first.X, np.concatenate([first.index, second.index]))
    return np.concatenate([read_all(first), read_all(second)])


def read_all(X: Features) -> F32:
    """Return all rows as one array."""
    return take(X, slice(None))


def predict(head: Head, X: Features) -> F64:
    """Return the head's ``P`` (n_queries, n_models) with only a chunk of ``X`` in memory."""
    P = np.empty((len(X), head.n_models))
    for place, chunk in read_chunks(X):
        P[place] = head.predict_proba(chunk)
    return P


def shuffled_windows(n_rows: int, window: int, rng: np.random.Generator) -> Iterator[Int]:
    """Yield windows of row numbers, ascending in themselves, that together are every row once.

    To visit a file in perfectly random order costs a disk access for each row. Instead runs of 64
    neighbouring rows are shuffled, and ``window`` rows' worth of runs from all over the file are
    held at a time and shuffled by the caller: a batch then mixes rows of ``window / 64`` places.

    Parameters
    ----------
    n_rows : int
        Rows to visit.
    window : int
        Rows at a time; rounded down to whole runs, one at least.
    rng : numpy.random.Generator
        Shuffles the runs.
    """
    runs = np.arange(0, n_rows, RUN_ROWS)
    per_window = max(1, window // RUN_ROWS)
    order = rng.permutation(runs)
    for start in range(0, len(order), per_window):
        first = np.sort(order[start : start + per_window])
        rows = (first[:, None] + np.arange(RUN_ROWS)).ravel()
        yield rows[rows < n_rows]
