"""How well labels are told apart: loss, accuracy, macro-F1, confusion matrix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from router_runtime.types import F64, Int, Json


@dataclass(frozen=True)
class Figures:
    """What was measured on some rows.

    Parameters
    ----------
    loss : float
        Mean cross-entropy, over scored cells.
    accuracy : float
        ``one``: share of rows whose likeliest label is right. ``several``: share of scored cells on
        the right side of one half.
    macro_f1 : float
        Mean over labels of the harmonic mean of precision and recall; a label that neither occurs
        nor is named is left out.
    """

    loss: float
    accuracy: float
    macro_f1: float

    def score(self, objective: Literal["one", "several"]) -> tuple[float, float]:
        """Return what early stopping compares; more is better."""
        return (self.macro_f1, -self.loss) if objective == "one" else (-self.loss, self.macro_f1)


def measure(logits: F64, Y: F64, *, objective: Literal["one", "several"]) -> Figures:
    """Measure logits (n_rows, n_labels) against scores, NaN = unscored.

    With ``one`` rows may also be shares that sum to 1; the label with the greatest is the right one
    then, or any of those that have it.
    """
    if objective == "one":
        shifted = logits - logits.max(axis=1, keepdims=True)
        log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
        truth, said = Y.argmax(axis=1), logits.argmax(axis=1)
        counts = confusion(truth, said, n_labels=Y.shape[1])
        loss = -float((Y * log_p).sum(axis=1).mean())
        right = Y[np.arange(len(Y)), said] == Y.max(axis=1)
        return Figures(loss, float(right.mean()), macro_f1(counts))
    scored = ~np.isnan(Y)
    y = np.where(scored, Y, 0.0)
    cells = np.logaddexp(0.0, logits) - y * logits
    good, said_good = (y >= 0.5) & scored, (logits > 0) & scored
    hits = (good & said_good).sum(axis=0)
    named, real = said_good.sum(axis=0), good.sum(axis=0)
    return Figures(
        float(cells[scored].mean()),
        float((good == said_good)[scored].mean()),
        _mean_f1(hits, named, real),
    )


def confusion(truth: Int, said: Int, *, n_labels: int) -> Int:
    """Return counts (n_labels, n_labels), int64: rows are true, columns are said."""
    counts = np.zeros((n_labels, n_labels), dtype=np.int64)
    np.add.at(counts, (truth, said), 1)
    return counts


def macro_f1(counts: Int) -> float:
    """Return the macro-F1 of a confusion matrix; NaN where it is empty."""
    return _mean_f1(np.diag(counts), counts.sum(axis=0), counts.sum(axis=1))


def per_label(counts: Int, labels: Sequence[str]) -> dict[str, Json]:
    """Return precision, recall, F1 and rows of each label; None where nothing can be divided."""
    hits, named, real = np.diag(counts), counts.sum(axis=0), counts.sum(axis=1)
    found = {}
    for at, label in enumerate(labels):
        both = int(named[at] + real[at])
        found[label] = {
            "precision": hits[at] / named[at] if named[at] else None,
            "recall": hits[at] / real[at] if real[at] else None,
            "f1": 2 * hits[at] / both if both else None,
            "rows": int(real[at]),
        }
    return found


def _mean_f1(hits: Int, named: Int, real: Int) -> float:
    both = named + real
    seen = both > 0
    return float((2 * hits[seen] / both[seen]).mean()) if seen.any() else float("nan")
