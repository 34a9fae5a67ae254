"""Train, validation, calibration and test rows that share no group."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from router_runtime.errors import ConfigError, DataError
from router_runtime.types import F64, Int

MIN_ROWS: Final = 20
"""Below this no part says anything; with a tenth for validation, two rows remain."""


@dataclass(frozen=True, eq=False)
class Split:
    """Rows of each part, int64, ascending; no row is in two.

    Parameters
    ----------
    train : ndarray of shape (n_train,)
        What heads and encoders are fitted on.
    validation : ndarray of shape (n_validation,)
        For early stopping and the choice of hyper-parameters.
    calibration : ndarray of shape (n_calibration,)
        For calibration maps and for tuning the policy.
    test : ndarray of shape (n_test,)
        Looked at once, by the evaluation.
    """

    train: Int
    validation: Int
    calibration: Int
    test: Int

    @property
    def fingerprint(self) -> str:
        """Hex digest of which rows are in which part."""
        parts = (self.train, self.validation, self.calibration, self.test)
        return hashlib.sha256(repr([part.tolist() for part in parts]).encode()).hexdigest()


def split_by_group(
    groups: Sequence[str],
    *,
    fractions: tuple[float, float, float, float] = (0.6, 0.1, 0.1, 0.2),
    seed: int = 0,
) -> Split:
    """Divide rows so that no group is in two parts.

    Groups come in random order and each goes to the part that lacks the most rows, so every part
    is a random sample of the groups. Only groups too large to fit anywhere by chance (more than
    half of the smallest part) are placed first, the largest first; the parts then share the other
    rows in proportion to what they still lack.

    Parameters
    ----------
    groups : sequence of str
        The group of each row.
    fractions : tuple of 4 float
        Wanted shares of the rows; 0 leaves a part empty.
    seed : int
        Of the order.

    Raises
    ------
    ConfigError
        The fractions are not four numbers from 0 to 1 that sum to 1.
    DataError
        Fewer than 20 rows, or fewer groups than parts.
    """
    _check(groups, fractions)
    places: dict[str, int] = {}
    group_of_row = np.array([places.setdefault(group, len(places)) for group in groups])
    sizes = np.bincount(group_of_row)
    wanted = np.asarray(fractions, dtype=np.float64) * len(groups)
    used = wanted > 0
    if len(sizes) < used.sum():
        raise DataError(
            f"{len(sizes)} groups cannot fill {used.sum()} parts; collect more distinct prompts, "
            "use finer groups, or set some fractions to 0."
        )
    order = np.random.default_rng(seed).permutation(len(sizes))
    large = sizes[order] > wanted[used].min() / 2
    order = order[np.argsort(np.where(large, -sizes[order], 0), kind="stable")]
    part_of_group = _placed(sizes[order], wanted, n_large=int(large.sum()))[np.argsort(order)]
    part_of_row = part_of_group[group_of_row]
    return Split(*(np.flatnonzero(part_of_row == part).astype(np.int64) for part in range(4)))


def _placed(sizes: Int, wanted: F64, *, n_large: int) -> Int:
    """Return the part of each group, given in the order in which they are placed."""
    lacking = np.where(wanted > 0, wanted, -np.inf)
    empty = set(np.flatnonzero(wanted > 0).tolist())
    parts = np.empty(len(sizes), dtype=np.int64)
    for at, size in enumerate(sizes):
        if 0 < at == n_large and (lacking > 0).any():
            short = np.maximum(lacking, 0)
            lacking = np.where(wanted > 0, short * sizes[at:].sum() / short.sum(), -np.inf)
        part = int(np.argmax(lacking))
        if part not in empty and len(sizes) - at == len(empty):
            part = max(empty, key=lambda candidate: lacking[candidate])
        empty.discard(part)
        lacking[part] -= size
        parts[at] = part
    return parts


def _check(groups: Sequence[str], fractions: Sequence[float]) -> None:
    if (
        len(fractions) != 4
        or not all(math.isfinite(share) and 0 <= share <= 1 for share in fractions)
        or abs(sum(fractions) - 1) > 1e-6
    ):
        raise ConfigError(
            f"The split fractions {tuple(fractions)} must be four numbers from 0 to 1 (train, "
            "validation, calibration, test) that sum to 1."
        )
    if len(groups) < MIN_ROWS:
        raise DataError(
            f"{len(groups)} rows are too few to train, calibrate and test on; at least {MIN_ROWS} "
            "are needed, and useful routers start at about 1,000. Collect more evaluation records."
        )
