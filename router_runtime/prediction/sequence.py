"""The predictor kind ``sequence``: a fine-tuned transformer that reads the text (DistilBERT ...).

One logit per label. With the objective ``one`` exactly one label is right: their softmax at a
learned temperature is how sure the classifier is of each, and a model's probability is the sum over
the labels that are mapped to it. With ``several`` labels are the models themselves, any number of
which may be good, and each has a sigmoid of its own. Either way the artifact's calibrator comes
after.

Only text is read. Of a query without any, nothing is known but each model's base rate.

The whole network is in the artifact, so that nothing is downloaded to serve it: ``config`` in the
manifest, ``sequence.safetensors``, ``sequence-tokenizer.json``. No code of a model repository is
run. torch and transformers are imported when the predictor is built (``sequence_network``).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal, Protocol, Self

import numpy as np
from pydantic import Field, ValidationError, model_validator

from router_runtime.config import EncoderRuntime
from router_runtime.errors import ArtifactIntegrityError
from router_runtime.messages import TextRule
from router_runtime.prediction.calibration import Calibrator
from router_runtime.prediction.heads.base import (
    RESTORE,
    import_optional,
    read_file,
    sigmoid,
    softmax,
)
from router_runtime.prediction.novelty import NoveltyModel
from router_runtime.prediction.parts import refuse_exported, refuse_server
from router_runtime.prediction.predictor import TellingPredictor, Told
from router_runtime.types import F64, Json, Query, WeightsSize
from router_runtime.yaml_config import StrictModel, problems

WEIGHTS, TOKENIZER = "sequence.safetensors", "sequence-tokenizer.json"
_EXTRAS = {"torch": "clip", "transformers": "clip", "tokenizers": "clip", "safetensors": "clip"}

Rate = Annotated[float, Field(ge=0, le=1)]


class SequenceDescription(StrictModel):
    """The manifest's ``predictor`` of this kind.

    Parameters
    ----------
    base : str
        What was fine-tuned; a name, no path.
    labels : tuple of str
        What the network tells apart, in the order of its logits.
    columns : tuple of int
        The model of each label, as a column of ``P``.
    objective : str
        ``one`` label is right, or ``several`` may be.
    temperature : float
        Divides the logits of ``one``; 1 for ``several``.
    max_tokens : int
        Longer texts keep their end, where the question stands.
    base_rates : tuple of float
        Of each model, for queries without text.
    text : TextRule
        Which part of a conversation is routed on.
    config : mapping
        The network's configuration, as transformers writes it.
    fingerprint : str
        Digest of all above and of both files.
    """

    kind: Literal["sequence"] = "sequence"
    base: str
    labels: tuple[str, ...] = Field(min_length=1)
    columns: tuple[Annotated[int, Field(ge=0)], ...]
    objective: Literal["one", "several"]
    temperature: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    max_tokens: int = Field(ge=8, le=1 << 20)
    base_rates: tuple[Rate, ...] = Field(min_length=1)
    text: TextRule = TextRule()
    config: dict[str, Json]
    fingerprint: str = ""

    @model_validator(mode="after")
    def _consistent(self) -> SequenceDescription:
        if len(set(self.labels)) != len(self.labels):
            raise ValueError("a label is listed twice")
        if len(self.columns) != len(self.labels):
            raise ValueError(f"{len(self.columns)} columns for {len(self.labels)} labels")
        if set(self.columns) != set(range(len(self.base_rates))):
            raise ValueError("the columns are not those of the models, each at least once")
        if self.objective == "several":
            if self.columns != tuple(range(len(self.labels))):
                raise ValueError("with objective 'several' the labels are the models, in order")
            if self.temperature != 1:
                raise ValueError("temperature belongs to objective 'one'")
        return self


class Network(Protocol):
    """What tells labels apart; ``sequence_network.SequenceNetwork``, or another in tests."""

    def logits(self, texts: Sequence[str]) -> F64:
        """Return float64 (n_texts, n_labels)."""
        ...


def label_probabilities(logits: F64, description: SequenceDescription) -> F64:
    """Return float64 (n_queries, n_labels) in [0, 1]; each row of ``one`` sums to 1."""
    if description.objective == "several":
        return sigmoid(logits)
    return softmax(logits / description.temperature)


def model_probabilities(of_labels: F64, description: SequenceDescription) -> F64:
    """Return float64 (n_queries, n_models) in [0, 1]: the sum over each model's labels."""
    P = np.zeros((len(of_labels), len(description.base_rates)))
    for label, column in enumerate(description.columns):
        P[:, column] += of_labels[:, label]
    return np.minimum(P, 1.0)


@dataclass(frozen=True)
class SequencePredictor(TellingPredictor):
    """Predicts ``P`` from the text.

    Parameters
    ----------
    model_ids : tuple of str
        Column order of ``P``.
    description : SequenceDescription
    network : Network
    calibrator : Calibrator
    """

    model_ids: tuple[str, ...]
    description: SequenceDescription
    network: Network
    calibrator: Calibrator

    frozen = WeightsSize()  # the artifact holds the whole network

    def tell(self, queries: Sequence[Query]) -> Told:
        """Return what the network says of queries, before calibration."""
        known = np.array([bool(query.text) for query in queries], dtype=np.bool_)
        P = np.zeros((len(queries), len(self.model_ids)))
        if known.any():
            logits = self.network.logits([query.text for query in queries if query.text])
            of_labels = label_probabilities(logits, self.description)
            P[known] = model_probabilities(of_labels, self.description)
        return Told(P, known)


@dataclass(frozen=True)
class SequenceParts:
    """Network and tokenizer as files.

    Parameters
    ----------
    description : SequenceDescription
    weights : bytes
        Safetensors.
    tokenizer : bytes
        JSON, as the ``tokenizers`` library reads it.
    """

    description: SequenceDescription
    weights: bytes = field(repr=False)
    tokenizer: bytes = field(repr=False)

    kind = "sequence"
    tells_novelty = False
    encoders: tuple[str, ...] = ()

    @classmethod
    def of(cls, description: SequenceDescription, weights: bytes, tokenizer: bytes) -> Self:
        """Return the parts with their fingerprint."""
        mark = _fingerprint(description, weights, tokenizer)
        return cls(description.model_copy(update={"fingerprint": mark}), weights, tokenizer)

    @property
    def text(self) -> TextRule:
        return self.description.text

    @property
    def settings(self) -> dict[str, Json]:
        return self.description.model_dump(mode="json", exclude={"config", "text"})

    def check(self, n_models: int, novelty: NoveltyModel | None) -> None:
        if len(self.description.base_rates) != n_models:
            raise ValueError(
                f"models of the classifier: {len(self.description.base_rates)}, expected {n_models}"
            )
        if novelty is not None:
            raise ValueError("a novelty model needs features, and there are none")

    def describe(self) -> dict[str, Json]:
        return self.description.model_dump(mode="json")

    def to_files(self) -> dict[str, bytes]:
        return {WEIGHTS: self.weights, TOKENIZER: self.tokenizer}

    @classmethod
    def from_files(cls, description: Mapping[str, Json], files: Mapping[str, bytes]) -> Self:
        """Return the parts; see ``parts.load_parts``."""
        told = _described(description)
        weights, tokenizer = read_file(files, WEIGHTS), read_file(files, TOKENIZER)
        if _fingerprint(told, weights, tokenizer) != told.fingerprint:
            raise ArtifactIntegrityError(
                f"The sequence classifier '{told.base}' is not the one that was trained: its "
                f"fingerprint is not {told.fingerprint[:12]!r}. {RESTORE}"
            )
        return cls(told, weights, tokenizer)

    @classmethod
    def facts(cls, description: Mapping[str, Json]) -> dict[str, str]:
        """Return base, labels and length of text."""
        told = _described(description)
        return {
            "base": told.base,
            "labels": ", ".join(told.labels),
            "reads": f"{told.max_tokens} tokens of text",
        }

    def network(self, runtime: EncoderRuntime = EncoderRuntime()) -> Network:
        """Return the network, ready to tell labels apart.

        Raises
        ------
        ArtifactIntegrityError
            Weights, tokenizer and configuration do not fit each other.
        EncoderError
            There is no such device.
        MissingDependencyError
            torch or transformers is not installed.
        """
        module = import_optional("router_runtime.prediction.sequence_network", _EXTRAS)
        network: Network = module.load_network(
            self.description, self.weights, self.tokenizer, runtime=runtime
        )
        return network

    def build(
        self,
        model_ids: tuple[str, ...],
        *,
        calibrator: Calibrator,
        novelty: NoveltyModel | None,
        runtime: EncoderRuntime,
    ) -> SequencePredictor:
        refuse_server(runtime, holds="a sequence classifier, which runs in this process")
        refuse_exported(runtime, kinds=["sequence"])
        return SequencePredictor(model_ids, self.description, self.network(runtime), calibrator)


def _described(description: Mapping[str, Json]) -> SequenceDescription:
    try:
        return SequenceDescription.model_validate(dict(description))
    except ValidationError as error:
        raise ArtifactIntegrityError(f"predictor: {problems(error)}. {RESTORE}") from error


def _fingerprint(description: SequenceDescription, weights: bytes, tokenizer: bytes) -> str:
    told = description.model_dump(mode="json", exclude={"fingerprint"})
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
    for content in (weights, tokenizer):
        digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()
