"""Kinds of queries, so that a report can say where a router does well and where it fails."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from router_runtime.types import F64, Bool, Query

MAX_VALUES: Final = 20
"""Values of one kind of slice; the rarest are pooled beyond that."""

MAX_NAME: Final = 80
"""Characters of a data set's name, which comes from the data file."""

UNNAMED: Final = "(no data set)"

DATA_SET, MODALITY, LENGTH, NOVELTY = "data set", "modality", "prompt length", "novelty"

LENGTH_BOUNDS: Final = (200, 1_000, 4_000)
"""Characters: a sentence or two, a paragraph, a page or two, more. Fixed bounds and no quartiles,
so that slices mean the same in every report and can be compared between data sets."""

LENGTHS: Final = ("< 200 characters", "200 - 999", "1,000 - 3,999", ">= 4,000")

NOVELTY_BOUNDS: Final = (0.5, 0.9, 0.99)
"""A query like the training data has a uniform novelty: half of them are in the first band, and one
of a hundred in the last, where a recommended policy falls back."""

NOVELTIES: Final = ("<= 0.5", "0.5 - 0.9", "0.9 - 0.99", "> 0.99")

_ORDER: Final = {
    MODALITY: ("text", "image", "text+image"),
    LENGTH: LENGTHS,
    NOVELTY: NOVELTIES,
}


def slice_labels(
    queries: Sequence[Query], datasets: Sequence[str | None], novelty: F64 | None = None
) -> dict[str, tuple[str, ...]]:
    """Say of each query which slices it is in.

    A kind by which all queries are alike is left out: its slice would be the whole.

    Parameters
    ----------
    queries : sequence of Query
    datasets : sequence of (str or None)
        One per query; None where it names no data set.
    novelty : ndarray of shape (n_queries,), float64 in [0, 1], optional
        Left out where it is not known.

    Returns
    -------
    mapping of kind to tuple of str
        ``data set``, ``modality``, ``prompt length`` (characters of the whole request) and
        ``novelty``, each with one value per query; at most ``MAX_VALUES`` different ones, of which
        the last may be ``other (N values)``.
    """
    lengths = np.searchsorted(LENGTH_BOUNDS, [query.total_chars for query in queries], "right")
    labels = {
        DATA_SET: [_short(name) for name in datasets],
        MODALITY: [_modality(query) for query in queries],
        LENGTH: [LENGTHS[band] for band in lengths],
    }
    if novelty is not None:
        bands = np.searchsorted(NOVELTY_BOUNDS, novelty, "left")
        labels[NOVELTY] = [NOVELTIES[band] for band in bands]
    return {kind: _pooled(values) for kind, values in labels.items() if len(set(values)) > 1}


def ordered_values(kind: str, labels: Sequence[str]) -> list[str]:
    """Return the values that occur, in the order in which a reader expects them.

    Bands rise; anything else comes by falling count and then by name, the pooled rest last.
    """
    counts = Counter(labels)
    known = _ORDER.get(kind, ())
    rest = [value for value in counts if value not in known]
    rest.sort(key=lambda value: (value.startswith("other ("), -counts[value], value))
    return [value for value in known if value in counts] + rest


def slice_rows(labels: Mapping[str, Sequence[str]]) -> list[tuple[str, str, Bool]]:
    """Return kind, value and the mask (n_queries,) of every slice, in reading order."""
    found = []
    for kind, values in labels.items():
        array = np.asarray(values, dtype=object)
        found += [(kind, value, array == value) for value in ordered_values(kind, values)]
    return found


def _short(name: str | None) -> str:
    if not name:
        return UNNAMED
    return name if len(name) <= MAX_NAME else f"{name[: MAX_NAME - 3]}..."


def _modality(query: Query) -> str:
    return "+".join(kind for kind in ("text", "image") if kind in query.modalities) or "text"


def _pooled(values: Sequence[str]) -> tuple[str, ...]:
    counts = Counter(values)
    if len(counts) <= MAX_VALUES:
        return tuple(values)
    kept = {value for value, _ in counts.most_common(MAX_VALUES - 1)}
    rest = f"other ({len(counts) - len(kept)} values)"
    return tuple(value if value in kept else rest for value in values)
