"""The predictor kind ``adapter``: a LoRA adapter that names a candidate, on the experts' own base.

The base with the adapter is shown a request and asked who should handle it. Its answer is not read:
every candidate's name is scored as the whole answer (the sum of its tokens' log-probabilities, the
end of the answer included), and the softmax of the scores at a learned temperature is a
distribution over the candidates, however little the model would have said any of them.

Nothing is known of a request that shows nothing of what the adapter looks at (no picture, where it
looks at pictures alone), or that the base cannot read; it has each model's base rate.

The artifact holds the adapter, not the base, which it names: ``adapter.safetensors``, PEFT's
config in the manifest, and digests of the base's weights and of how it reads a prompt. Another base
is refused. Where a candidate in this process is an expert on the same base, in the same type on the
same device, its weights are in memory once.

torch, transformers and peft are imported when the predictor is built (``adapter_network``).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Final, Literal, Protocol, Self

import numpy as np
from pydantic import Field, ValidationError, model_validator

from router_runtime.config import EncoderRuntime
from router_runtime.errors import ArtifactIntegrityError
from router_runtime.messages import TextRule
from router_runtime.prediction.calibration import Calibrator
from router_runtime.prediction.heads.base import RESTORE, import_optional, read_file, softmax
from router_runtime.prediction.novelty import NoveltyModel
from router_runtime.prediction.parts import refuse_exported, refuse_server
from router_runtime.prediction.predictor import TellingPredictor, Told
from router_runtime.types import F64, Bool, Json, Query, WeightsSize
from router_runtime.yaml_config import StrictModel, problems

WEIGHTS: Final = "adapter.safetensors"
QUESTION: Final = "Which adapter should handle this screenshot?"
TEXT_QUESTION: Final = "Which adapter should handle this request?"

_EXTRAS = {"torch": "lora", "transformers": "lora", "peft": "lora", "safetensors": "lora"}

Rate = Annotated[float, Field(ge=0, le=1)]
Shown = Literal["both", "picture", "request"]


def system_prompt(names: Sequence[str]) -> str:
    """Return what a routing classifier is told first."""
    return (
        "You are a routing classifier for a multi-adapter system. The adapters are: "
        f"{', '.join(names)}. Answer with the name of the one adapter that should handle the "
        "request, and nothing else."
    )


class AdapterPrompt(StrictModel):
    """How a request is put to the adapter; the same in training and in serving.

    Parameters
    ----------
    system : str
        Empty: there is no system turn.
    question : str
        Asked below the pictures, before the request's text. May be empty.
    text_question : str
        Asked of a request without pictures.
    shows : str
        ``picture`` or ``request`` alone, or ``both``.
    """

    system: str
    question: str = QUESTION
    text_question: str = TEXT_QUESTION
    shows: Shown = "both"

    def shown(self, query: Query) -> Query | None:
        """Return what is shown of a query; None where that is nothing."""
        text = "" if self.shows == "picture" else query.text
        images = () if self.shows == "request" else query.images
        return Query(text, images) if text or images else None

    def asked(self, shown: Query) -> str:
        """Return the text of the user's turn."""
        question = self.question if shown.images else self.text_question
        return "\n\n".join(part for part in (question, shown.text) if part)


class AdapterDescription(StrictModel):
    """The manifest's ``predictor`` of this kind.

    Parameters
    ----------
    base : str
        Hub id, or the folder where it was in training; ``encoder.base`` says another place.
    revision : str or None
        Of a hub id.
    base_sha256, prompts_sha256 : str
        Digests of the base's weights, and of what it makes of a prompt.
    dtype : str
        Type of the base's weights.
    labels : tuple of str
        The names that it says, in the order of the columns of ``P``.
    prompt : AdapterPrompt
    temperature : float
        Divides the scores.
    max_tokens : int
        Longer prompts lose the beginning of the request's text.
    max_side : int
        Larger pictures are shrunk to so many pixels a side.
    base_rates : tuple of float
        Of each model, for queries of which nothing can be told.
    text : TextRule
        Which part of a conversation is routed on.
    adapter : mapping
        PEFT's config.
    fingerprint : str
        Digest of all above and of the file; not of where the base is.
    """

    kind: Literal["adapter"] = "adapter"
    base: str = Field(min_length=1)
    revision: str | None = None
    base_sha256: str
    prompts_sha256: str
    dtype: Literal["float32", "bfloat16", "float16"]
    labels: tuple[Annotated[str, Field(min_length=1)], ...] = Field(min_length=2)
    prompt: AdapterPrompt
    temperature: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    max_tokens: int = Field(ge=16, le=1 << 20)
    max_side: int = Field(ge=16, le=1 << 16)
    base_rates: tuple[Rate, ...] = Field(min_length=2)
    text: TextRule = TextRule()
    adapter: dict[str, Json]
    fingerprint: str = ""

    @model_validator(mode="after")
    def _consistent(self) -> AdapterDescription:
        if len(set(self.labels)) != len(self.labels):
            raise ValueError("a label is listed twice")
        if len(self.base_rates) != len(self.labels):
            raise ValueError(f"{len(self.base_rates)} base rates for {len(self.labels)} labels")
        return self


class Network(Protocol):
    """What scores names; ``adapter_network.AdapterNetwork``, or another in tests."""

    @property
    def frozen(self) -> WeightsSize:
        """The base, without what adapters add to it."""
        ...

    def scores(self, queries: Sequence[Query]) -> tuple[F64, Bool]:
        """Return log-probabilities, float64 (n_queries, n_labels), and which rows were read."""
        ...


@dataclass(frozen=True)
class AdapterPredictor(TellingPredictor):
    """Predicts ``P`` from text and pictures.

    Parameters
    ----------
    model_ids : tuple of str
        Column order of ``P``.
    description : AdapterDescription
    network : Network
    calibrator : Calibrator
    """

    model_ids: tuple[str, ...]
    description: AdapterDescription
    network: Network
    calibrator: Calibrator

    @property
    def frozen(self) -> WeightsSize:
        """The base."""
        return self.network.frozen

    def tell(self, queries: Sequence[Query]) -> Told:
        """Return what is told of queries, before calibration; known rows sum to 1."""
        scores, known = self.network.scores(queries)
        P = np.zeros((len(queries), len(self.model_ids)))
        P[known] = softmax(scores[known] / self.description.temperature)
        return Told(P, known)


@dataclass(frozen=True)
class AdapterParts:
    """An adapter as a file, and what it needs to be asked.

    Parameters
    ----------
    description : AdapterDescription
    weights : bytes
        Safetensors, as PEFT writes them.
    """

    description: AdapterDescription
    weights: bytes = field(repr=False)

    kind = "adapter"
    tells_novelty = False
    encoders: tuple[str, ...] = ()

    @classmethod
    def of(cls, description: AdapterDescription, weights: bytes) -> Self:
        """Return the parts with their fingerprint."""
        mark = _fingerprint(description, weights)
        return cls(description.model_copy(update={"fingerprint": mark}), weights)

    @property
    def text(self) -> TextRule:
        return self.description.text

    @property
    def settings(self) -> dict[str, Json]:
        return self.description.model_dump(mode="json", exclude={"adapter", "text"})

    def check(self, n_models: int, novelty: NoveltyModel | None) -> None:
        if len(self.description.labels) != n_models:
            raise ValueError(
                f"models of the adapter: {len(self.description.labels)}, expected {n_models}"
            )
        if novelty is not None:
            raise ValueError("a novelty model needs features, and there are none")

    def describe(self) -> dict[str, Json]:
        return self.description.model_dump(mode="json")

    def to_files(self) -> dict[str, bytes]:
        return {WEIGHTS: self.weights}

    @classmethod
    def from_files(cls, description: Mapping[str, Json], files: Mapping[str, bytes]) -> Self:
        """Return the parts; see ``parts.load_parts``."""
        told = _described(description)
        weights = read_file(files, WEIGHTS)
        if _fingerprint(told, weights) != told.fingerprint:
            raise ArtifactIntegrityError(
                f"The router adapter on '{told.base}' is not the one that was trained: its "
                f"fingerprint is not {told.fingerprint[:12]!r}. {RESTORE}"
            )
        return cls(told, weights)

    @classmethod
    def facts(cls, description: Mapping[str, Json]) -> dict[str, str]:
        """Return base, labels and what is shown."""
        told = _described(description)
        seen = {"both": "text and pictures", "picture": "pictures", "request": "text"}
        return {
            "base": told.base,
            "labels": ", ".join(told.labels),
            "rank": str(told.adapter.get("r")),
            "reads": f"{seen[told.prompt.shows]}, {told.max_tokens} tokens",
        }

    def network(self, runtime: EncoderRuntime = EncoderRuntime()) -> Network:
        """Return base and adapter, ready to score names.

        Raises
        ------
        ArtifactIntegrityError
            The base is not the one that the adapter was trained on, or the adapter is damaged.
        EncoderError
            The base cannot be had, or there is no such device.
        MissingDependencyError
            torch, transformers or peft is not installed.
        """
        module = import_optional("router_runtime.prediction.adapter_network", _EXTRAS)
        network: Network = module.load_network(self.description, self.weights, runtime=runtime)
        return network

    def build(
        self,
        model_ids: tuple[str, ...],
        *,
        calibrator: Calibrator,
        novelty: NoveltyModel | None,
        runtime: EncoderRuntime,
    ) -> AdapterPredictor:
        refuse_server(runtime, holds="a router adapter, whose base runs in this process")
        refuse_exported(runtime, kinds=["adapter"])
        return AdapterPredictor(model_ids, self.description, self.network(runtime), calibrator)


def _described(description: Mapping[str, Json]) -> AdapterDescription:
    try:
        return AdapterDescription.model_validate(dict(description))
    except ValidationError as error:
        raise ArtifactIntegrityError(f"predictor: {problems(error)}. {RESTORE}") from error


def _fingerprint(description: AdapterDescription, weights: bytes) -> str:
    told = description.model_dump(mode="json", exclude={"fingerprint", "base"})
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
    digest.update(hashlib.sha256(weights).digest())
    return digest.hexdigest()
