"""A ``prompted`` artifact from a config alone, without records: nothing is known of base rates."""

from __future__ import annotations

from pathlib import Path

from router_runtime import __version__
from router_runtime.artifacts import Artifact, save_artifact
from router_runtime.config import FallbackConfig, HighestProbabilityConfig
from router_runtime.messages import TextRule
from router_runtime.prediction.calibration import Calibrator
from router_runtime.prediction.parts import predictor_facts
from router_runtime.prediction.prompted import PromptedConfig, PromptedParts
from router_runtime.types import Modality
from router_runtime.yaml_config import StrictModel, read_yaml, validate
from router_training.card import escaped
from router_training.wording import yaml_lines


class MakePromptedConfig(StrictModel):
    """What ``router-train make-prompted`` reads.

    Parameters
    ----------
    predictor : PromptedConfig
        What is asked, and whom.
    output : Path
        The artifact's folder, relative to the file.
    text : TextRule
        Which part of a conversation is routed on.
    """

    predictor: PromptedConfig
    output: Path
    text: TextRule = TextRule()


def make_prompted(path: Path, *, output: Path | None = None) -> tuple[Artifact, Path]:
    """Save the artifact; returns it and its folder. Nobody is asked anything yet.

    Parameters
    ----------
    path : Path
        YAML.
    output : Path, optional
        Replaces the config's.

    Raises
    ------
    ConfigError
        One line naming the file and the key.
    ArtifactError
        The folder cannot be written.
    """
    config = validate(MakePromptedConfig, read_yaml(path), source=str(path))
    folder = (path.parent / config.output).resolve() if output is None else output
    asks = config.predictor
    models = tuple(asks.descriptions)
    parts = PromptedParts.of(asks, base_rates=[1.0 / len(models)] * len(models), text=config.text)
    fallback = None if asks.fallback is None else FallbackConfig(model=asks.fallback)
    seen = (Modality.IMAGE, Modality.TEXT) if asks.pictures else (Modality.TEXT,)
    artifact = Artifact(
        model_ids=models,
        parts=parts,
        calibrator=Calibrator.identity(len(models)),
        scored_modalities=dict.fromkeys(models, seen),
        recommended_policy=HighestProbabilityConfig(fallback=fallback).model_dump(mode="json"),
        training={"cost_unit": "unknown", "calibrated": False},
    )
    created_by = f"model-router {__version__} make-prompted"
    saved = save_artifact(artifact, folder, created_by=created_by, card=_card(artifact, asks))
    return saved, folder


def _card(artifact: Artifact, asks: PromptedConfig) -> str:
    models = list(asks.descriptions)
    front = {"library_name": "model-router", "predictor": "prompted", "models": models}
    facts = predictor_facts(artifact.parts.describe())
    told = "".join(f"- {name}: {escaped(value)}\n" for name, value in facts.items())
    rows = "".join(
        f"| {escaped(model)} | {escaped(text)} |\n" for model, text in asks.descriptions.items()
    )
    return (
        f"---\n{yaml_lines(front)}---\n\n# Prompted router\n\n"
        "Asks a model which kind of request it is. Nothing was trained, and its probabilities are "
        f"not calibrated.\n\n{told}\n| model | requests |\n|---|---|\n{rows}\n"
        "Every request is sent to the model that is asked, before it is sent anywhere else.\n"
    )
