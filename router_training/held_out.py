"""Which rows of a file an artifact has never seen: a guard against flattering figures.

An artifact keeps digests of the records that it was made from, and how they were divided; no row
can be told from them. Records that match are divided again, and only their test rows are used.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from router_runtime.errors import DataError
from router_runtime.types import Int, Json
from router_training.config import TrainingConfig
from router_training.labels import Evaluations
from router_training.splits import Split, split_by_group


@dataclass(frozen=True, eq=False)
class HeldOut:
    """The rows to evaluate on.

    Parameters
    ----------
    rows : ndarray of int64
    message : str
        What to tell the user; empty where the artifact was not trained on these records.
    """

    rows: Int
    message: str = ""


def limited_rows(n_rows: int, limit: int | None, *, seed: int) -> Int:
    """Return the rows that ``data.limit`` takes at random, ascending; all without a limit."""
    if limit is None or limit >= n_rows:
        return np.arange(n_rows, dtype=np.int64)
    return np.sort(np.random.default_rng(seed).permutation(n_rows)[:limit])


def rows_digest(data: Evaluations) -> str:
    """Return a hex sha256 of what is asked in each record; scores and costs do not count."""
    digest = hashlib.sha256()
    for sample in data.samples:
        pictures = [image.sha256 for image in sample.query.images]
        content = [sample.id, sample.group, sample.query.text, pictures]
        digest.update(json.dumps(content).encode())
    return digest.hexdigest()


def row_provenance(data: Evaluations, split: Split, config: TrainingConfig) -> dict[str, Json]:
    """Return what ``held_out`` must know, for an artifact's provenance.

    Parameters
    ----------
    data : Evaluations
        The records that were trained and tested on, after ``data.limit``.
    split : Split
    config : TrainingConfig
    """
    return {
        "rows_sha256": rows_digest(data),
        "test_sha256": rows_digest(data.take(split.test)),
        "fractions": list(config.split.fractions),
        "limit": config.data.limit,
        "drop_contaminated": config.data.drop_contaminated,
    }


def held_out(training: Mapping[str, Json], data: Evaluations, *, all_rows: bool = False) -> HeldOut:
    """Return the rows that an artifact was not trained on, and what to say about them.

    Parameters
    ----------
    training : mapping
        The artifact's provenance.
    data : Evaluations
        Records, read as in training.
    all_rows : bool
        Use every row all the same, and say how many were trained on.

    Raises
    ------
    DataError
        The artifact was trained on these very records, but the division cannot be made again.
    """
    everything = np.arange(len(data), dtype=np.int64)
    found = _matching(training, data)
    if found is None:
        return HeldOut(everything)
    test = _test_rows(training, data.take(found), found)
    if all_rows:
        trained_on = f"{len(data) - len(test)} of them were" if len(test) else "some of them were"
        return HeldOut(
            everything,
            f"All {len(data)} rows are evaluated, although {trained_on} trained on or tuned on: "
            "the figures flatter.",
        )
    if not len(test):
        raise DataError(
            "The artifact was trained on these very records, and how they were divided cannot be "
            "told. Evaluate on other records, or pass --all-rows for figures that flatter."
        )
    return HeldOut(
        test,
        f"The artifact was trained on these records: only the {len(test)} test rows of "
        f"{len(data)} are evaluated (--all-rows takes all).",
    )


def _matching(training: Mapping[str, Json], data: Evaluations) -> Int | None:
    """Return the rows of ``data`` that the artifact was made from, None if it was not."""
    if "rows_sha256" not in training:  # an artifact of an earlier version
        same = training.get("data_sha256") == data.fingerprint
        return np.arange(len(data), dtype=np.int64) if same else None
    rows = limited_rows(len(data), training.get("limit"), seed=training["seed"])
    same = rows_digest(data.take(rows)) == training["rows_sha256"]
    return rows if same else None


def _test_rows(training: Mapping[str, Json], made_from: Evaluations, rows: Int) -> Int:
    """Return the test rows among ``rows``; none where the division is not the recorded one."""
    fractions = training.get("fractions")
    if fractions is None:
        return rows[:0]
    split = split_by_group(made_from.groups, fractions=tuple(fractions), seed=training["seed"])
    same = rows_digest(made_from.take(split.test)) == training["test_sha256"]
    return rows[split.test] if same else rows[:0]
