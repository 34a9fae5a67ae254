"""The predictor kind ``features``: encoders and a head, as an artifact keeps them.

In the manifest::

    kind          "features"
    features      the layout of X, with its encoders and text rule
    n_features    columns of X
    encoders      per encoder its fingerprint, and the file of its fitted state
    head          what the head says of itself

Encoders are built last and refused when their fingerprint is not the recorded one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol, Self, runtime_checkable

import numpy as np
import safetensors.numpy
from pydantic import Field, ValidationError

from router_runtime.config import EncoderRuntime
from router_runtime.errors import ArtifactIntegrityError
from router_runtime.messages import TextRule
from router_runtime.prediction.calibration import Calibrator
from router_runtime.prediction.encoders import build_encoder
from router_runtime.prediction.encoders.specs import RemoteSpec
from router_runtime.prediction.features import EmbeddingGenerator, FeatureSpec
from router_runtime.prediction.heads.base import RESTORE, load_head
from router_runtime.prediction.novelty import NoveltyModel
from router_runtime.prediction.parts import refuse_exported, refuse_server
from router_runtime.prediction.predictor import FeaturePredictor
from router_runtime.types import Encoder, Head, Json
from router_runtime.yaml_config import StrictModel, problems


@runtime_checkable
class ExportedEncoder(Protocol):
    """What an exported encoder says besides ``Encoder``.

    ``stands_for`` is the fingerprint of the encoder that it was shown to equal; None: of no other.
    """

    precision: str
    stands_for: str | None


class AcceptedEncoder(StrictModel):
    """An encoder that may stand in for the one of training, because it was compared with it.

    Parameters
    ----------
    fingerprint : str
    precision : str
    samples : int
        Queries that they were compared on.
    figures, bounds : mapping
        What was found, and what was demanded; see ``exporting_encoders.checking``.
    """

    fingerprint: str = Field(pattern=r"^[0-9a-f]{64}$")
    precision: str
    samples: int = Field(ge=1)
    figures: dict[str, Json]
    bounds: dict[str, Json]


class EncoderEntry(StrictModel):
    """One encoder as the manifest knows it.

    ``fingerprint`` is None only for imported artifacts, whose training features nobody can check.
    ``accepted`` is written where there is one, so that older versions read all other artifacts.
    """

    fingerprint: str | None
    state: str | None = None
    accepted: tuple[AcceptedEncoder, ...] = ()


class FeatureDescription(StrictModel):
    """The manifest's ``predictor`` of this kind."""

    kind: Literal["features"] = "features"
    features: FeatureSpec
    n_features: int = Field(ge=1)
    encoders: tuple[EncoderEntry, ...]
    head: dict[str, Json]


@dataclass(frozen=True)
class FeatureParts:
    """Encoders and head.

    Parameters
    ----------
    features : FeatureSpec
        Layout of ``X``.
    encoder_fingerprints : tuple of (str or None)
        One per encoder; None means unchecked (imported artifacts).
    encoder_states : tuple of (mapping or None)
        Fitted arrays of encoders that have them.
    head : Head
        ``X`` to uncalibrated ``P``.
    n_features : int or None
        Columns of ``X`` as the manifest states them; None: the head's.
    accepted : tuple of tuple of AcceptedEncoder
        Per encoder those that may stand in for it; empty where there are none at all.
    """

    features: FeatureSpec
    encoder_fingerprints: tuple[str | None, ...]
    encoder_states: tuple[Mapping[str, np.ndarray] | None, ...]
    head: Head
    n_features: int | None = None
    accepted: tuple[tuple[AcceptedEncoder, ...], ...] = ()

    kind = "features"
    tells_novelty = False

    @property
    def text(self) -> TextRule:
        return self.features.text

    @property
    def encoders(self) -> tuple[str, ...]:
        return tuple(spec.kind for spec in self.features.encoders)

    @property
    def settings(self) -> dict[str, Json]:
        return dict(self.head.describe())

    def check(self, n_models: int, novelty: NoveltyModel | None) -> None:
        head, encoders = self.head, len(self.features.encoders)
        sizes = {
            "outputs of the head": (head.n_models, n_models),
            "features of the head": (head.n_features, self.n_features or head.n_features),
            "encoder fingerprints": (len(self.encoder_fingerprints), encoders),
            "encoder states": (len(self.encoder_states), encoders),
            "lists of accepted encoders": (len(self.accepted) or encoders, encoders),
        }
        if novelty is not None:
            sizes["features of the novelty model"] = (novelty.n_features, head.n_features)
        for name, (found, expected) in sizes.items():
            if found != expected:
                raise ValueError(f"{name}: {found}, expected {expected}")

    def describe(self) -> dict[str, Json]:
        states = self.encoder_states
        entries = tuple(
            EncoderEntry(
                fingerprint=fingerprint,
                state=None if states[index] is None else _state_file(index),
                accepted=self.accepted[index] if self.accepted else (),
            )
            for index, fingerprint in enumerate(self.encoder_fingerprints)
        )
        told = FeatureDescription(
            features=_without_key_names(self.features),
            n_features=self.head.n_features,
            encoders=entries,
            head=self.head.describe(),
        ).model_dump(mode="json")
        for entry in told["encoders"]:
            if not entry["accepted"]:
                del entry["accepted"]
        return told

    def to_files(self) -> dict[str, bytes]:
        files = dict(self.head.to_files("head"))
        for index, state in enumerate(self.encoder_states):
            if state is not None:
                arrays = {name: np.ascontiguousarray(array) for name, array in state.items()}
                files[_state_file(index)] = safetensors.numpy.save(arrays)
        return files

    @classmethod
    def from_files(cls, description: Mapping[str, Json], files: Mapping[str, bytes]) -> Self:
        """Return the parts; see ``parts.load_parts``."""
        told = _described(description)
        return cls(
            features=told.features,
            encoder_fingerprints=tuple(entry.fingerprint for entry in told.encoders),
            encoder_states=tuple(
                None if entry.state is None else safetensors.numpy.load(files[entry.state])
                for entry in told.encoders
            ),
            head=load_head(told.head, files),
            n_features=told.n_features,
            accepted=tuple(entry.accepted for entry in told.encoders),
        )

    @classmethod
    def facts(cls, description: Mapping[str, Json]) -> dict[str, str]:
        """Return encoders, number of features and kind of head."""
        told = _described(description)
        return {
            "encoders": ", ".join(spec.kind for spec in told.features.encoders),
            "features": str(told.n_features),
            "head": str(told.head.get("kind")),
        }

    def with_accepted(self, encoder: int, accepted: AcceptedEncoder) -> FeatureParts:
        """Return the parts with one more encoder that may stand in for number ``encoder``."""
        lists = list(self.accepted or ((),) * len(self.features.encoders))
        others = [one for one in lists[encoder] if one.fingerprint != accepted.fingerprint]
        lists[encoder] = (*others, accepted)
        return replace(self, accepted=tuple(lists))

    def build_encoders(
        self, runtime: EncoderRuntime = EncoderRuntime(), *, unchecked: bool = False
    ) -> tuple[Encoder, ...]:
        """Build the encoders and refuse any that may not stand where training had another.

        An exported encoder may when its export proved equal to the one of training, or when it was
        accepted.

        Parameters
        ----------
        runtime : EncoderRuntime
        unchecked : bool
            Whether to take any encoder of the same kind: for comparing, never for routing.

        Raises
        ------
        ArtifactIntegrityError
            If an encoder is not the one that the artifact was trained with.
        EncoderError, MissingDependencyError
            If it cannot be built at all.
        ConfigError
            If a server or exported files are configured that no encoder would use.

        Notes
        -----
        The key of a remote encoder is taken from ``runtime.api_key_env`` alone: an artifact from
        elsewhere must not choose which variable of the environment is sent to the server it names.
        """
        kinds = [spec.kind for spec in self.features.encoders]
        if not any(isinstance(spec, RemoteSpec) for spec in self.features.encoders):
            refuse_server(runtime, holds=f"no remote encoder ({', '.join(kinds)})")
        refuse_exported(runtime, kinds=kinds)
        built = []
        entries = zip(
            _without_key_names(self.features).encoders,
            self.encoder_states,
            self.encoder_fingerprints,
            self.accepted or ((),) * len(self.features.encoders),
            strict=True,
        )
        for spec, state, recorded, accepted in entries:
            local = runtime
            if not isinstance(spec, RemoteSpec):
                local = runtime.model_copy(update={"url": None, "api_key_env": None})
            encoder = build_encoder(spec, runtime=local, state=state)
            if recorded is not None and not unchecked:
                _check_same(encoder, recorded, accepted)
            built.append(encoder)
        return tuple(built)

    def build(
        self,
        model_ids: tuple[str, ...],
        *,
        calibrator: Calibrator,
        novelty: NoveltyModel | None,
        runtime: EncoderRuntime,
    ) -> FeaturePredictor:
        generator = EmbeddingGenerator(self.features, self.build_encoders(runtime))
        return FeaturePredictor(model_ids, generator, self.head, calibrator, novelty)


def _check_same(encoder: Encoder, recorded: str, accepted: Sequence[AcceptedEncoder]) -> None:
    """Raise unless ``encoder`` is, equals or was accepted for the recorded one."""
    allowed = {recorded, *(one.fingerprint for one in accepted)}
    equal = encoder.stands_for if isinstance(encoder, ExportedEncoder) else None
    if encoder.fingerprint in allowed or equal == recorded:
        return
    remedy = "Install the same encoder, or retrain."
    if isinstance(encoder, ExportedEncoder):
        remedy = (
            "Show on your own samples that it decides alike: model-router check-encoder ARTIFACT "
            "--samples FILE; or retrain on it."
        )
    raise ArtifactIntegrityError(
        f"Encoder '{encoder.kind}' has fingerprint {encoder.fingerprint[:12]}, but the "
        f"artifact was trained with {recorded[:12]}: its weights, preprocessing or "
        f"version differ. {remedy}"
    )


def _described(description: Mapping[str, Json]) -> FeatureDescription:
    try:
        return FeatureDescription.model_validate(dict(description))
    except ValidationError as error:
        raise ArtifactIntegrityError(f"predictor: {problems(error)}. {RESTORE}") from error


def _state_file(index: int) -> str:
    return f"encoder-{index}.safetensors"


def _without_key_names(features: FeatureSpec) -> FeatureSpec:
    encoders = tuple(
        spec.model_copy(update={"api_key_env": None}) if isinstance(spec, RemoteSpec) else spec
        for spec in features.encoders
    )
    return features.model_copy(update={"encoders": encoders})
