"""Which rows go to train, val and eval: parts that share no picture and no group.

Rows that share a key (a picture by the exact bytes of its file, a group) stay together, also across
adapters. Such a bunch goes to one part whole; where fewer rows are wanted than a part's bunches
have, each bunch gives one after the other, so that few rows still show many pictures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Protocol

import numpy as np

from router_runtime.errors import DataError
from router_runtime.types import Int
from router_training.routing.options import Quota


class Divisible(Protocol):
    """What must be known of a row."""

    @property
    def adapter(self) -> str:
        """Who handles it."""

    @property
    def keys(self) -> frozenset[str]:
        """What no row of another part may have."""

    @property
    def pictures(self) -> tuple[str, ...]:
        """What it shows."""


@dataclass(frozen=True)
class Wanted:
    """How much of one adapter goes to train and val together, and how much is held out."""

    train: Quota
    held_out: Quota


@dataclass(frozen=True)
class Parts:
    """Rows of each part in a random order, and the bunch of every row."""

    train: tuple[int, ...]
    val: tuple[int, ...]
    held_out: tuple[int, ...]
    bunch_of: tuple[int, ...]


def divide(
    rows: Sequence[Divisible],
    wanted: Mapping[str, Wanted],
    *,
    train_share: float,
    balanced: bool,
    stratified: bool,
    seed: int,
) -> Parts:
    """Choose and divide rows.

    Parameters
    ----------
    rows : sequence
    wanted : mapping
        By adapter; each occurs in ``rows``.
    train_share : float
        Of the rows that are not held out, those in train.
    balanced : bool
        Leave rows out until all adapters have as many as the smallest, in eval and in train with
        val.
    stratified : bool
        Divide train from val within each adapter, not over all.
    seed : int
        Of every choice.

    Raises
    ------
    DataError
        There are not as many rows or pictures as wanted, or they stand too close together.
    """
    rng = np.random.default_rng(seed)
    bunches = _Bunches(rows, tuple(wanted))
    order = [int(at) for at in rng.permutation(len(bunches.members))]
    held = _held_out(bunches, wanted, order)
    pool = _pool(bunches, wanted, [at for at in order if at not in held])
    eval_rows = _chosen(bunches, held, {a: w.held_out for a, w in wanted.items()}, balanced, rng)
    rest = _chosen(bunches, pool, {a: w.train for a, w in wanted.items()}, balanced, rng)
    val = _validation(bunches, rest, wanted, 1 - train_share, stratified, rng)
    shuffled = [int(at) for at in rng.permutation(np.array(sorted(rest), dtype=np.int64))]
    return Parts(
        train=tuple(at for at in shuffled if bunches.of[at] not in val),
        val=tuple(at for at in shuffled if bunches.of[at] in val),
        held_out=tuple(int(at) for at in rng.permutation(np.array(sorted(eval_rows), dtype=int))),
        bunch_of=bunches.of,
    )


class _Bunches:
    """Rows that share keys, directly or through others.

    Attributes
    ----------
    of : tuple of int
        The bunch of each row.
    members : list of list of int
        The rows of each bunch.
    n_rows, n_pictures : ndarray of shape (n_bunches, n_adapters), int64
    """

    def __init__(self, rows: Sequence[Divisible], adapters: tuple[str, ...]) -> None:
        self.adapters = adapters
        self.adapter_of = [adapters.index(row.adapter) for row in rows]
        roots = list(range(len(rows)))

        def root(at: int) -> int:
            while roots[at] != at:
                roots[at] = roots[roots[at]]
                at = roots[at]
            return at

        first: dict[str, int] = {}
        for at, row in enumerate(rows):
            for key in sorted(row.keys):
                a, b = root(first.setdefault(key, at)), root(at)
                roots[max(a, b)] = min(a, b)
        numbers: dict[int, int] = {}
        self.of = tuple(numbers.setdefault(root(at), len(numbers)) for at in range(len(rows)))
        self.members: list[list[int]] = [[] for _ in numbers]
        shown: list[list[set[str]]] = [[set() for _ in adapters] for _ in numbers]
        self.n_rows: Int = np.zeros((len(numbers), len(adapters)), dtype=np.int64)
        for at, row in enumerate(rows):
            self.members[self.of[at]].append(at)
            self.n_rows[self.of[at], self.adapter_of[at]] += 1
            shown[self.of[at]][self.adapter_of[at]].update(row.pictures)
        self.n_pictures: Int = np.array(
            [[len(names) for names in bunch] for bunch in shown], dtype=np.int64
        )


def _held_out(bunches: _Bunches, wanted: Mapping[str, Wanted], order: Sequence[int]) -> list[int]:
    """Return bunches with enough rows for eval that leave enough for train.

    Where both parts are limited, what there is is divided in proportion, so that eval shows its
    share of the pictures and not as few as would do.
    """
    available = bunches.n_rows.sum(axis=0)
    enough = np.zeros(len(wanted))
    limit, reserve = np.full(len(wanted), np.inf), np.ones(len(wanted))
    for a, want in enumerate(wanted.values()):
        held, train = want.held_out, want.train
        limit[a] = np.inf if held.images is None else held.images
        reserve[a] = 1 if train.samples is None else train.samples
        if held.images is not None:
            enough[a] = np.inf  # as many pictures as the limit lets through
        elif held.samples is not None:
            share = 1.0 if train.samples is None else held.samples + train.samples
            scale = available[a] / share if train.samples is not None else 1.0
            enough[a] = held.samples * max(scale, 1.0)
    rows, pictures = np.zeros(len(wanted)), np.zeros(len(wanted))
    taken: list[int] = []
    for at in order:
        n, shown = bunches.n_rows[at], bunches.n_pictures[at]
        here = n > 0
        wants = (rows < enough) & (pictures < limit)
        fits = (pictures + shown <= limit) & (available - rows - n >= reserve)
        asked = np.array([not want.held_out.is_open for want in wanted.values()])
        if (wants & here).any() and (fits & asked)[here].all():
            taken.append(at)
            rows, pictures = rows + n, pictures + shown
    for a, (adapter, want) in enumerate(wanted.items()):
        _check(adapter, want.held_out, rows[a], pictures[a], int(available[a]), "eval")
    return taken


def _pool(bunches: _Bunches, wanted: Mapping[str, Wanted], left: Sequence[int]) -> list[int]:
    """Return the bunches for train and val: all, or as many pictures as wanted."""
    limit = np.array(
        [np.inf if w.train.images is None else w.train.images for w in wanted.values()]
    )
    rows, pictures = np.zeros(len(wanted)), np.zeros(len(wanted))
    taken: list[int] = []
    for at in left:
        here = bunches.n_rows[at] > 0
        if (pictures + bunches.n_pictures[at] <= limit)[here].all():
            taken.append(at)
            rows, pictures = rows + bunches.n_rows[at], pictures + bunches.n_pictures[at]
    for a, (adapter, want) in enumerate(wanted.items()):
        available = int(bunches.n_rows[:, a].sum())
        _check(adapter, want.train, rows[a], pictures[a], available, "train")
    return taken


def _check(
    adapter: str, quota: Quota, rows: float, pictures: float, available: int, part: str
) -> None:
    for unit, want, got in (
        ("samples", quota.samples, rows),
        ("images", quota.images, pictures),
    ):
        if want is not None and got < want:
            raise DataError(
                f"Adapter '{adapter}' has {available} usable rows, of which {part} can have "
                f"{int(got)} {unit} beside the other parts; {want} are wanted (rows that share a "
                f"picture or a group stay together). Lower --{part}-{unit}-{adapter}."
            )


def _chosen(
    bunches: _Bunches,
    among: Sequence[int],
    quotas: Mapping[str, Quota],
    balanced: bool,
    rng: np.random.Generator,
) -> set[int]:
    """Return rows of some bunches: as many of each adapter as wanted, bunch after bunch."""
    lists: list[list[int]] = []
    for a, quota in enumerate(quotas.values()):
        queues = [
            [int(at) for at in rng.permutation(bunches.members[b]) if bunches.adapter_of[at] == a]
            for b in among
        ]
        turns = [at for turn in zip_longest(*queues) for at in turn if at is not None]
        lists.append(turns[: quota.samples])
    if balanced:
        least = min(len(rows) for rows in lists)
        lists = [rows[:least] for rows in lists]
    return {at for rows in lists for at in rows}


def _validation(
    bunches: _Bunches,
    rows: set[int],
    wanted: Mapping[str, Wanted],
    share: float,
    stratified: bool,
    rng: np.random.Generator,
) -> set[int]:
    """Return the bunches whose chosen rows go to val."""
    counts = np.zeros_like(bunches.n_rows)
    for at in rows:
        counts[bunches.of[at], bunches.adapter_of[at]] += 1
    totals = counts.sum(axis=0)
    for a, adapter in enumerate(wanted):
        if np.count_nonzero(counts[:, a]) < 2:
            raise DataError(
                f"All rows of adapter '{adapter}' share a picture or a group, so train and val "
                "cannot both have some. Add rows with other pictures."
            )
    strata = counts if stratified else counts.sum(axis=1, keepdims=True)
    target = share * strata.sum(axis=0)
    got = np.zeros(strata.shape[1])
    moved = np.zeros_like(totals)
    taken: set[int] = set()

    def take(b: int) -> None:
        nonlocal got, moved
        taken.add(b)
        got, moved = got + strata[b], moved + counts[b]

    order = [int(b) for b in rng.permutation(len(counts)) if counts[b].any()]
    for b in order:
        here = strata[b] > 0
        near = (got + strata[b] / 2 <= target)[here].all()  # nearer with it than without
        if near and ((totals - moved - counts[b])[counts[b] > 0] > 0).all():
            take(b)
    for a in range(strata.shape[1]):
        if got[a] == 0:  # every bunch is larger than the share: the smallest that train can spare
            spare = [b for b in order if strata[b, a] and (totals - moved - counts[b] > 0).all()]
            if spare:
                take(min(spare, key=lambda b: int(strata[b, a])))
    return taken
