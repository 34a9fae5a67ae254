"""Parts of configs that a guide shows, checked as the programs check them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import yaml
from pydantic import TypeAdapter

from router_runtime.config import CandidateConfig, EncoderRuntime, PolicyConfig, RuntimeConfig
from router_runtime.experts.config import ExpertsConfig
from router_runtime.prediction.encoders.specs import EncoderSpec
from router_runtime.router_inference import CategoryConfig
from router_runtime.service_config import ServiceConfig
from router_runtime.simulator.config import SimulatorConfig
from router_runtime.target_config import TargetConfig


def _training(content: Any) -> None:
    from router_training.config import TrainingConfig

    TrainingConfig.model_validate(content)


def _labelling(content: Any) -> None:
    from router_training.labelling.config import LabelConfig

    LabelConfig.model_validate(content)


def _prompted(content: Any) -> None:
    from router_training.make_prompted import MakePromptedConfig

    MakePromptedConfig.model_validate(content)


def _encoder(content: Any) -> None:
    """``encoder:`` of a runtime config or, with ``kind``, an encoder of a training config."""
    kind: Any = EncoderSpec if "kind" in content else EncoderRuntime
    TypeAdapter(kind).validate_python(content)


def _as(kind: Any) -> Callable[[Any], object]:
    return lambda content: TypeAdapter(kind).validate_python(content)


CHECKS: Final[dict[str, tuple[tuple[str, ...], Callable[[Any], object]]]] = {
    "runtime-config": ((), _as(RuntimeConfig)),
    "train-config": ((), _training),
    "label-config": ((), _labelling),
    "experts-config": ((), _as(ExpertsConfig)),
    "simulator-config": ((), _as(SimulatorConfig)),
    "prompted-config": ((), _prompted),
    "category-config": ((), _as(CategoryConfig)),
    "service": (("service",), _as(ServiceConfig)),
    "policy": (("policy", "policies"), _as(PolicyConfig)),
    "encoder": (("encoder", "encoders"), _encoder),
    "candidate": (("candidate", "candidates", "direct"), _as(CandidateConfig)),
    "target": (("target",), _as(TargetConfig)),
}
"""By the name that a page gives: under which keys the section may stand, and who validates it."""


def check_section(name: str, text: str) -> None:
    """Validate a block of YAML: the section itself, or the key that it has, or a list of such."""
    keys, validate = CHECKS[name]
    content = yaml.safe_load(text)
    wrapped = isinstance(content, dict) and len(content) == 1 and next(iter(content)) in keys
    key = next(iter(content)) if wrapped else ""
    content = content[key] if wrapped else content
    if key == "policies":
        content = list(content.values())
    for entry in content if isinstance(content, list) else [content]:
        validate(entry)
