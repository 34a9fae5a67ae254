"""Which rows of a file an artifact has never seen: a guard against flattering figures.

An artifact keeps digests of the records that it was made from, and how they were divided. Records
that match are divided again, and only their test rows are used. It also keeps a mark of four bytes
of each record that it learned from, so that these are known again in any other file: in another
order, in part, among others, or with other ids. No text can be read from a mark; who guesses one
word for word can check the guess.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from router_runtime.errors import ArtifactError, DataError
from router_runtime.prediction.heads.base import RESTORE
from router_runtime.types import Bool, Int, Json
from router_training.config import TrainingConfig
from router_training.labels import Evaluations
from router_training.splits import Split, split_evaluations


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


def marks_of(data: Evaluations) -> str:
    """Return the marks of the records as base64, for ``training["seen"]``: sorted, none twice."""
    return base64.b64encode(np.unique(_marks(data)).tobytes()).decode()


def _marks(data: Evaluations) -> NDArray[np.uint32]:
    """Return the first four bytes of a digest of text and pictures, per record."""
    marks = []
    for sample in data.samples:
        content = [sample.query.text, [image.sha256 for image in sample.query.images]]
        marks.append(hashlib.sha256(json.dumps(content).encode()).digest()[:4])
    return np.frombuffer(b"".join(marks), dtype="<u4")


def seen_rows(entries: Sequence[Mapping[str, Json]], data: Evaluations) -> Bool:
    """Return which records (n_rows,) bear a mark that one of the entries tells.

    Parameters
    ----------
    entries : sequence of mapping
        An artifact's provenance, or parts of it that tell ``seen``; others know nothing.
    data : Evaluations

    Raises
    ------
    ArtifactError
        The marks are malformed.
    """
    try:
        told = [
            np.frombuffer(base64.b64decode(entry["seen"], validate=True), dtype="<u4")
            for entry in entries
            if "seen" in entry
        ]
    except (TypeError, ValueError) as error:
        raise ArtifactError(f"training.seen of the artifact is malformed. {RESTORE}") from error
    if not told:
        return np.zeros(len(data), dtype=np.bool_)
    return np.isin(_marks(data), np.concatenate(told))


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
        "seen": marks_of(data.take(np.setdiff1d(np.arange(len(data)), split.test))),
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
        The artifact has learned from all of these records, or was trained on these very records
        and the division cannot be made again.
    ArtifactError
        What the provenance tells of seen rows is malformed.
    """
    _check_division(training)
    everything = np.arange(len(data), dtype=np.int64)
    added = _added(training)
    found = _matching(training, data)
    if found is None:
        unseen = everything[~seen_rows([training, *added], data)]
        n_seen = len(data) - len(unseen)
        if not n_seen:
            return HeldOut(everything)
        known = f"{n_seen} of the {len(data)} records, known by text and pictures,"
        message = (
            f"The artifact has learned from {known} and they are left out (--all-rows takes all)."
        )
    else:
        test = _test_rows(training, data.take(found), found)
        unseen = test[~seen_rows(added, data.take(test))]
        n_seen = len(found) - len(unseen) if len(test) else 0
        message = (
            f"The artifact was trained on these records: only the {len(unseen)} test rows of "
            f"{len(data)} are evaluated (--all-rows takes all)."
        )
        if len(unseen) < len(test):
            message += f" {len(test) - len(unseen)} more test rows served to add a model."
    if all_rows:
        return HeldOut(
            everything,
            f"All {len(data)} rows are evaluated, although {n_seen or 'some'} of them were trained "
            "on or tuned on: the figures flatter.",
        )
    if not len(unseen):
        raise DataError(
            "The artifact has learned from all of these records, or was trained on these very "
            "records and how they were divided cannot be told. Evaluate on other records, or pass "
            "--all-rows for figures that flatter."
        )
    return HeldOut(unseen, message)


def _added(training: Mapping[str, Json]) -> list[Mapping[str, Json]]:
    """Return what is told of models that were added after training."""
    entries = training.get("added", [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ArtifactError(f"training.added of the artifact is malformed. {RESTORE}")
    return entries


def _check_division(training: Mapping[str, Json]) -> None:
    """Refuse a provenance that names a division which could not have been made.

    Raises
    ------
    ArtifactError
        It does.
    """
    if "rows_sha256" not in training:
        return
    seed, limit, shares = (training.get(name) for name in ("seed", "limit", "fractions"))
    seeded = type(seed) is int and seed >= 0
    limited = limit is None or (type(limit) is int and limit >= 0)
    divided = shares is None or (
        isinstance(shares, list)
        and len(shares) == 4
        and all(type(share) in (int, float) and 0 <= share <= 1 for share in shares)
        and "test_sha256" in training
    )
    if not (seeded and limited and divided):
        raise ArtifactError(
            "training.seed, limit or fractions of the artifact are malformed "
            f"({seed!r:.40}, {limit!r:.40}, {shares!r:.80}). {RESTORE}"
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
    split = split_evaluations(made_from, fractions=tuple(fractions), seed=training["seed"])
    same = rows_digest(made_from.take(split.test)) == training["test_sha256"]
    return rows[split.test] if same else rows[:0]
