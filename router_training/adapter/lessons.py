"""What a router adapter is taught: requests, and whose name is the right answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from router_runtime.errors import DataError
from router_runtime.messages import TextRule
from router_runtime.prediction.adapter import AdapterPrompt
from router_runtime.types import F64, Int, Query
from router_training.labels import Evaluations


@dataclass(frozen=True, eq=False)
class Requests:
    """Rows to learn from, or to measure on.

    Parameters
    ----------
    queries : tuple of Query
    Y : ndarray of shape (n, n_labels), float64 in [0, 1], NaN = unscored
        Some label of every row is above 0.
    names : tuple of str
        What messages call the rows.
    left_out : int
        Rows that show nothing, or have no good label, and teach nothing.
    """

    queries: tuple[Query, ...]
    Y: F64
    names: tuple[str, ...]
    left_out: int = 0

    @classmethod
    def of(cls, data: Evaluations, prompt: AdapterPrompt) -> Requests:
        """Return the rows that show something and have a good label."""
        Y = data.labels.Y
        good = np.nansum(Y, axis=1) > 0
        queries = data.queries
        rows = [at for at, q in enumerate(queries) if good[at] and prompt.shown(q) is not None]
        return cls(
            tuple(queries[at] for at in rows),
            Y[rows],
            tuple(data.samples[at].id for at in rows),
            len(queries) - len(rows),
        )

    def __len__(self) -> int:
        return len(self.queries)

    @property
    def shares(self) -> F64:
        """Each label's share of a row's scores; rows sum to 1."""
        found = np.nan_to_num(self.Y)
        share: F64 = found / found.sum(axis=1, keepdims=True)
        return share

    def drawn(self, *, seed: int, epoch: int) -> Int:
        """Return the label that each row teaches in an epoch, drawn by its shares."""
        edges = self.shares.cumsum(axis=1)
        draws = np.random.default_rng([seed, epoch, 1]).uniform(size=(len(self), 1))
        picked = (draws * edges[:, -1:] >= edges).sum(axis=1)
        return np.asarray(picked, dtype=np.int64)


@dataclass(frozen=True, eq=False)
class Lesson:
    """What is to be learned.

    Parameters
    ----------
    labels : tuple of str
        The names, in the order of the columns.
    prompt : AdapterPrompt
    train, validation : Requests
    text : TextRule
        How texts were made from conversations.
    """

    labels: tuple[str, ...]
    prompt: AdapterPrompt
    train: Requests
    validation: Requests
    text: TextRule


def check_lesson(lesson: Lesson) -> None:
    """Refuse what nothing can be learned from.

    Raises
    ------
    DataError
        A part has no row, or the training rows name fewer than two labels.
    """
    for part, rows in (("training", lesson.train), ("validation", lesson.validation)):
        if not len(rows):
            raise DataError(
                f"No {part} row shows the adapter anything and has a good answer; it cannot learn."
            )
    _check_labels(lesson.labels, np.nansum(lesson.train.Y, axis=0))


def _check_labels(labels: Sequence[str], taught: F64) -> None:
    if (taught > 0).sum() < 2:
        raise DataError(
            f"The training rows name fewer than two labels (of {', '.join(labels)}); there is "
            "nothing to tell apart."
        )
