"""Vectors on disk by content, so that an interrupted or repeated run encodes only what is new.

One SQLite file per encoder fingerprint and part: ``<fingerprint>-text.sqlite``, ``-image.sqlite``,
and ``-query.sqlite`` for text and pictures that are seen together. Each row is a sha256 of the
content, a float32 vector and a checksum over both. Texts and pictures are not kept.

A batch is one transaction: killed at any moment, a run loses the batch it was encoding and no
other. Several processes may share a folder. A row whose checksum is wrong is encoded and written
anew; a file that SQLite calls damaged is set aside under another name and started anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import sqlite3
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from router_runtime.errors import EncoderError
from router_runtime.prediction.encoders.base import absent_half, joint_dim
from router_runtime.types import F32, Encoder, Image, JointEncoder, Query, WeightsSize

logger = logging.getLogger(__name__)

T = TypeVar("T")

_TABLE = """
CREATE TABLE IF NOT EXISTS vectors (
    key BLOB PRIMARY KEY NOT NULL, checksum INTEGER NOT NULL, vector BLOB NOT NULL
)
"""
_PUT = "INSERT OR REPLACE INTO vectors VALUES (?, ?, ?)"
_GET = "SELECT key, checksum, vector FROM vectors WHERE key IN ({})"
_KEYS_PER_QUERY = 500  # below SQLite's oldest limit of 999 variables
_LOCK_TIMEOUT_S = 60.0


class CachedEncoder:
    """An ``Encoder`` that remembers another one's vectors.

    Parameters
    ----------
    encoder : Encoder
        Encodes what is missing. Its fingerprint names the files, so that a changed encoder never
        meets old vectors.
    folder : Path or str
        Created when missing. May be deleted at any time between runs. Kept as ``folder``.
    batch_size : int
        Distinct inputs encoded and written at once: what an interrupted run loses at most.
    on_batch : callable, optional
        Called with the number of inputs newly finished: once for those found, then after each
        batch. Within one call of an encode method the numbers add up to the inputs given.
    """

    def __init__(
        self,
        encoder: Encoder,
        folder: Path | str,
        *,
        batch_size: int = 256,
        on_batch: Callable[[int], None] | None = None,
    ) -> None:
        self.kind = encoder.kind
        self.text_dim = encoder.text_dim
        self.image_dim = encoder.image_dim
        self.joint_dim = joint_dim(encoder)
        self.fingerprint = encoder.fingerprint
        self._encoder = encoder
        self._batch_size = batch_size
        self._on_batch = on_batch
        self.folder = folder = Path(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise EncoderError(
                f"cache folder '{folder}' cannot be created: {error.strerror}. Give another folder."
            ) from error
        self._text = _Store(folder / f"{encoder.fingerprint}-text.sqlite", dim=self.text_dim)
        self._image = _Store(folder / f"{encoder.fingerprint}-image.sqlite", dim=self.image_dim)
        self._query = _Store(folder / f"{encoder.fingerprint}-query.sqlite", dim=self.joint_dim)

    @property
    def frozen(self) -> WeightsSize | None:
        return self._encoder.frozen

    @property
    def has_vectors(self) -> bool:
        """Whether it need not encode everything that it is given, since it did so before."""
        return any(store.exists for store in (self._text, self._image, self._query))

    def encode_texts(self, texts: Sequence[str]) -> F32:
        return self._encode(
            texts, [_text_key(text) for text in texts], self._text, self._encoder.encode_texts
        )

    def encode_images(self, images: Sequence[Image]) -> F32:
        keys = [bytes.fromhex(image.sha256) for image in images]
        return self._encode(images, keys, self._image, self._encoder.encode_images)

    def encode_queries(self, queries: Sequence[Query]) -> F32:
        """Return float32 (n_queries, joint_dim); no columns where the encoder has no such part."""
        if not isinstance(self._encoder, JointEncoder):
            return absent_half(len(queries))
        keys = [_query_key(query) for query in queries]
        return self._encode(queries, keys, self._query, self._encoder.encode_queries)

    def _encode(
        self,
        items: Sequence[T],
        keys: Sequence[bytes],
        store: _Store,
        encode: Callable[[list[T]], F32],
    ) -> F32:
        if not store.dim:
            self._finished(len(items))
            return absent_half(len(items))
        places: dict[bytes, list[int]] = {}
        for i, key in enumerate(keys):
            places.setdefault(key, []).append(i)
        out = np.empty((len(items), store.dim), dtype=np.float32)
        found = 0
        missing = dict(places)
        for key, vector in store.read(list(places)):
            out[places[key]] = vector
            found += len(missing.pop(key))
        self._finished(found)
        todo = list(missing)
        for start in range(0, len(todo), self._batch_size):
            batch = todo[start : start + self._batch_size]
            vectors = encode([items[places[key][0]] for key in batch])
            store.write(dict(zip(batch, vectors, strict=True)))
            for key, vector in zip(batch, vectors, strict=True):
                out[places[key]] = vector
            self._finished(sum(len(places[key]) for key in batch))
        return out

    def _finished(self, count: int) -> None:
        if count and self._on_batch is not None:
            self._on_batch(count)


class _Store:
    """One SQLite file of vectors. A connection lives for one call: threads and forks are safe."""

    def __init__(self, path: Path, *, dim: int) -> None:
        self.dim = dim
        self._path = path

    @property
    def exists(self) -> bool:
        return self._path.exists()

    def read(self, keys: Sequence[bytes]) -> Iterator[tuple[bytes, F32]]:
        """Yield the intact vectors among ``keys``, in any order."""
        if not self.exists:
            return
        damaged = 0
        with self._guarded(), contextlib.closing(self._opened()) as db:
            for start in range(0, len(keys), _KEYS_PER_QUERY):
                some = keys[start : start + _KEYS_PER_QUERY]
                query = _GET.format(",".join("?" * len(some)))
                for key, checksum, blob in db.execute(query, some):
                    if checksum == _checksum(key, blob) and len(blob) == 4 * self.dim:
                        yield key, np.frombuffer(blob, dtype="<f4")
                    else:
                        damaged += 1
        if damaged:
            logger.warning("%d damaged rows in %s are encoded anew", damaged, self._path)

    def write(self, vectors: Mapping[bytes, F32]) -> None:
        """Keep all ``vectors`` or, when interrupted, none of them."""
        blobs = {key: vector.astype("<f4").tobytes() for key, vector in vectors.items()}
        with self._guarded(), contextlib.closing(self._opened()) as db, db:
            db.executemany(_PUT, ((key, _checksum(key, blob), blob) for key, blob in blobs.items()))

    def _opened(self) -> sqlite3.Connection:
        db = sqlite3.connect(self._path, timeout=_LOCK_TIMEOUT_S)
        db.execute("PRAGMA page_size = 16384")  # about seven rows of CLIP's to a page, not one
        db.execute("PRAGMA synchronous = NORMAL")  # what a power cut damages is found when read
        db.execute(_TABLE)
        return db

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        """Set a damaged file aside, as if it had been empty; raise on whatever else SQLite says."""
        try:
            yield
        except sqlite3.DatabaseError as error:
            if type(error) is not sqlite3.DatabaseError:  # locked, full, read-only: not damaged
                raise EncoderError(
                    f"cache file '{self._path}' cannot be used: {error}. Check the disk and the "
                    "file's permissions, or give another cache folder."
                ) from error
            self._set_aside(error)

    def _set_aside(self, error: sqlite3.DatabaseError) -> None:
        kept = self._path.with_suffix(f".damaged-{os.getpid()}")
        logger.warning("%s is damaged (%s): kept as %s, started anew", self._path, error, kept.name)
        with contextlib.suppress(FileNotFoundError):  # another process was first
            self._path.replace(kept)


def _text_key(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def _query_key(query: Query) -> bytes:
    """Return a digest of text and pictures; their own digests are of one length, so none run on."""
    pictures = b"".join(bytes.fromhex(image.sha256) for image in query.images)
    return hashlib.sha256(_text_key(query.text) + pictures).digest()


def _checksum(key: bytes, blob: bytes) -> int:
    return zlib.crc32(blob, zlib.crc32(key))
