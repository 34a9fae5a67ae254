"""``model-router import-artifact``: a folder of the published router becomes an artifact."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import router_runtime
from router_runtime.artifacts import Artifact, save_artifact
from router_runtime.errors import ArtifactError, ConfigError
from router_runtime.legacy.restricted_pickle import plain_json, read_pickle
from router_runtime.prediction.calibration import Calibrator
from router_runtime.prediction.encoders.specs import (
    ClipSpec,
    EmbeddedSpec,
    EncoderSpec,
    RemoteSpec,
)
from router_runtime.prediction.feature_parts import FeatureParts
from router_runtime.prediction.features import FeatureSpec
from router_runtime.prediction.heads.base import import_optional
from router_runtime.types import Head, Json

logger = logging.getLogger(__name__)

NETWORK = "nn_router.pth"
NAMES = "model_names.joblib"
SETTINGS = "best_hyperparameters.joblib"
BOOSTERS = "xgb_multi_router.joblib"

HeadKind = Literal["mlp", "xgboost"]


@dataclass(frozen=True)
class _Source:
    """What was read: the head, its models, its settings, and which file said so."""

    head: Head
    model_names: tuple[str, ...]
    config: Json
    files: tuple[str, ...]
    notes: tuple[str, ...] = ()


def import_artifact(
    source: str | Path,
    output: str | Path,
    *,
    encoder: EncoderSpec | None = None,
    model_ids: Sequence[str] | None = None,
    head: HeadKind = "mlp",
) -> Artifact:
    """Convert ``nn_router.pth`` (or ``xgb_multi_router.joblib``) into an artifact folder.

    The network's own weights and column order are kept. The features are the published plain ones:
    text half, then picture half, neither normalised, no extra columns. Nobody can check that the
    encoder named here is the one that the features were made with, so the artifact records no
    fingerprint, and its card says so. Its probabilities are not calibrated.

    Parameters
    ----------
    source : path
        The folder, or a file in it.
    output : path
        Folder of the new artifact.
    encoder : EncoderSpec, optional
        What made the training features; default: CLIP ViT-B-32.
    model_ids : sequence of str, optional
        Replaces the stored names, in the order of the head's outputs.
    head : {"mlp", "xgboost"}
        Which of the folder's two routers.

    Raises
    ------
    ArtifactError
        If a file is missing, damaged, or asks for more than tensors and plain values.
    ConfigError
        If the names do not match the outputs, or the encoder the inputs.
    MissingDependencyError
        Without torch (``mlp``) or xgboost.
    """
    folder = Path(source)
    if folder.is_file():
        folder = folder.parent
    spec = ClipSpec() if encoder is None else encoder
    found = _read_network(folder) if head == "mlp" else _read_boosters(folder)
    names = _model_ids(found, model_ids)
    _check_encoder(spec, found.head.n_features)
    for note in found.notes:
        logger.warning("%s", note)
    artifact = Artifact(
        model_ids=names,
        parts=FeatureParts(plain_features(spec), (None,), (None,), found.head),
        calibrator=Calibrator.identity(len(names)),
        training={
            "imported": {name: _digest(folder / name) for name in found.files},
            "config": found.config,
            "notes": list(found.notes),
        },
    )
    return save_artifact(
        artifact,
        output,
        created_by=f"model-router {router_runtime.__version__} import-artifact",
        card=_card(artifact, found),
    )


def plain_features(encoder: EncoderSpec) -> FeatureSpec:
    """Return the published layout: text half, then picture half, as the encoder gives them."""
    return FeatureSpec(encoders=(encoder,), normalise="none", extra_columns=())


def _read_network(folder: Path) -> _Source:
    checkpoint = import_optional(
        "router_runtime.legacy.checkpoint", {"torch": "train"}
    ).read_checkpoint(folder / NETWORK)
    names, config = checkpoint.model_names, checkpoint.config
    files, notes = [NETWORK], []
    if (folder / NAMES).is_file():
        listed = _names(folder / NAMES)
        if not names:
            names = listed
            files.append(NAMES)
        elif names != listed:
            notes.append(
                f"{NAMES} lists {', '.join(listed)}, but {NETWORK} was trained for "
                f"{', '.join(names)}; the latter was kept."
            )
    return _Source(checkpoint.head, names, config, tuple(files), tuple(notes))


def _read_boosters(folder: Path) -> _Source:
    boosters = import_optional("router_runtime.legacy.boosters", {"xgboost": "train"})
    head = boosters.read_boosters(folder / BOOSTERS)
    config, files = None, [BOOSTERS, NAMES]
    if (folder / SETTINGS).is_file():
        path = folder / SETTINGS
        config = plain_json(read_pickle(path), source=str(path))
        files.append(SETTINGS)
    return _Source(head, _names(folder / NAMES), config, tuple(files))


def _names(path: Path) -> tuple[str, ...]:
    value = read_pickle(path)
    if not isinstance(value, list | tuple) or not all(isinstance(name, str) for name in value):
        raise ArtifactError(f"'{path}' is no list of model names.")
    _check_printable(value)
    return tuple(value)


def _check_printable(names: Sequence[str]) -> None:
    for name in names:
        if not name.isprintable():
            raise ArtifactError(
                f"The model name {name!a} holds characters that are no text. Name the models "
                "yourself (model_ids), or write the file again."
            )


def _model_ids(found: _Source, wanted: Sequence[str] | None) -> tuple[str, ...]:
    names = found.model_names if wanted is None else tuple(wanted)
    _check_printable(names)
    if len(names) != found.head.n_models or len(set(names)) != len(names) or not all(names):
        raise ConfigError(
            f"The head has {found.head.n_models} outputs, and the models are "
            f"{', '.join(names) or 'not named'}. Name one different model per output (model_ids)."
        )
    return names


def _check_encoder(spec: EncoderSpec, n_features: int) -> None:
    """Check what can be known without the encoder's weights."""
    if isinstance(spec, EmbeddedSpec):
        raise ConfigError(
            "The 'embedded' encoder is fitted to its own training data and cannot have made the "
            "features of an imported router. Name the encoder that did, e.g. clip."
        )
    if isinstance(spec, RemoteSpec):
        width = spec.dim * (2 if spec.image_half else 1)
        if width != n_features:
            raise ConfigError(
                f"The imported head takes {n_features} features, and the remote encoder with "
                f"dim {spec.dim} gives {width}. Set dim to {n_features // 2}."
            )


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _card(artifact: Artifact, found: _Source) -> str:
    rows = "\n".join(f"- `{name}`" for name in artifact.model_ids)
    notes = "".join(f"\n- {note}" for note in found.notes)
    return f"""---
library_name: model-router
tags: [model-routing, imported]
---

# Imported router

Converted from {", ".join(f"`{name}`" for name in found.files)}. Columns of the probabilities:

{rows}

- Head: `{artifact.head.kind}`, {artifact.head.n_features} features.
- **The features cannot be verified.** The source does not say which encoder made its training
  features. `{artifact.features.encoders[0].kind}` was named at the import and is not checked
  against a fingerprint. With another encoder the probabilities mean nothing.
- The probabilities are not calibrated, there are no learned costs, and no figure of quality is
  known. Retrain on your own records for those.{notes}
"""
