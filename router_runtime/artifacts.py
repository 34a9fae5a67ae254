"""The artifact folder: what was learned, in files that cannot run code.

::

    manifest.json                format version, model order, predictor, calibration, novelty,
                                 learned costs, provenance, metrics, and the sha256 of every other
                                 file; written last, so that its existence means that the folder is
                                 complete
    novelty.safetensors          what tells queries unlike the training data; may be absent
    README.md                    the model card
    ...                          exports for other readers, never read here

and, by the predictor's kind (``prediction/parts.py``)::

    features      head*.safetensors or *.ubj, encoder-<i>.safetensors for fitted encoders
    sequence      sequence.safetensors, sequence-tokenizer.json
    prompted      nothing: there are no weights
    adapter       adapter.safetensors; its base model is named, with digests

Safetensors, UBJSON boosters and JSON only; nothing on the load path can execute code. An artifact
holds no training text or picture, and the name of no secret. Loading checks the version, then that
exactly the listed files are there with exactly the listed digests (subfolders are not looked at),
then reads the parts and checks that they fit each other. The predictor itself is built last; what
it is made of is refused when its fingerprint is not the manifest's.

To change the format: raise ``FORMAT_VERSION``, add a migration to ``_MIGRATIONS`` that turns the
previous version's JSON into the new one's, and keep a folder of the old version in the tests.

Versions: 2 added ``novelty`` and a policy's ``fallback``; a folder of version 1 has neither, and so
routes as it did (``tests/data/artifact-v1``). 3 put what belongs to encoders and head below
``predictor``, whose ``kind`` they were before there were others (``tests/data/artifact-v2``).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from pydantic import Field, ValidationError, field_validator
from safetensors import SafetensorError

from router_runtime.artifact_folder import (
    INCOMING,
    MANIFEST,
    checked_files,
    find_folder,
    manifest_bytes,
    replace_manifest,
    write_files,
)
from router_runtime.config import EncoderRuntime, validate_policy
from router_runtime.errors import (
    ArtifactError,
    ArtifactIntegrityError,
    ArtifactVersionError,
    ConfigError,
)
from router_runtime.messages import TextRule
from router_runtime.policy import build_policy
from router_runtime.prediction.calibration import Calibrator
from router_runtime.prediction.costs import CostModel
from router_runtime.prediction.feature_parts import FeatureParts
from router_runtime.prediction.features import FeatureSpec
from router_runtime.prediction.novelty import NoveltyModel
from router_runtime.prediction.parts import PredictorParts, load_parts
from router_runtime.types import Encoder, Head, Json, Modality, Predictor
from router_runtime.yaml_config import StrictModel, validate

FORMAT_VERSION = 3


def _from_version_1(content: dict[str, Json]) -> dict[str, Json]:
    return {**content, "format_version": 2, "novelty": None}


def _from_version_2(content: dict[str, Json]) -> dict[str, Json]:
    moved = ("features", "n_features", "encoders", "head")
    kept = {name: value for name, value in content.items() if name not in moved}
    predictor = {name: content[name] for name in moved if name in content}
    return {**kept, "format_version": 3, "predictor": {"kind": "features", **predictor}}


_MIGRATIONS: dict[int, Callable[[dict[str, Json]], dict[str, Json]]] = {
    1: _from_version_1,
    2: _from_version_2,
}

READ_VERSIONS = (*sorted(_MIGRATIONS), FORMAT_VERSION)
"""Format versions that can be loaded."""


class Manifest(StrictModel):
    """``manifest.json``."""

    format_version: int
    created_by: str
    model_ids: tuple[str, ...] = Field(min_length=1)
    scored_modalities: dict[str, tuple[Modality, ...]]
    predictor: dict[str, Json]
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
    parts : PredictorParts
        What the predictor is made of; ``FeatureParts`` for encoders and a head.
    calibrator : Calibrator
        From what the parts predict to ``P``.
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
    parts: PredictorParts
    calibrator: Calibrator
    novelty: NoveltyModel | None = None
    cost_model: CostModel | None = None
    scored_modalities: Mapping[str, tuple[Modality, ...]] = field(default_factory=dict)
    recommended_policy: Mapping[str, Json] | None = None
    training: Mapping[str, Json] = field(default_factory=dict)
    metrics: Mapping[str, Json] = field(default_factory=dict)
    artifact_id: str = ""

    @property
    def text(self) -> TextRule:
        """Which part of a conversation is routed on."""
        return self.parts.text

    @property
    def tells_novelty(self) -> bool:
        """Whether predictions say how little is known of a query."""
        return self.novelty is not None or self.parts.tells_novelty

    @property
    def feature_parts(self) -> FeatureParts:
        """Encoders and head.

        Raises
        ------
        ArtifactError
            The predictor is of another kind and has none; so for the four properties below.
        """
        if not isinstance(self.parts, FeatureParts):
            raise ArtifactError(
                f"The artifact's predictor is of kind '{self.parts.kind}', which has no features "
                "and no head. Use an artifact of kind 'features' here."
            )
        return self.parts

    @property
    def features(self) -> FeatureSpec:
        """Layout of ``X``."""
        return self.feature_parts.features

    @property
    def head(self) -> Head:
        """``X`` to uncalibrated ``P``."""
        return self.feature_parts.head

    @property
    def encoder_fingerprints(self) -> tuple[str | None, ...]:
        """One per encoder; None means unchecked."""
        return self.feature_parts.encoder_fingerprints

    @property
    def encoder_states(self) -> tuple[Mapping[str, np.ndarray] | None, ...]:
        """Fitted arrays of encoders that have them."""
        return self.feature_parts.encoder_states

    def renamed(self, names: Sequence[str]) -> Artifact:
        """Return the artifact with its columns called ``names``, in order.

        The predictor is not renamed: columns are what it knows of models.
        """
        new = dict(zip(self.model_ids, names, strict=True))
        if all(old == name for old, name in new.items()):
            return self
        costs = self.cost_model
        return replace(
            self,
            model_ids=tuple(names),
            cost_model=None
            if costs is None
            else replace(costs, model_ids=tuple(new.get(m, m) for m in costs.model_ids)),
            scored_modalities={new.get(m, m): v for m, v in self.scored_modalities.items()},
            recommended_policy=_renamed_policy(self.recommended_policy, new),
        )

    def build_encoders(self, runtime: EncoderRuntime = EncoderRuntime()) -> tuple[Encoder, ...]:
        """Build the encoders; see ``FeatureParts.build_encoders``."""
        return self.feature_parts.build_encoders(runtime)

    def predictor(self, runtime: EncoderRuntime = EncoderRuntime()) -> Predictor:
        """Build the predictor; see ``PredictorParts.build``."""
        if runtime.base is not None and self.parts.kind != "adapter":
            raise ConfigError(
                f"'encoder.base' is set, but the artifact's predictor is of kind "
                f"'{self.parts.kind}', which has no base model. Remove it from the config."
            )
        return self.parts.build(
            self.model_ids, calibrator=self.calibrator, novelty=self.novelty, runtime=runtime
        )


def _renamed_policy(
    policy: Mapping[str, Json] | None, new: Mapping[str, str]
) -> dict[str, Json] | None:
    if policy is None:
        return None
    changed = dict(policy)  # of a manifest, and not validated yet
    if isinstance(thresholds := policy.get("thresholds"), dict):
        changed["thresholds"] = {new.get(m, m): value for m, value in thresholds.items()}
    if isinstance(fallback := policy.get("fallback"), dict):
        changed["fallback"] = _renamed_policy(fallback, new)
    if isinstance(model := policy.get("model"), str):
        changed["model"] = new.get(model, model)
    return changed


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
    content = dict(artifact.parts.to_files())
    if artifact.novelty is not None:
        content |= artifact.novelty.to_files()
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


def _manifest_text(artifact: Artifact, content: Mapping[str, bytes], created_by: str) -> bytes:
    values = {
        "format_version": FORMAT_VERSION,
        "created_by": created_by,
        "model_ids": artifact.model_ids,
        "scored_modalities": {
            name: tuple(sorted(modalities))
            for name, modalities in artifact.scored_modalities.items()
        },
        "predictor": artifact.parts.describe(),
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


def rewrite_predictor(artifact: Artifact, folder: str | Path) -> Artifact:
    """Write what ``artifact.parts`` says of itself into the folder's manifest, and nothing else.

    The files beside it stay as they are. One rename puts the new manifest in the old one's place.

    Parameters
    ----------
    artifact : Artifact
        Loaded from ``folder``; its parts may differ in what they describe, not in their files.
    folder : path

    Returns
    -------
    Artifact
        With the new ``artifact_id``.

    Raises
    ------
    ArtifactError
        The folder holds another artifact by now, or cannot be written.
    """
    path = find_folder(folder)
    raw = manifest_bytes(path)
    if _artifact_id(raw) != artifact.artifact_id:
        raise ArtifactError(f"Artifact '{path}' was replaced meanwhile. Run the command again.")
    predictor = artifact.parts.describe()
    manifest = _parse_manifest(raw, path).model_copy(update={"predictor": predictor})
    text = (manifest.model_dump_json(indent=2) + "\n").encode()
    replace_manifest(path, text)
    return replace(artifact, artifact_id=_artifact_id(text))


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

    The predictor is not built yet: that may need weights, a server or an extra
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
        If the predictor's parts need a package that is not installed.
    """
    path = find_folder(folder)
    raw = manifest_bytes(path)
    manifest = _parse_manifest(raw, path)
    files = checked_files(path, manifest.files, manifest=raw)
    try:
        artifact = Artifact(
            model_ids=manifest.model_ids,
            parts=load_parts(manifest.predictor, files),
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
        _check_parts(artifact)
        return artifact
    except (SafetensorError, KeyError, TypeError, ValueError, ConfigError) as error:
        raise ArtifactIntegrityError(
            f"Artifact '{path}': the manifest does not fit its files ({error}). Retrain."
        ) from error


def _check_parts(artifact: Artifact) -> None:
    """Check that the parts have the same models, features and encoders.

    Raises
    ------
    ValueError, ConfigError
        Naming the two that differ.
    """
    models = len(artifact.model_ids)
    artifact.parts.check(models, artifact.novelty)
    sizes = {"maps of the calibration": len(artifact.calibrator.maps)}
    if artifact.novelty is not None:
        sizes["models of the novelty model"] = artifact.novelty.n_models
    for name, found in sizes.items():
        if found != models:
            raise ValueError(f"{name}: {found}, expected {models}")
    known = set(artifact.model_ids)
    if unknown := sorted(set(artifact.scored_modalities) - known):
        raise ValueError(f"scored_modalities names the unknown model '{unknown[0]}'")
    if artifact.recommended_policy is not None:
        policy = validate_policy(artifact.recommended_policy, source="recommended_policy")
        built = build_policy(policy, model_ids=artifact.model_ids, name="recommended_policy")
        if built.needs_novelty and not artifact.tells_novelty:
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


def _artifact_id(manifest_bytes: bytes) -> str:
    return hashlib.sha256(manifest_bytes).hexdigest()[:16]
