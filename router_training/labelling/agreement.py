"""Shares and agreement with their uncertainty, from sums alone: a million answers fit in a few.

The answers of several models to one sample are not independent, so that they are counted by
sample. A share's interval is Wilson's at the effective sample size, the size of a simple random
sample with the same variance (Kish, "Survey sampling", 1965; for intervals: Franco et al.,
"Comparative study of confidence intervals for proportions in complex sample surveys", JSSAM 7,
2019). Where every sample says the same there is no variance to go by, and samples count as ones.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from itertools import combinations

import numpy as np

from router_runtime.types import F64
from router_training.bootstrap import divided
from router_training.evaluation_report import Interval
from router_training.trust_report import Share

_Z = 1.959963984540054  # of 95 %


class ShareTally:
    """Counts hits among trials, sample by sample."""

    def __init__(self) -> None:
        self._samples = 0
        self._sums = [0.0] * 5  # x, n, x x, x n, n n

    def add(self, hits: float, n: int) -> None:
        """Add one sample with ``hits`` among ``n`` trials; one without trials counts nowhere."""
        if n:
            self._samples += 1
            for at, value in enumerate((hits, n, hits * hits, hits * n, n * n)):
                self._sums[at] += value

    def share(self) -> Share:
        """Return the share with its interval."""
        hits, n, xx, xn, nn = self._sums
        if not n:
            return Share(0, math.nan, math.nan, math.nan)
        p = hits / n
        low, high = _wilson(p, self._effective(p, n, xx - 2 * p * xn + p * p * nn))
        return Share(int(n), p, low, high)

    def known(self) -> Share | None:
        """Return the share, None where nothing was counted."""
        return self.share() if self._samples else None

    def _effective(self, p: float, n: float, squares: float) -> float:
        m = self._samples
        if m < 2 or p in (0.0, 1.0):
            return float(m)
        variance = max(squares, 0.0) * m / (m - 1) / (n * n)
        spread = p * (1 - p)
        return n if variance * n <= spread else spread / variance


def _wilson(p: float, n: float) -> tuple[float, float]:
    centre = (p + _Z * _Z / (2 * n)) / (1 + _Z * _Z / n)
    half = _Z / (1 + _Z * _Z / n) * math.sqrt(p * (1 - p) / n + _Z * _Z / (4 * n * n))
    low = 0.0 if p == 0 else max(0.0, centre - half)  # these two are exact, but for rounding
    return low, 1.0 if p == 1 else min(1.0, centre + half)


def unanimous(
    weights: F64, groups: Sequence[Hashable], confusion: F64
) -> tuple[Interval, Interval]:
    """Return accuracy and kappa with intervals where all marks agree with their labels, or none.

    Drawing such marks again shows no variance, which five marks would share with five thousand. The
    interval of the accuracy is Wilson's at Kish's effective number of samples, and that of kappa
    follows from it at the same agreement by chance.

    Parameters
    ----------
    weights : ndarray of shape (n,)
        Of the marked labels.
    groups : sequence of hashable
        Their samples.
    confusion : ndarray of shape (1, 4)
        Their sums, as in ``accuracy``.
    """
    sums: dict[Hashable, float] = {}
    for group, weight in zip(groups, weights, strict=True):
        sums[group] = sums.get(group, 0.0) + float(weight)
    found = float(accuracy(confusion)[0])
    low, high = _wilson(found, sum(sums.values()) ** 2 / sum(v * v for v in sums.values()))
    chance = float(_chance(confusion)[0])
    kappa = float(cohens_kappa(confusion)[0])
    if math.isnan(kappa):
        return Interval(found, low, high), Interval(kappa, math.nan, math.nan)
    beyond = [(bound - chance) / (1 - chance) for bound in (low, high)]
    return Interval(found, low, high), Interval(kappa, max(-1.0, beyond[0]), beyond[1])


def equal_pairs(values: Sequence[Hashable]) -> tuple[int, int]:
    """Return how many of the pairs of values are equal, and how many pairs there are."""
    pairs = list(combinations(values, 2))
    return sum(a == b for a, b in pairs), len(pairs)


def equal_across(groups: Sequence[Sequence[Hashable]]) -> tuple[int, int]:
    """Return the same of the pairs of values of two different groups."""
    found: Iterable[tuple[Hashable, Hashable]] = (
        (a, b) for one, two in combinations(groups, 2) for a in one for b in two
    )
    equal = [a == b for a, b in found]
    return sum(equal), len(equal)


def accuracy(confusion: F64) -> F64:
    """Return the share on the diagonal.

    Parameters
    ----------
    confusion : ndarray of shape (n, 4)
        Weights of yes-yes, yes-no, no-yes and no-no.

    Returns
    -------
    ndarray of shape (n,)
        NaN where all weights are 0.
    """
    return divided(confusion[:, 0] + confusion[:, 3], confusion.sum(axis=1))


def cohens_kappa(confusion: F64) -> F64:
    """Return agreement beyond chance (Cohen, 1960): 1 is perfect, 0 is chance.

    Parameters
    ----------
    confusion : ndarray of shape (n, 4)
        As in ``accuracy``.

    Returns
    -------
    ndarray of shape (n,)
        NaN where both sides only ever say the same one thing: nothing tells skill from habit then.
    """
    chance = _chance(confusion)
    beyond = np.where(chance < 1.0 - 1e-12, 1.0 - chance, 0.0)
    return divided(accuracy(confusion) - chance, beyond)


def _chance(confusion: F64) -> F64:
    """Return how often two who know nothing of each other would agree."""
    total = confusion.sum(axis=1)
    yes_yes, yes_no, no_yes, no_no = confusion.T
    one = (yes_yes + yes_no) * (yes_yes + no_yes) + (no_yes + no_no) * (yes_no + no_no)
    return divided(one, total * total)
