"""The embedding arrays that stage 2 leaves for stage 3, and what is known about them.

``hf_embeddings_metadata.json`` has the published script's keys and, beside them, the feature spec,
the encoder's fingerprint and a digest of the records, so that arrays are not paired with records
that they were not made from. It is written last and removed first.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from router_runtime.errors import DataError
from router_runtime.legacy import plain_features
from router_runtime.prediction.encoders.embedded import EmbeddedEncoder
from router_runtime.prediction.encoders.specs import ClipSpec
from router_runtime.prediction.features import EmbeddingGenerator, FeatureSpec
from router_runtime.types import F32, Json, Query
from router_runtime.yaml_config import validate
from router_training.embed import describe_features
from router_training.formats import atomic_file

logger = logging.getLogger(__name__)

TRAIN_EMBEDDINGS = "hf_train_embeddings.npy"
TEST_EMBEDDINGS = "hf_test_embeddings.npy"
METADATA = "hf_embeddings_metadata.json"
ENCODER_STATE = "hf_encoder.safetensors"

_PLAIN_WIDTH = 1024
_OWN_KEYS = ("embedding_dim", "encoders", "train_records_sha256", "test_records_sha256")


@dataclass(frozen=True)
class StageEmbeddings:
    """Embeddings of training and test records.

    Parameters
    ----------
    X_train, X_test : ndarray of shape (n_records, n_features), float32
    features : FeatureSpec
        The layout.
    fingerprint : str or None
        The encoder's; None when no metadata tells it.
    state : mapping or None
        Fitted arrays of an ``embedded`` encoder.
    digest : str
        Of the two arrays and the layout.
    """

    X_train: F32
    X_test: F32
    features: FeatureSpec
    fingerprint: str | None
    state: Mapping[str, np.ndarray] | None
    digest: str


def write_embeddings(
    folder: Path,
    generator: EmbeddingGenerator,
    *,
    train: tuple[Sequence[Query], F32],
    test: tuple[Sequence[Query], F32],
) -> None:
    """Write both arrays and then their metadata; each file appears wholly or not at all.

    Parameters
    ----------
    folder : Path
        Made when absent.
    generator : EmbeddingGenerator
        What made the arrays.
    train, test : (queries, X)
        Records and their embeddings, row by row.
    """
    (folder / METADATA).unlink(missing_ok=True)
    for name, (_, X) in ((TRAIN_EMBEDDINGS, train), (TEST_EMBEDDINGS, test)):
        with atomic_file(folder / name) as stream:
            np.save(stream, X)
    encoder = generator.encoders[0]
    if isinstance(encoder, EmbeddedEncoder):
        with atomic_file(folder / ENCODER_STATE) as stream:
            stream.write(safetensors.numpy.save(dict(encoder.state)))
    (train_queries, _), (test_queries, _) = train, test
    metadata = {
        "train_samples": len(train_queries),
        "test_samples": len(test_queries),
        "model": encoder.kind,
        **describe_features(generator, n_rows=len(train_queries) + len(test_queries)),
        "train_records_sha256": _records_digest(train_queries),
        "test_records_sha256": _records_digest(test_queries),
    }
    with atomic_file(folder / METADATA) as stream:
        stream.write((json.dumps(metadata, indent=2) + "\n").encode())


def read_embeddings(train_path: Path, test_path: Path) -> StageEmbeddings:
    """Read both arrays, with the metadata beside the training array if it is there.

    Without it they are taken for the published 512 + 512 columns of an unknown CLIP encoder.

    Raises
    ------
    DataError
        If a file is missing, no matrix of finite numbers, or does not fit the others.
    ConfigError
        If the metadata's feature spec is malformed.
    """
    X_train, X_test = _matrix(train_path), _matrix(test_path)
    metadata = _metadata(train_path.parent / METADATA)
    width = _PLAIN_WIDTH if metadata is None else metadata["embedding_dim"]
    for path, X in ((train_path, X_train), (test_path, X_test)):
        if X.shape[1] != width:
            raise DataError(
                f"The embeddings have {X.shape[1]} columns; expected {width}. Generate both "
                "arrays anew with generate_embeddings.py.",
                file=str(path),
            )
    if metadata is None:
        features, fingerprint, state = plain_features(ClipSpec()), None, None
    else:
        features = validate(FeatureSpec, metadata["feature_spec"], source=METADATA)
        fingerprint = metadata["encoders"][0]["fingerprint"]
        state = _state(train_path.parent, features)
    digest = hashlib.sha256(features.model_dump_json().encode())
    for X in (X_train, X_test):
        digest.update(np.ascontiguousarray(X).tobytes())
    return StageEmbeddings(X_train, X_test, features, fingerprint, state, digest.hexdigest())


def check_records(
    embeddings: Path, X: F32, queries: Sequence[Query], *, records: Path, part: str
) -> None:
    """Refuse embeddings that were made from other records.

    Parameters
    ----------
    embeddings, records : Path
        The files, for the message; metadata is looked for beside ``embeddings``.
    X : ndarray of shape (n_records, n_features)
    queries : sequence of Query
        Of the records.
    part : {"train", "test"}

    Raises
    ------
    DataError
        If the numbers of rows differ, or the metadata names the digest of other records.
    """
    if len(X) != len(queries):
        raise DataError(
            f"It has {len(X)} rows, but '{records}' has {len(queries)} records. Generate the "
            "embeddings anew, without --max-samples.",
            file=str(embeddings),
        )
    metadata = _metadata(embeddings.parent / METADATA)
    if metadata is not None and metadata[f"{part}_records_sha256"] != _records_digest(queries):
        raise DataError(
            f"It was made from other records than '{records}' holds (text, pictures or order "
            "differ). Generate the embeddings anew.",
            file=str(embeddings),
        )


def _records_digest(queries: Sequence[Query]) -> str:
    digest = hashlib.sha256()
    for query in queries:
        content = [query.text, query.total_chars, [image.sha256 for image in query.images]]
        digest.update(json.dumps(content).encode())
    return digest.hexdigest()


def _matrix(path: Path) -> F32:
    try:
        X = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise DataError(
            "There is no such file; make it with generate_embeddings.py.", file=str(path)
        ) from None
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"It is no NumPy array file: {error}", file=str(path)) from error
    if not isinstance(X, np.ndarray) or X.ndim != 2 or X.dtype.kind != "f":
        raise DataError("It must hold one matrix of floating-point numbers.", file=str(path))
    finite = np.isfinite(X).all(axis=1)
    if not finite.all():
        row = int(np.flatnonzero(~finite)[0]) + 1
        raise DataError(
            "It holds NaN or infinity; generate the embeddings anew.", file=str(path), row=row
        )
    return X.astype(np.float32, copy=False)


def _metadata(path: Path) -> dict[str, Json] | None:
    """Return our own metadata; None when there is none, or only the published script's."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise DataError(f"It cannot be read as JSON: {error}", file=str(path)) from error
    if not isinstance(content, dict) or "feature_spec" not in content:
        return None
    if missing := [key for key in _OWN_KEYS if key not in content]:
        raise DataError(f"It lacks '{missing[0]}'; generate the embeddings anew.", file=str(path))
    return content


def _state(folder: Path, features: FeatureSpec) -> Mapping[str, np.ndarray] | None:
    if features.encoders[0].kind != "embedded":
        return None
    path = folder / ENCODER_STATE
    try:
        state: dict[str, np.ndarray] = safetensors.numpy.load(path.read_bytes())
    except (OSError, SafetensorError) as error:
        raise DataError(
            f"The fitted encoder cannot be read ({error}); generate the embeddings anew.",
            file=str(path),
        ) from error
    return state
