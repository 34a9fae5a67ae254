"""Frozen values and Protocols that cross module borders. No I/O, no third-party import but NumPy.

Arrays are written the same way everywhere: ``X (n_queries, n_features) float32``,
``P (n_queries, n_models) float64 in [0, 1]``, ``cost (n_queries, n_models) float64`` (NaN unknown),
``eligible (n_queries, n_models) bool``; columns follow ``model_ids``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
import numpy.typing as npt

F32: TypeAlias = npt.NDArray[np.float32]
F64: TypeAlias = npt.NDArray[np.float64]
Bool: TypeAlias = npt.NDArray[np.bool_]
Int: TypeAlias = npt.NDArray[np.int64]
Json: TypeAlias = Any  # what json.dumps accepts
Progress: TypeAlias = Callable[[int, int], None]  # (done, total)


class Modality(StrEnum):
    """What a query contains and what a candidate accepts."""

    TEXT = "text"
    IMAGE = "image"


@dataclass(frozen=True)
class Image:
    """One encoded picture, already checked against the format, byte and pixel limits.

    Parameters
    ----------
    data : bytes
        The encoded file (PNG, JPEG, WebP or GIF), exactly as received.
    media_type : str
        ``image/png`` and so on, read from the bytes and not from what the sender claims.
    """

    data: bytes = field(repr=False)
    media_type: str

    @cached_property
    def sha256(self) -> str:
        """Hex digest of ``data``; equal pictures have equal digests."""
        return hashlib.sha256(self.data).hexdigest()


@dataclass(frozen=True, slots=True)
class Requirements:
    """What the request needs from a candidate besides its modalities.

    Parameters
    ----------
    tools, json_mode : bool
        The request uses tool calls / asks for JSON output.
    max_output_tokens : int or None
        The request's own cap; None when it states none.
    """

    tools: bool = False
    json_mode: bool = False
    max_output_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Query:
    """Text and pictures to route: what ``messages.query_from_messages`` makes of a request.

    Parameters
    ----------
    text : str
        The routed text; may be empty when there are pictures.
    images : tuple of Image
        Every picture of the request, in order.
    requirements : Requirements
        Hard needs, used by the eligibility filter only.
    prompt_chars : int or None
        Characters of the whole request (all turns), for cost and context-window estimates;
        None means that ``text`` is the whole request.
    """

    text: str
    images: tuple[Image, ...] = ()
    requirements: Requirements = Requirements()
    prompt_chars: int | None = None

    @property
    def modalities(self) -> frozenset[Modality]:
        """The modalities that a candidate must accept to serve this query."""
        found = {Modality.TEXT} if self.text else set()
        return frozenset(found | ({Modality.IMAGE} if self.images else set()))

    @property
    def total_chars(self) -> int:
        """Characters of the whole request."""
        return len(self.text) if self.prompt_chars is None else self.prompt_chars


class Reason(StrEnum):
    """Why the chosen candidate was chosen (machine-readable)."""

    CHEAPEST_QUALIFIED = "cheapest_qualified"
    NONE_QUALIFIED = "none_qualified_highest_probability"
    HIGHEST_UTILITY = "highest_utility"
    HIGHEST_PROBABILITY = "highest_probability"
    FIXED = "fixed"
    FIXED_INELIGIBLE = "fixed_ineligible_highest_probability"
    ONLY_ELIGIBLE = "only_eligible"
    NOVEL_QUERY = "novel_query_fallback"
    LOW_CONFIDENCE = "low_confidence_fallback"


@dataclass(frozen=True, slots=True)
class RoutingDecision:
    """The ranking of the candidates for one query, with its reasons.

    Parameters
    ----------
    model_id : str
        The chosen candidate, ``ranking[0]``.
    ranking : tuple of str
        Eligible candidates, best first.
    probabilities : mapping
        Calibrated probability per candidate, ineligible ones included.
    expected_cost : mapping
        Expected cost per candidate in ``cost_unit``; None where unknown.
    cost_unit : str
        ``usd``, ``relative`` (cost factors) or ``unknown``.
    ineligible : mapping
        Reason per candidate that cannot serve the query.
    reason : Reason
        Why ``model_id`` was chosen.
    artifact_id, policy : str
        Which artifact predicted and which policy chose.
    novelty : float or None
        How unlike the training data the query is: the share, in [0, 1], of held-out queries of the
        training data's kind that are nearer to it. None where the artifact cannot tell.
    """

    model_id: str
    ranking: tuple[str, ...]
    probabilities: Mapping[str, float]
    expected_cost: Mapping[str, float | None]
    cost_unit: str
    ineligible: Mapping[str, str]
    reason: Reason
    artifact_id: str
    policy: str
    novelty: float | None = None


@dataclass(frozen=True, eq=False)
class Prediction:
    """What is predicted of some queries, from one encoding of them.

    Parameters
    ----------
    P : ndarray of shape (n_queries, n_models), float64 in [0, 1]
        Calibrated probabilities; columns follow ``model_ids``.
    novelty : ndarray of shape (n_queries,), float64 in [0, 1], or None
        See ``RoutingDecision``; None where the predictor cannot tell.
    """

    P: F64
    novelty: F64 | None = None

    @classmethod
    def join(cls, parts: Sequence[Prediction]) -> Prediction:
        """Put predictions of one predictor, one at least, below one another."""
        novelty = [part.novelty for part in parts if part.novelty is not None]
        P = np.concatenate([part.P for part in parts])
        return cls(P, np.concatenate(novelty) if novelty else None)


@dataclass(frozen=True, slots=True)
class WeightsSize:
    """How much is loaded besides an artifact, as it was trained by somebody else.

    Parameters
    ----------
    parameters : int
        Numbers.
    n_bytes : int
        Of memory that they take as loaded.
    """

    parameters: int = 0
    n_bytes: int = 0


class Encoder(Protocol):
    """Turns texts and pictures into vectors. A half with dimension 0 is absent.

    Implementations are deterministic, batch internally and hold no query state. They never
    return NaN. ``fingerprint`` is a hex digest of everything that changes the output (weights,
    revision, preprocessing, truncation rule, dimensions), not of where or how fast it runs.
    """

    @property
    def kind(self) -> str: ...
    @property
    def text_dim(self) -> int: ...
    @property
    def image_dim(self) -> int: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def frozen(self) -> WeightsSize | None:
        """What it loads besides its fitted state; None where that cannot be seen from here."""
        ...

    def encode_texts(self, texts: Sequence[str]) -> F32:
        """Return float32 (n_texts, text_dim)."""
        ...

    def encode_images(self, images: Sequence[Image]) -> F32:
        """Return float32 (n_images, image_dim)."""
        ...


@runtime_checkable
class JointEncoder(Protocol):
    """What an ``Encoder`` has besides if it sees text and pictures of one query together.

    These vectors are a third part beside the two halves; with dimension 0 it is absent as well.
    """

    @property
    def joint_dim(self) -> int: ...

    def encode_queries(self, queries: Sequence[Query]) -> F32:
        """Return float32 (n_queries, joint_dim)."""
        ...


class Head(Protocol):
    """The learned multi-output part on top of the features."""

    @property
    def kind(self) -> str: ...
    @property
    def n_features(self) -> int: ...
    @property
    def n_models(self) -> int: ...

    def predict_proba(self, X: F32) -> F64:
        """Return ``P`` (n_queries, n_models), float64 in [0, 1], before calibration."""
        ...

    def to_files(self, stem: str) -> dict[str, bytes]:
        """Return the head as named files, each name starting with ``stem``."""
        ...

    def describe(self) -> dict[str, Json]:
        """Return JSON with ``kind`` and all that ``load_head`` needs besides the files."""
        ...


class Predictor(Protocol):
    """Queries to calibrated probabilities."""

    @property
    def model_ids(self) -> tuple[str, ...]: ...
    @property
    def frozen(self) -> WeightsSize | None:
        """What it loads besides the artifact; None where that cannot be seen from here."""
        ...

    def probabilities(self, queries: Sequence[Query]) -> F64:
        """Return ``P`` (n_queries, n_models), float64 in [0, 1]; columns follow ``model_ids``."""
        ...

    def predict(self, queries: Sequence[Query]) -> Prediction:
        """Return ``P`` and novelty from one encoding of the queries."""
        ...
