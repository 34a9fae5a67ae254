"""The only definition of ``X``: what an encoder's vectors become before a head sees them.

Layout of a row, for encoders ``e1, e2, ...`` and extra columns::

    [ e1 text | e1 image | e1 joint | e2 text | e2 image | ... | extra columns ]

Most encoders see texts and pictures apart and have the two halves; a ``vision-language`` encoder
sees the text and all pictures of a query together and has the joint part alone.

Each part is L2-normalised on its own (``normalise: l2``), so that no modality outweighs another
by its scale (VL-RouterBench finds this best for concatenated features). The half of an absent
modality is zeros, and stays zeros. Several pictures of one query are pooled by the mean of their
normalised vectors, normalised again. CLIP's plain 512 + 512 are the spec
``encoders: [clip], extra_columns: []``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Literal

import numpy as np
from pydantic import field_validator

from router_runtime.errors import ConfigError
from router_runtime.messages import TextRule
from router_runtime.prediction.encoders.specs import EmbeddedSpec, EncoderSpec, Spec
from router_runtime.types import F32, Encoder, Image, JointEncoder, Json, Progress, Query

EXTRA_COLUMNS: dict[str, Callable[[Query], float]] = {
    "has_text": lambda query: float(bool(query.text)),
    "has_image": lambda query: float(bool(query.images)),
    "image_count": lambda query: float(np.log1p(len(query.images))),
    "log_chars": lambda query: float(np.log1p(len(query.text)) / 10.0),
    "log_prompt_chars": lambda query: float(np.log1p(query.total_chars) / 10.0),
}
"""Extra columns by name, each scaled to about [0, 1]."""

_CHUNK = 512  # queries per progress report; encoders batch within a chunk


class FeatureSpec(Spec):
    """What ``X`` is made of; part of the manifest, compared by its digest.

    Parameters
    ----------
    encoders : tuple of EncoderSpec
        Composed by concatenation; at least one.
    normalise : {"l2", "none"}
        ``l2`` scales each encoder's half of text, and its half of pictures, to length 1.
    extra_columns : tuple of str
        What else is told of a query: names in ``EXTRA_COLUMNS``, which are all there by default.
    text : TextRule
        Which part of a conversation is routed on.
    """

    encoders: tuple[EncoderSpec, ...] = (EmbeddedSpec(),)
    normalise: Literal["l2", "none"] = "l2"
    extra_columns: tuple[str, ...] = tuple(EXTRA_COLUMNS)
    text: TextRule = TextRule()

    @field_validator("encoders")
    @classmethod
    def _some_encoder(cls, value: tuple[EncoderSpec, ...]) -> tuple[EncoderSpec, ...]:
        if not value:
            raise ValueError("name at least one encoder, e.g. [embedded]")
        return value

    @field_validator("extra_columns")
    @classmethod
    def _known_columns(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if name not in EXTRA_COLUMNS:
                raise ValueError(
                    f"unknown extra column '{name}' (known: {', '.join(EXTRA_COLUMNS)})"
                )
        if len(set(value)) != len(value):
            raise ValueError("an extra column is named twice")
        return value


class EmbeddingGenerator:
    """Queries to features, through one or several encoders.

    Parameters
    ----------
    spec : FeatureSpec
        The layout.
    encoders : sequence of Encoder
        One per entry of ``spec.encoders``, in that order.

    Raises
    ------
    ConfigError
        If the encoders do not match the spec.
    """

    def __init__(self, spec: FeatureSpec, encoders: Sequence[Encoder]) -> None:
        kinds = [encoder.kind for encoder in encoders]
        wanted = [entry.kind for entry in spec.encoders]
        if kinds != wanted:
            raise ConfigError(f"The feature spec names encoders {wanted}, but got {kinds}.")
        self.spec = spec
        self.encoders = tuple(encoders)
        self._joint = tuple(
            encoder if isinstance(encoder, JointEncoder) and encoder.joint_dim else None
            for encoder in encoders
        )

    @property
    def n_features(self) -> int:
        """Number of columns of ``X``."""
        halves = sum(encoder.text_dim + encoder.image_dim for encoder in self.encoders)
        joint = sum(encoder.joint_dim for encoder in self._joint if encoder is not None)
        return halves + joint + len(self.spec.extra_columns)

    @cached_property
    def fingerprint(self) -> str:
        """Hex digest of the layout and of every encoder's own fingerprint.

        Only what changes ``X`` counts: the layout here, everything about an encoder in its own
        fingerprint. Where a server is and on which device it runs is left out.
        """
        layout: Json = self.spec.model_dump(mode="json", exclude={"encoders"})
        parts = {"layout": layout, "encoders": [entry.fingerprint for entry in self.encoders]}
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def encode(self, queries: Sequence[Query], *, progress: Progress | None = None) -> F32:
        """Return ``X`` (n_queries, n_features) float32.

        Parameters
        ----------
        queries : sequence of Query
            May be empty.
        progress : callable, optional
            Called with (done, total) after every chunk of queries.
        """
        X = np.zeros((len(queries), self.n_features), dtype=np.float32)
        for start in range(0, len(queries), _CHUNK):
            chunk = queries[start : start + _CHUNK]
            self._encode_chunk(chunk, X[start : start + len(chunk)])
            if progress is not None:
                progress(start + len(chunk), len(queries))
        return X

    def _encode_chunk(self, queries: Sequence[Query], out: F32) -> None:
        column = 0
        for encoder, joint in zip(self.encoders, self._joint, strict=True):
            parts = [self._text_half(encoder, queries), self._image_half(encoder, queries)]
            if joint is not None:
                parts.append(self._joint_part(joint, queries))
            for part in parts:
                out[:, column : column + part.shape[1]] = part
                column += part.shape[1]
        for name in self.spec.extra_columns:
            out[:, column] = [EXTRA_COLUMNS[name](query) for query in queries]
            column += 1

    def _text_half(self, encoder: Encoder, queries: Sequence[Query]) -> F32:
        half = np.zeros((len(queries), encoder.text_dim), dtype=np.float32)
        rows = [row for row, query in enumerate(queries) if query.text]
        if rows and encoder.text_dim:
            half[rows] = self._normalise(encoder.encode_texts([queries[row].text for row in rows]))
        return half

    def _image_half(self, encoder: Encoder, queries: Sequence[Query]) -> F32:
        half = np.zeros((len(queries), encoder.image_dim), dtype=np.float32)
        images: list[Image] = [image for query in queries for image in query.images]
        if not images or not encoder.image_dim:
            return half
        vectors = self._normalise(encoder.encode_images(images))
        rows = [row for row, query in enumerate(queries) if query.images]
        counts = np.array([len(queries[row].images) for row in rows])
        starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
        sums = np.add.reduceat(vectors, starts, axis=0)
        single = (counts == 1)[:, None]
        means: F32 = (sums / counts[:, None]).astype(np.float32)
        half[rows] = np.where(single, sums, self._normalise(means))
        return half

    def _joint_part(self, encoder: JointEncoder, queries: Sequence[Query]) -> F32:
        part = np.zeros((len(queries), encoder.joint_dim), dtype=np.float32)
        rows = [row for row, query in enumerate(queries) if query.modalities]
        if rows:
            vectors = encoder.encode_queries([queries[row] for row in rows])
            part[rows] = self._normalise(vectors)
        return part

    def _normalise(self, vectors: F32) -> F32:
        if self.spec.normalise == "none":
            return vectors
        norms = np.sqrt(np.add.reduce(vectors * vectors, axis=1, keepdims=True))
        unit: F32 = (vectors / np.where(norms > 0, norms, 1)).astype(np.float32, copy=False)
        return unit
