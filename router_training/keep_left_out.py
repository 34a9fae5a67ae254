"""Put what leaving data sets out has shown into the artifact of the same run, and into its card."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from router_runtime import __version__
from router_runtime.artifact_folder import find_folder
from router_runtime.artifacts import Artifact, load_artifact, read_manifest, save_artifact
from router_runtime.config import CandidateConfig
from router_runtime.errors import ConfigError
from router_training.card import render_card
from router_training.config import TrainingConfig
from router_training.leave_out import LeftOut
from router_training.reading import read_records
from router_training.stored_report import stored_report

_FILES = ("manifest.json", "README.md")


def check_same_run(config: TrainingConfig, folder: str | Path) -> None:
    """Refuse an artifact of other records, another seed or other settings, before anything slow.

    Raises
    ------
    ConfigError
        Saying what differs; or the artifact has files that saving again would lose.
    ArtifactError
        It is none.
    """
    manifest = read_manifest(folder)
    told = {
        "data_sha256": read_records(config).fingerprint,
        "seed": config.seed,
        "head": config.head.model_dump(mode="json"),
        "novelty": config.novelty.model_dump(mode="json"),
    }
    for name, value in told.items():
        if manifest.training.get(name) != value:
            raise ConfigError(
                f"Artifact '{folder}' is not of this config: '{name}' differs. Run the config "
                "first, or leave '--keep' out."
            )
    if manifest.predictor.get("features") != config.features.model_dump(mode="json"):
        raise ConfigError(
            f"Artifact '{folder}' is not of this config: 'features' differ. Run the config "
            "first, or leave '--keep' out."
        )
    own = {*load_artifact(folder).parts.to_files(), "novelty.safetensors", *_FILES}
    if exports := sorted(set(manifest.files) - own):
        raise ConfigError(
            f"Artifact '{folder}' has exports for other readers ({', '.join(exports)}), which "
            "cannot be kept. Run the config without '--export-legacy' first."
        )


def keep_left_out(
    found: Sequence[LeftOut], folder: str | Path, *, candidates: Sequence[CandidateConfig] = ()
) -> Artifact:
    """Save the artifact again, with these figures in its manifest and its card.

    Parameters
    ----------
    found : sequence of LeftOut
    folder : path
        Of an artifact that ``check_same_run`` let through.
    candidates : sequence of CandidateConfig
        As configured for training.

    Returns
    -------
    Artifact
        With its new ``artifact_id``.
    """
    path = find_folder(folder)
    artifact = load_artifact(path)
    report = stored_report(read_manifest(path), name=path.name)
    figures = [entry.to_json() for entry in found]
    extended = replace(artifact, metrics={**artifact.metrics, "left_out": figures})
    return save_artifact(
        extended,
        path,
        created_by=f"model-router {__version__}",
        card=render_card(extended, report, candidates=candidates),
    )
