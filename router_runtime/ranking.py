"""Sorting columns row by row, fast for one query and for many."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from router_runtime.types import F64, Bool, Int

# NumPy converts a Python number anew in every call, which counts where there is one query.
_INFINITY = np.array(np.inf)


def all_true(mask: Bool) -> bool:
    """Return ``mask.all()``, which takes eight times as long for a few models of one query."""
    return int(np.count_nonzero(mask)) == mask.size


def unknown_last(cost: F64) -> F64:
    """Return costs as sorting keys: unknown ones behind all others."""
    return np.where(np.isnan(cost), _INFINITY, cost)


def order(eligible: Bool, *keys: F64 | Bool) -> Int:
    """Return each row's columns sorted by keys.

    Parameters
    ----------
    eligible : ndarray of shape (n_queries, n_models), bool
        Others come last, as -1.
    *keys : ndarray of shape (n_queries, n_models)
        The most important first; ascending, stable.
    """
    every = all_true(eligible)
    found = _order_by_first(eligible, keys) if _is_wide(eligible, keys[0]) else None
    if found is None:  # lexsort wants the most important key last
        found = np.lexsort(keys[::-1] if every else (*reversed(keys), ~eligible), axis=-1)
    if every:
        return found
    place = np.arange(eligible.shape[1])
    filled: Int = np.where(place < eligible.sum(axis=1, keepdims=True), found, -1)
    return filled


def _is_wide(eligible: Bool, key: F64 | Bool) -> bool:
    n_queries, n_models = eligible.shape
    return n_queries >= 512 and n_models > 8 and key.dtype == np.float64


def _order_by_first(eligible: Bool, keys: Sequence[F64 | Bool]) -> Int | None:
    """Sort by the first key alone, several times as fast, and by all where that leaves a tie.

    The ineligible columns come last in any order. None where the key is infinite for an eligible
    one.
    """
    first = np.where(eligible, keys[0], _INFINITY)
    order = np.argsort(first, axis=-1)
    found = np.take_along_axis(first, order, axis=-1)
    finite = found < _INFINITY
    if np.count_nonzero(finite) != np.count_nonzero(eligible):
        return None
    tied = np.flatnonzero(((found[:, 1:] == found[:, :-1]) & finite[:, 1:]).any(axis=1))
    if tied.size:
        last = [key[tied] for key in reversed(keys)]
        order[tied] = np.lexsort((*last, ~eligible[tied]), axis=-1)
    return order
