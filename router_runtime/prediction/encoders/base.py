"""What the encoders share: fingerprints, batches of distinct inputs, and the check of every output.

An encoder is anything with the attributes and methods of ``types.Encoder``; there is no base class.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from router_runtime.errors import EncoderError
from router_runtime.types import F32, Encoder, JointEncoder, Json

T = TypeVar("T")

_BLOCK = 1 << 20


def fingerprint_of(parts: Mapping[str, Json]) -> str:
    """Return the sha256 hex digest of ``parts`` as canonical JSON (sorted keys, no spaces).

    Parameters
    ----------
    parts : mapping
        Everything that changes an encoder's output, and nothing else: no device, batch size, URL
        or file path.

    Raises
    ------
    EncoderError
        A value is not JSON; such a fingerprint would not be reproducible.
    """
    try:
        text = json.dumps(parts, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise EncoderError(
            f"the encoder cannot be fingerprinted: {error}. Describe it by JSON values only."
        ) from error
    return hashlib.sha256(text.encode()).hexdigest()


def file_digest(path: Path) -> str:
    """Return the sha256 hex digest of a file; memory use does not grow with its size."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def files_digest(paths: Iterable[Path], *, root: Path | None = None) -> str:
    """Return one sha256 hex digest over names and contents of files, in whatever order they come.

    Parameters
    ----------
    paths : iterable of Path
        Files to read.
    root : Path, optional
        Names count relative to this folder; without it only the last part of each path counts.
        Where the folder lies never matters.
    """
    named = sorted((p.relative_to(root).as_posix() if root else p.name, p) for p in paths)
    return fingerprint_of({"files": [[name, file_digest(path)] for name, path in named]})


def well_formed(text: str) -> str:
    """Return ``text`` with lone surrogates replaced by ``?``.

    JSON can spell half of a surrogate pair. Tokenizers and HTTP clients fail on it; a request must
    not.
    """
    return text.encode("utf-8", "replace").decode("utf-8")


def absent_half(n: int) -> F32:
    """Return the float32 (n, 0) array of a half that the encoder does not have."""
    return np.zeros((n, 0), dtype=np.float32)


def joint_dim(encoder: Encoder) -> int:
    """Return the columns for text and pictures seen together; 0 where it sees them apart."""
    return encoder.joint_dim if isinstance(encoder, JointEncoder) else 0


def encode_distinct(
    items: Sequence[T],
    encode: Callable[[list[T]], F32],
    *,
    dim: int,
    batch_size: int,
    key: Callable[[T], Hashable],
    size: Callable[[T], int] | None = None,
    budget: int | None = None,
) -> F32:
    """Encode every distinct item once, in batches of similar size, and answer in the given order.

    Parameters
    ----------
    items : sequence
        Inputs, possibly repeated.
    encode : callable
        Turns at most ``batch_size`` items into float32 (n_items, dim).
    dim : int
        Columns that every answer must have.
    batch_size : int
        Most items of one call of ``encode``.
    key : callable
        Items with equal keys are equal.
    size : callable, optional
        Items are batched in the order of this size, so that little is padded. Largest first: a
        batch that does not fit into memory fails at once and not after an hour.
    budget : int, optional
        Most that a batch may measure, padded: its largest size times its number of items. An item
        that is larger is a batch of its own.

    Returns
    -------
    ndarray of shape (n_items, dim), float32, finite

    Raises
    ------
    EncoderError
        An answer has another shape or holds NaN or infinity.
    """
    rows: dict[Hashable, int] = {}
    distinct: list[T] = []
    order = np.empty(len(items), dtype=np.int64)
    for i, item in enumerate(items):
        order[i] = row = rows.setdefault(key(item), len(rows))
        if row == len(distinct):
            distinct.append(item)
    by_size = list(range(len(distinct)))
    sizes = [1] * len(distinct)
    if size is not None:
        sizes = [size(item) for item in distinct]
        by_size.sort(key=[-one for one in sizes].__getitem__)
    out = np.empty((len(distinct), dim), dtype=np.float32)
    while by_size:
        most = batch_size
        if budget is not None:
            most = min(most, max(1, budget // max(1, sizes[by_size[0]])))
        batch, by_size = by_size[:most], by_size[most:]
        out[batch] = checked(encode([distinct[row] for row in batch]), rows=len(batch), dim=dim)
    return out[order]


def checked(vectors: F32, *, rows: int, dim: int) -> F32:
    """Return ``vectors`` as float32 when it is finite and of shape (rows, dim).

    Raises
    ------
    EncoderError
        Otherwise: a vector that is not a number must not become a feature.
    """
    if vectors.shape != (rows, dim):
        raise EncoderError(
            f"the encoder answered with shape {vectors.shape}, expected ({rows}, {dim}). "
            "Check that the model and its dimension in the encoder's settings belong together."
        )
    if not np.isfinite(vectors).all():
        raise EncoderError(
            "the encoder answered with NaN or infinite values. Its weights are damaged, or its "
            "numeric precision does not suit the device; encode on the CPU to find out."
        )
    return vectors.astype(np.float32, copy=False)
