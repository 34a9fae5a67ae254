"""LoRA matrices on a base model: put on to be learned, and taken off as PEFT would write them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# First, since it makes torchvision importable, which peft imports.
from router_runtime.experts.base_model import BaseModel  # isort: skip

import peft
import torch
from safetensors.torch import save as save_tensors

from router_runtime.errors import ConfigError
from router_runtime.experts.adapter_folder import CONFIG_FILE, WEIGHTS_FILE
from router_runtime.types import Json
from router_training.predictor_configs import AdapterConfig
from router_training.store import write_whole

_NAME = "default"


def add_lora(base: BaseModel, config: AdapterConfig, *, seed: int) -> dict[str, Json]:
    """Put fresh matrices on a base of one's own; returns PEFT's config of them as JSON.

    The matrices are float32 and the only parameters with gradients.

    Raises
    ------
    ConfigError
        ``target_modules`` names what the base does not have.
    """
    modules = adapted_modules(base, config.target_modules)
    lora = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,  # type: ignore[arg-type]  # PEFT divides by the rank
        lora_dropout=config.dropout,
        target_modules=modules,
    )
    devices = [base.device] if base.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        peft.inject_adapter_in_model(lora, base.model, _NAME)
    for name, parameter in base.model.named_parameters():
        learns = f".{_NAME}." in name and ".lora_" in name
        parameter.requires_grad_(learns)
        if learns:
            parameter.data = parameter.data.float()
    if config.gradient_checkpointing:
        base.model.gradient_checkpointing_enable({"use_reentrant": False})
    local = Path(base.name).is_dir()
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": Path(base.name).name if local else base.name,
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": config.dropout,
        "target_modules": modules,
        "bias": "none",
        "inference_mode": True,
    }


def adapted_modules(base: BaseModel, wanted: tuple[str, ...]) -> list[str]:
    """Return the names of the modules that are adapted.

    Raises
    ------
    ConfigError
        Naming the one that the base does not have.
    """
    linears = base.shape.linears
    for end in wanted:
        if not any(_ends(name, end) for name in linears):
            known = ", ".join(sorted({name.rpartition(".")[2] for name in linears}))
            raise ConfigError(
                f"target_modules: '{base.name}' has no linear module '{end}' (known: {known})."
            )
    if wanted:
        return [name for name in linears if any(_ends(name, end) for end in wanted)]
    language = tuple(part for part in base.shape.row_parts if part.endswith("."))
    return [name for name in linears if name.startswith(language)]


def tensors_of(base: BaseModel, weights: Mapping[str, torch.Tensor]) -> bytes:
    """Return learned matrices as PEFT names them, in the base's type, as safetensors."""
    return save_tensors(
        {
            f"base_model.model.{name.replace(f'.{_NAME}.', '.')}": tensor.detach()
            .to("cpu", base.dtype)
            .contiguous()
            .clone()
            for name, tensor in weights.items()
        }
    )


def write_folder(folder: Path, adapter: Mapping[str, Json], weights: bytes) -> None:
    """Write what PEFT's ``save_pretrained`` would; any server of adapters reads it.

    Raises
    ------
    RouterError
        The folder cannot be written.
    """
    write_whole(folder / WEIGHTS_FILE, weights)
    write_whole(folder / CONFIG_FILE, (json.dumps(adapter, indent=2) + "\n").encode())


def _ends(name: str, end: str) -> bool:
    return name == end or name.endswith(f".{end}")


def learned(model: Any) -> dict[str, torch.Tensor]:
    """Return the matrices on a model, by name; not copies."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}
