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
from router_training.labels import Evaluations

BLOCK: Final = 20
"""Groups of similar traits that chance orders: two parts of a tenth get two of them each."""

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


def split_evaluations(
    data: Evaluations,
    *,
    fractions: tuple[float, float, float, float] = (0.6, 0.1, 0.1, 0.2),
    seed: int = 0,
) -> Split:
    """Divide evaluations by group into parts that are alike: see ``split_by_group``.

    Alike in data set, in the scores of the model that scores best on all rows, and in the mean
    score of the models. Of some hundred rows drawn at random, those of one part are easier than
    those of another by a point or two, which is as much as routers differ by.
    """
    _, dataset = np.unique([str(name) for name in data.datasets], return_inverse=True)
    Y = data.labels.Y
    scored = ~np.isnan(Y)
    totals, counts = np.where(scored, Y, 0.0).sum(axis=0), scored.sum(axis=0)
    best = int(np.argmax(totals / np.maximum(counts, 1)))
    mean = np.where(scored, Y, 0.0).sum(axis=1) / np.maximum(scored.sum(axis=1), 1)
    traits = np.column_stack([dataset, np.where(scored[:, best], Y[:, best], -1.0), mean])
    return split_by_group(data.groups, fractions=fractions, seed=seed, traits=traits)


def split_by_group(
    groups: Sequence[str],
    *,
    fractions: tuple[float, float, float, float] = (0.6, 0.1, 0.1, 0.2),
    seed: int = 0,
    traits: F64 | None = None,
) -> Split:
    """Divide rows so that no group is in two parts.

    Groups come in random order and each goes to the part that lags most behind its share, so every
    part is a random sample of the groups. With ``traits``, groups are sorted by them, shuffled in
    blocks of ``BLOCK`` and dealt out in that order, so that all parts have the same mixture.
    Only groups too large to fit anywhere by chance (more than half of the smallest part) are placed
    first, the largest first; the parts then share the other rows in proportion to what they still
    lack.

    Parameters
    ----------
    groups : sequence of str
        The group of each row.
    fractions : tuple of 4 float
        Wanted shares of the rows; 0 leaves a part empty.
    seed : int
        Of the order.
    traits : ndarray of shape (n_rows, n_traits), float64, optional
        What parts are to have alike, the most important first; a group has its rows' mean.

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
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(sizes))
    if traits is not None:
        order = _by_traits(order, group_of_row, sizes, traits, rng)
    large = sizes[order] > wanted[used].min() / 2
    order = order[np.argsort(np.where(large, -sizes[order], 0), kind="stable")]
    part_of_group = _placed(sizes[order], wanted, n_large=int(large.sum()))[np.argsort(order)]
    part_of_row = part_of_group[group_of_row]
    return Split(*(np.flatnonzero(part_of_row == part).astype(np.int64) for part in range(4)))


def _by_traits(
    order: Int, group_of_row: Int, sizes: Int, traits: F64, rng: np.random.Generator
) -> Int:
    """Sort the groups in ``order`` by the mean traits of their rows; shuffle within blocks."""
    means = [np.bincount(group_of_row, weights=trait) / sizes for trait in traits.T]
    ranks = [np.round(mean, 9)[order] for mean in reversed(means)]
    ordered = order[np.lexsort(ranks)]
    starts = range(0, len(ordered), BLOCK)
    return np.concatenate([rng.permutation(ordered[start : start + BLOCK]) for start in starts])


def _placed(sizes: Int, wanted: F64, *, n_large: int) -> Int:
    """Return the part of each group, given in the order in which they are placed.

    The first ``n_large`` go where the most is lacking. The others go to the part that lags most
    behind its share of those placed before and one row more; the shares are what is lacking then.
    A group's own size plays no part, or large groups would gather in the large part.
    """
    empty = set(np.flatnonzero(wanted > 0).tolist())
    parts = np.empty(len(sizes), dtype=np.int64)
    lacking = np.where(wanted > 0, wanted, -np.inf)
    share, due = np.zeros(4), lacking
    for at, size in enumerate(sizes):
        if at == n_large:
            short = np.maximum(lacking, 0) if (lacking > 0).any() else np.maximum(wanted, 0)
            share = short / short.sum()
            due = np.where(wanted > 0, 0.0, -np.inf)
        part = int(np.argmax(due + share))
        if part not in empty and len(sizes) - at == len(empty):
            part = max(empty, key=lambda candidate: lacking[candidate])
        empty.discard(part)
        due = due + share * size
        due[part] -= size
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
