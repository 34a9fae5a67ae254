"""Fit what needs fitting in the encoders, then turn queries into features on disk.

Features are written chunk by chunk and read memory-mapped, so that memory stays flat whatever the
number of rows. Vectors of pretrained and remote encoders are kept in a content-addressed cache:
an interrupted run, or one with other settings, encodes only what is new.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import safetensors.numpy

from router_runtime.prediction.encoders import build_encoder
from router_runtime.prediction.encoders.base import joint_dim
from router_runtime.prediction.encoders.cache import CachedEncoder
from router_runtime.prediction.encoders.embedded import EmbeddedEncoder
from router_runtime.prediction.encoders.specs import EmbeddedSpec, EncoderRuntime, EncoderSpec
from router_runtime.prediction.features import EmbeddingGenerator, FeatureSpec
from router_runtime.types import F32, Encoder, Image, Json, Progress, Query
from router_training.fit_embedded import fit_embedded

FEATURES_FILE = "features.npy"
METADATA_FILE = "metadata.json"

CHUNK = 4096
"""Rows held in memory at a time."""

Encode: TypeAlias = Callable[[EmbeddingGenerator, Sequence[Query]], Iterator[F32]]


@dataclass(frozen=True)
class FeatureFiles:
    """What the embed stage keeps.

    Parameters
    ----------
    X : ndarray of shape (n_queries, n_features), float32
        Memory-mapped, read-only.
    fingerprints : tuple of (str or None)
        One per encoder; None where nobody knows what made the features.
    states : tuple of (mapping or None)
        Fitted arrays of the encoders that have them.
    metadata : mapping
        Dimensions, layout and fingerprint, as in ``metadata.json``.
    """

    X: F32
    fingerprints: tuple[str | None, ...]
    states: tuple[Mapping[str, np.ndarray] | None, ...]
    metadata: Mapping[str, Json]


def prepare_encoders(
    spec: FeatureSpec,
    training_queries: Sequence[Query],
    *,
    runtime: EncoderRuntime,
    seed: int,
    cache_folder: Path | None = None,
) -> tuple[Encoder, ...]:
    """Build every encoder of ``spec``, fitting ``embedded`` ones on the training queries alone.

    Raises
    ------
    DataError
        If there is nothing to fit on.
    EncoderError, MissingDependencyError
        If an encoder cannot be had.
    """
    return tuple(
        _prepare(entry, training_queries, runtime, seed, cache_folder) for entry in spec.encoders
    )


def _prepare(
    spec: EncoderSpec,
    queries: Sequence[Query],
    runtime: EncoderRuntime,
    seed: int,
    cache_folder: Path | None,
) -> Encoder:
    if isinstance(spec, EmbeddedSpec):
        texts = [query.text for query in queries if query.text]
        distinct: dict[str, Image] = {
            image.sha256: image for query in queries for image in query.images
        }
        return fit_embedded(texts, list(distinct.values()), spec=spec, seed=seed)
    encoder = build_encoder(spec, runtime=runtime)
    if cache_folder is None:
        return encoder
    # Small batches are chosen where encoding is slow: then less is lost by an interruption.
    return CachedEncoder(encoder, cache_folder, batch_size=min(256, 4 * runtime.batch_size))


def write_features(
    folder: Path,
    generator: EmbeddingGenerator,
    queries: Sequence[Query],
    *,
    progress: Progress | None = None,
    encode: Encode | None = None,
) -> None:
    """Encode ``queries`` into ``folder``: features, encoder states and, last, the metadata.

    Parameters
    ----------
    folder : Path
    generator : EmbeddingGenerator
    queries : sequence of Query
    progress : callable, optional
        Called with (done, total) after every chunk.
    encode : callable, optional
        Yields the features of one chunk of queries after the other; ``encode_chunks`` by default.
    """
    header = {
        "descr": np.lib.format.dtype_to_descr(np.dtype(np.float32)),
        "fortran_order": False,
        "shape": (len(queries), generator.n_features),
    }
    # Not through a memory map: on a full disk that ends the process instead of raising.
    with (folder / FEATURES_FILE).open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        done = 0
        for X in (encode or encode_chunks)(generator, queries):
            file.write(np.ascontiguousarray(X, dtype=np.float32).data)
            done += len(X)
            if progress is not None:
                progress(done, len(queries))
    for index, encoder in enumerate(generator.encoders):
        if isinstance(encoder, EmbeddedEncoder):
            data = safetensors.numpy.save(dict(encoder.state))
            (folder / f"encoder-{index}.safetensors").write_bytes(data)
    metadata = describe_features(generator, n_rows=len(queries))
    (folder / METADATA_FILE).write_text(json.dumps(metadata, indent=2), encoding="utf-8")


def encode_chunks(generator: EmbeddingGenerator, queries: Sequence[Query]) -> Iterator[F32]:
    """Yield the features of one chunk of queries after the other, in order."""
    for chunk in chunks_of(queries):
        yield generator.encode(chunk)


def chunks_of(queries: Sequence[Query]) -> Iterator[Sequence[Query]]:
    """Yield the queries that are encoded, and held in memory, at a time."""
    for start in range(0, len(queries), CHUNK):
        yield queries[start : start + CHUNK]


def read_features(folder: Path) -> FeatureFiles:
    """Map what ``write_features`` wrote."""
    metadata = json.loads((folder / METADATA_FILE).read_text(encoding="utf-8"))
    states: list[Mapping[str, np.ndarray] | None] = []
    for index in range(len(metadata["encoders"])):
        file = folder / f"encoder-{index}.safetensors"
        states.append(safetensors.numpy.load(file.read_bytes()) if file.exists() else None)
    return FeatureFiles(
        X=np.load(folder / FEATURES_FILE, mmap_mode="r"),
        fingerprints=tuple(entry["fingerprint"] for entry in metadata["encoders"]),
        states=tuple(states),
        metadata=metadata,
    )


def local_weights(spec: FeatureSpec) -> Json:
    """Return the sha256 of every file that ``spec`` names by path, so that a changed one shows."""
    named = [
        Path(value)
        for entry in spec.encoders
        for value in entry.model_dump(exclude={"kind"}).values()
        if isinstance(value, str) and Path(value).exists()
    ]
    files = [file for path in named for file in ([path] if path.is_file() else path.rglob("*"))]
    digests = {}
    for file in sorted(files):
        if file.is_file():
            with file.open("rb") as stream:
                digests[str(file)] = hashlib.file_digest(stream, "sha256").hexdigest()
    return digests


def describe_features(generator: EmbeddingGenerator, *, n_rows: int) -> dict[str, Json]:
    """Return the metadata that stands beside stored features, with LLM Router v2's dimensions."""
    text_dim = sum(encoder.text_dim for encoder in generator.encoders)
    image_dim = sum(encoder.image_dim for encoder in generator.encoders)
    joint = sum(joint_dim(encoder) for encoder in generator.encoders)
    structure = [
        f"{encoder.kind} {part}({dim})"
        for encoder in generator.encoders
        for part, dim in (
            ("text", encoder.text_dim),
            ("image or zeros", encoder.image_dim),
            ("text and images", joint_dim(encoder)),
        )
        if dim
    ]
    return {
        "samples": n_rows,
        "embedding_dim": generator.n_features,
        "text_dim": text_dim,
        "image_dim": image_dim,
        **({"joint_dim": joint} if joint else {}),
        "combined_dim": text_dim + image_dim + joint,
        "extra_columns": list(generator.spec.extra_columns),
        "embedding_structure": " | ".join([*structure, *generator.spec.extra_columns]),
        "encoders": [
            {"kind": encoder.kind, "fingerprint": encoder.fingerprint}
            for encoder in generator.encoders
        ],
        "feature_spec": generator.spec.model_dump(mode="json"),
        "fingerprint": generator.fingerprint,
    }
