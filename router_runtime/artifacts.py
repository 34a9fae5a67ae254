"""The artifact folder: what was learned, in files that cannot run code.

::

    manifest.json                format version, model order, feature spec and encoder fingerprints,
                                 head, calibration, novelty, learned costs, provenance, metrics, and
                                 the sha256 of every other file; written last, so that its existence
                                 means that the folder is complete
    head*.safetensors, *.ubj     weights
    novelty.safetensors          what tells queries unlike the training data; may be absent
    encoder-<i>.safetensors      fitted state of encoders that have one (``embedded``)
    README.md                    the model card
    ...                          exports for other readers, never read here

Safetensors, UBJSON boosters and JSON only; nothing on the load path can execute code. An artifact
holds no training text or picture, and the name of no secret. Loading checks the version, then that
exactly the listed files are there with exactly the listed digests (subfolders are not looked at),
then builds the parts and checks that they fit each other; encoders are built last and refused when
their fingerprint is not the manifest's.

To change the format: raise ``FORMAT_VERSION``, add a migration to ``_MIGRATIONS`` that turns the
previous version's JSON into the new one's, and keep a folder of the old version in the tests.

Versions: 2 added ``novelty`` and a policy's ``fallback``; a folder of version 1 has neither, and so
routes as it did (``tests/data/artifact-v1``).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import safetensors.numpy
from pydantic import Field, ValidationError, field_validator
from safetensors import SafetensorError

from router_runtime.artifact_folder import (
    INCOMING,
    MANIFEST,
    checked_files,
    find_folder,
    manifest_bytes,
    write_files,
)
from router_runtime.config import StrictModel, validate, validate_policy
from router_runtime.errors import (
    ArtifactError,
    ArtifactIntegrityError,
    ArtifactVersionError,
    ConfigError,
)
from router_runtime.policy import build_policy
from router_runtime.prediction.calibration import Calibrator
from router_runtime.prediction.costs import CostModel
from router_runtime.prediction.encoders import build_encoder
from router_runtime.prediction.encoders.specs import EncoderRuntime, RemoteSpec
from router_runtime.prediction.features import EmbeddingGenerator, FeatureSpec
from router_runtime.prediction.heads.base import load_head
from router_runtime.prediction.novelty import NoveltyModel
from router_runtime.prediction.predictor import FeaturePredictor
from router_runtime.types import Encoder, Head, Json, Modality

FORMAT_VERSION = 2


def _from_version_1(content: dict[str, Json]) -> dict[str, Json]:
    return {**content, "format_version": 2, "novelty": None}


_MIGRATIONS: dict[int, Callable[[dict[str, Json]], dict[str, Json]]] = {1: _from_version_1}


class EncoderEntry(StrictModel):
    """One encoder as the manifest knows it.

    ``fingerprint`` is None only for imported artifacts, whose training features nobody can check.
    """

    fingerprint: str | None
    state: str | None = None


class Manifest(StrictModel):
    """``manifest.json``."""

    format_version: int
    created_by: str
    model_ids: tuple[str, ...] = Field(min_length=1)
    scored_modalities: dict[str, tuple[Modality, ...]]
    features: FeatureSpec
    n_features: int = Field(ge=1)
    encoders: tuple[EncoderEntry, ...]
    head: dict[str, Json]
    calibration: Json
    novelty: dict[str, Json] | None = None
    costs: Json = None
    recommended_policy: dict[str, Json] | None = None
    training: dict[str, Json] = Field(default_factory=dict)
    metrics: dict[str, Json] = Field(default_factory=dict)
    files: dict[str, str]

    @field_validator("model_ids")
    @classmethod
    def _distinct(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) != len(value):
            raise ValueError("a model id is listed twice")
        return value

    @field_validator("files")
    @classmethod
    def _plain_names(cls, value: dict[str, str]) -> dict[str, str]:
        for name in value:
            if name in ("", ".", "..", MANIFEST) or name != Path(name).name or "\\" in name:
                raise ValueError(f"'{name}' is not a plain file name")
        return value


@dataclass(frozen=True)
class Artifact:
    """Everything learned, in memory.

    Parameters
    ----------
    model_ids : tuple of str
        Column order of ``P``.
    features : FeatureSpec
        Layout of ``X``.
    encoder_fingerprints : tuple of (str or None)
        One per encoder; None means unchecked (imported artifacts).
    encoder_states : tuple of (mapping or None)
        Fitted arrays of encoders that have them.
    head, calibrator : Head, Calibrator
        ``X`` to ``P``.
    novelty : NoveltyModel or None
        Distance to the training data; None for imported artifacts and those of version 1.
    cost_model : CostModel or None
        Learned output tokens and USD per call.
    scored_modalities : mapping
        Per model, the modalities of the training queries that it was scored on.
    recommended_policy : mapping or None
        A policy config that ``tune`` recommends.
    training, metrics : mapping
        Provenance (data digest, seed, judge ...) and held-out figures.
    artifact_id : str
        First 16 hex digits of the manifest's sha256; empty before saving.
    """

    model_ids: tuple[str, ...]
    features: FeatureSpec
    encoder_fingerprints: tuple[str | None, ...]
    encoder_states: tuple[Mapping[str, np.ndarray] | None, ...]
    head: Head
    calibrator: Calibrator
    novelty: NoveltyModel | None = None
    cost_model: CostModel | None = None
    scored_modalities: Mapping[str, tuple[Modality, ...]] = field(default_factory=dict)
    recommended_policy: Mapping[str, Json] | None = None
    training: Mapping[str, Json] = field(default_factory=dict)
    metrics: Mapping[str, Json] = field(default_factory=dict)
    artifact_id: str = ""

    def build_encoders(self, runtime: EncoderRuntime = EncoderRuntime()) -> tuple[Encoder, ...]:
        """Build the encoders and refuse any whose fingerprint is not the recorded one.

        Raises
        ------
        ArtifactIntegrityError
            If an encoder is not the one that the artifact was trained with.
        EncoderError, MissingDependencyError
            If it cannot be built at all.
        ConfigError
            If a server is configured that no encoder would use.

        Notes
        -----
        The key of a remote encoder is taken from ``runtime.api_key_env`` alone: an artifact from
        elsewhere must not choose which variable of the environment is sent to the server it names.
        """
        remote = any(isinstance(spec, RemoteSpec) for spec in self.features.encoders)
        if not remote and (runtime.url or runtime.api_key_env):
            raise ConfigError(
                "An embedding server (url, api_key_env) is configured, but the artifact has no "
                f"remote encoder ({', '.join(spec.kind for spec in self.features.encoders)}). "
                "Remove it from the config."
            )
        built = []
        entries = zip(
            _without_key_names(self.features).encoders,
            self.encoder_states,
            self.encoder_fingerprints,
            strict=True,
        )
        for spec, state, recorded in entries:
            local = runtime
            if not isinstance(spec, RemoteSpec):
                local = runtime.model_copy(update={"url": None, "api_key_env": None})
            encoder = build_encoder(spec, runtime=local, state=state)
            if recorded is not None and encoder.fingerprint != recorded:
                raise ArtifactIntegrityError(
                    f"Encoder '{spec.kind}' has fingerprint {encoder.fingerprint[:12]}, but the "
                    f"artifact was trained with {recorded[:12]}: its weights, preprocessing or "
                    "version differ. Install the same encoder, or retrain."
                )
            built.append(encoder)
        return tuple(built)

    def predictor(self, runtime: EncoderRuntime = EncoderRuntime()) -> FeaturePredictor:
        """Join encoders, features, head, calibrator and novelty."""
        generator = EmbeddingGenerator(self.features, self.build_encoders(runtime))
        return FeaturePredictor(self.model_ids, generator, self.head, self.calibrator, self.novelty)


# --------------------------------------------------------------------------- saving


def save_artifact(
    artifact: Artifact,
    folder: str | Path,
    *,
    created_by: str,
    card: str,
    exports: Mapping[str, bytes] | None = None,
) -> Artifact:
    """Write the folder; returns the artifact with its ``artifact_id``.

    All files are first written to a subfolder, then moved in one by one between removing the old
    manifest and writing the new one: whenever the process dies, the folder either is complete or
    has no manifest, and saving again mends it. Files of a previous artifact in the folder are
    replaced; any other file there is an error, because it could not be told from tampering. Two
    processes must not save to one folder at the same time.

    Parameters
    ----------
    artifact : Artifact
        What to keep.
    folder : path
        Made when absent.
    created_by : str
        Program and version, for the manifest.
    card : str
        Markdown of the model card, kept as ``README.md``.
    exports : mapping of name to bytes, optional
        Files for other readers (``nn_router.pth`` ...); listed and digested, never read back.

    Raises
    ------
    ArtifactError
        If the artifact's parts do not fit each other, or the folder holds files that are no
        artifact's, or cannot be written.
    """
    content = _content(artifact, card, exports or {})
    text = _manifest_text(artifact, content, created_by)
    write_files(Path(folder), {**content, MANIFEST: text})
    return replace(artifact, artifact_id=_artifact_id(text))


def _content(artifact: Artifact, card: str, exports: Mapping[str, bytes]) -> dict[str, bytes]:
    content = dict(artifact.head.to_files("head"))
    if artifact.novelty is not None:
        content |= artifact.novelty.to_files()
    for index, state in enumerate(artifact.encoder_states):
        if state is not None:
            arrays = {name: np.ascontiguousarray(array) for name, array in state.items()}
            content[f"encoder-{index}.safetensors"] = safetensors.numpy.save(arrays)
    try:
        text = card.encode()
    except UnicodeEncodeError as error:
        raise ArtifactError(f"The card holds characters that are no text: {error}") from error
    taken = {name.casefold() for name in (*content, MANIFEST, INCOMING)}
    for name, data in {"README.md": text, **exports}.items():
        if name.casefold() in taken:  # not every file system tells A from a
            raise ArtifactError(f"Export '{name}' would overwrite a file of the artifact.")
        taken.add(name.casefold())
        content[name] = data
    return content


def _without_key_names(features: FeatureSpec) -> FeatureSpec:
    encoders = tuple(
        spec.model_copy(update={"api_key_env": None}) if isinstance(spec, RemoteSpec) else spec
        for spec in features.encoders
    )
    return features.model_copy(update={"encoders": encoders})


def _manifest_text(artifact: Artifact, content: Mapping[str, bytes], created_by: str) -> bytes:
    states = artifact.encoder_states
    values = {
        "format_version": FORMAT_VERSION,
        "created_by": created_by,
        "model_ids": artifact.model_ids,
        "scored_modalities": {
            name: tuple(sorted(modalities))
            for name, modalities in artifact.scored_modalities.items()
        },
        "features": _without_key_names(artifact.features),
        "n_features": artifact.head.n_features,
        "encoders": [
            EncoderEntry(
                fingerprint=fingerprint,
                state=None if states[index] is None else f"encoder-{index}.safetensors",
            )
            for index, fingerprint in enumerate(artifact.encoder_fingerprints)
        ],
        "head": artifact.head.describe(),
        "calibration": artifact.calibrator.to_json(),
        "novelty": None if artifact.novelty is None else artifact.novelty.describe(),
        "costs": None if artifact.cost_model is None else artifact.cost_model.to_json(),
        "recommended_policy": artifact.recommended_policy,
        "training": dict(artifact.training),
        "metrics": dict(artifact.metrics),
        "files": {name: hashlib.sha256(data).hexdigest() for name, data in content.items()},
    }
    try:
        _check_parts(artifact)
        return (Manifest.model_validate(values).model_dump_json(indent=2) + "\n").encode()
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"]))
        raise ArtifactError(
            f"The artifact is inconsistent and was not written: {where}: {problem['msg']}."
        ) from error
    except (ValueError, ConfigError) as error:
        raise ArtifactError(f"The artifact is inconsistent and was not written: {error}") from error


# --------------------------------------------------------------------------- loading


def read_manifest(folder: str | Path) -> Manifest:
    """Read and check ``manifest.json`` alone, without the other files.

    Raises
    ------
    ArtifactError, ArtifactVersionError, ArtifactIntegrityError
        See ``load_artifact``.
    """
    return _parse_manifest(manifest_bytes(find_folder(folder)), Path(folder))


def load_artifact(folder: str | Path) -> Artifact:
    """Load an artifact after checking that every file is there, unchanged, and nothing else.

    Encoders are not built yet: that may need weights, a server or an extra
    (``Artifact.predictor``).

    Parameters
    ----------
    folder : path
        The artifact's folder, or the path of a file in it, such as ``.../nn_router.pth``; that file
        itself is never read.

    Raises
    ------
    ArtifactError
        If the folder is no artifact, cannot be read, or is being replaced at this moment.
    ArtifactVersionError
        If another version of the format wrote it.
    ArtifactIntegrityError
        If a file is missing, changed, extra or too large, or the parts do not fit each other.
    MissingDependencyError
        If the head needs a package that is not installed.
    """
    path = find_folder(folder)
    raw = manifest_bytes(path)
    manifest = _parse_manifest(raw, path)
    files = checked_files(path, manifest.files, manifest=raw)
    try:
        artifact = Artifact(
            model_ids=manifest.model_ids,
            features=manifest.features,
            encoder_fingerprints=tuple(entry.fingerprint for entry in manifest.encoders),
            encoder_states=tuple(_state(files, entry) for entry in manifest.encoders),
            head=load_head(manifest.head, files),
            calibrator=Calibrator.from_json(manifest.calibration),
            novelty=None
            if manifest.novelty is None
            else NoveltyModel.from_files(manifest.novelty, files),
            cost_model=None if manifest.costs is None else CostModel.from_json(manifest.costs),
            scored_modalities=manifest.scored_modalities,
            recommended_policy=manifest.recommended_policy,
            training=manifest.training,
            metrics=manifest.metrics,
            artifact_id=_artifact_id(raw),
        )
        _check_parts(artifact, n_features=manifest.n_features)
        return artifact
    except (SafetensorError, KeyError, TypeError, ValueError, ConfigError) as error:
        raise ArtifactIntegrityError(
            f"Artifact '{path}': the manifest does not fit its files ({error}). Retrain."
        ) from error


def _check_parts(artifact: Artifact, *, n_features: int | None = None) -> None:
    """Check that the parts have the same models, features and encoders.

    Raises
    ------
    ValueError, ConfigError
        Naming the two that differ.
    """
    models, head = len(artifact.model_ids), artifact.head
    encoders = len(artifact.features.encoders)
    sizes = {
        "outputs of the head": (head.n_models, models),
        "maps of the calibration": (len(artifact.calibrator.maps), models),
        "features of the head": (head.n_features, n_features or head.n_features),
        "encoder fingerprints": (len(artifact.encoder_fingerprints), encoders),
        "encoder states": (len(artifact.encoder_states), encoders),
    }
    if artifact.novelty is not None:
        sizes["features of the novelty model"] = (artifact.novelty.n_features, head.n_features)
        sizes["models of the novelty model"] = (artifact.novelty.n_models, models)
    for name, (found, expected) in sizes.items():
        if found != expected:
            raise ValueError(f"{name}: {found}, expected {expected}")
    known = set(artifact.model_ids)
    if unknown := sorted(set(artifact.scored_modalities) - known):
        raise ValueError(f"scored_modalities names the unknown model '{unknown[0]}'")
    if artifact.recommended_policy is not None:
        policy = validate_policy(artifact.recommended_policy, source="recommended_policy")
        built = build_policy(policy, model_ids=artifact.model_ids, name="recommended_policy")
        if built.needs_novelty and artifact.novelty is None:
            raise ValueError("recommended_policy has a fallback, but there is no novelty model")
    if artifact.cost_model is not None and artifact.cost_model.model_ids != artifact.model_ids:
        raise ValueError("the models of the costs are not those of the artifact")


def _parse_manifest(raw: bytes, path: Path) -> Manifest:
    try:
        content = json.loads(raw)
        # Refuses what JSON does not know but Python reads: NaN, infinity and lone surrogates.
        json.dumps(content, ensure_ascii=False, allow_nan=False).encode()
        version = content["format_version"]
        if type(version) is not int:
            raise TypeError("format_version is no integer")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ArtifactIntegrityError(
            f"Artifact '{path}': {MANIFEST} is damaged ({error}). Retrain, or restore the file."
        ) from error
    while version in _MIGRATIONS and version != FORMAT_VERSION:
        content = _MIGRATIONS[version](content)
        version = content["format_version"]
    if version != FORMAT_VERSION:
        raise ArtifactVersionError(
            f"Artifact '{path}' has format version {version}; this version of model-router reads "
            f"{FORMAT_VERSION}. Retrain, or install the matching version."
        )
    try:
        return validate(Manifest, content, source=f"Artifact '{path}', {MANIFEST}")
    except ConfigError as error:
        raise ArtifactIntegrityError(str(error)) from error


def _state(files: Mapping[str, bytes], entry: EncoderEntry) -> Mapping[str, np.ndarray] | None:
    if entry.state is None:
        return None
    state: dict[str, np.ndarray] = safetensors.numpy.load(files[entry.state])
    return state


def _artifact_id(manifest_bytes: bytes) -> str:
    return hashlib.sha256(manifest_bytes).hexdigest()[:16]
