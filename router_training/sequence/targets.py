"""What a classifier is taught: texts, and per text and label a score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from router_runtime.errors import DataError
from router_runtime.types import F64, Query
from router_training.predictor_configs import Objective


@dataclass(frozen=True, eq=False)
class Texts:
    """Rows to learn from, or to measure on.

    Parameters
    ----------
    texts : tuple of str
        Never empty.
    Y : ndarray of shape (n_texts, n_labels), float64 in [0, 1], NaN = unscored
    """

    texts: tuple[str, ...]
    Y: F64

    @classmethod
    def of(cls, queries: Sequence[Query], Y: F64) -> Texts:
        """Return the rows that have a text and some score."""
        scored = np.count_nonzero(~np.isnan(Y), axis=1) > 0
        rows = [at for at, query in enumerate(queries) if query.text and scored[at]]
        return cls(tuple(queries[at].text for at in rows), Y[rows])

    def __len__(self) -> int:
        return len(self.texts)


def has_one_label(Y: F64) -> bool:
    """Return whether in every row exactly one label is right and all are known."""
    return bool(len(Y)) and bool((np.isin(Y, (0.0, 1.0)).all(axis=1) & (Y.sum(axis=1) == 1)).all())


def settled_objective(objective: Objective, Y: F64) -> Literal["one", "several"]:
    """Return what ``auto`` means for these training rows.

    Raises
    ------
    DataError
        ``one`` is asked for, and some row has no label or two.
    """
    one = has_one_label(Y)
    if objective == "one" and not one:
        raise DataError(
            "Objective 'one' needs exactly one right label in every row; some row has several, or "
            "none, or an unscored one. Use 'several', or 'auto'."
        )
    if objective == "auto":
        return "one" if one else "several"
    return objective
