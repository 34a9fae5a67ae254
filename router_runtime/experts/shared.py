"""Weights of base models in memory: once for all in a process that use them.

Experts, a router that is an adapter on the same base, and the next version of a configuration each
have a pool of their own; below them are the same weights as long as model folder, type and device
are the same. They are forgotten with their last user.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from weakref import WeakValueDictionary

# The order matters: this makes torchvision importable, which transformers imports.
from router_runtime.experts.attaching import Attachment  # isort: skip

import torch
import transformers

from router_runtime.errors import EncoderError
from router_runtime.experts.fitting import BaseShape

_DTYPES: Final[Mapping[str, torch.dtype]] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


@dataclass(frozen=True, eq=False)
class Weights:
    """A loaded model, and what is attached to it.

    Parameters
    ----------
    model : transformers.PreTrainedModel
    described : transformers.PreTrainedConfig
    sees_pictures : bool
    shape : BaseShape
        As the file has it, without names.
    n_bytes : int
        Of its parameters and buffers in memory.
    attached : Attachment
    """

    model: Any
    described: Any
    sees_pictures: bool
    shape: BaseShape
    n_bytes: int
    attached: Attachment


_LOADED: Final[WeakValueDictionary[tuple[Any, ...], Weights]] = WeakValueDictionary()
_LOCK: Final = threading.Lock()


def weights_of(folder: Path, *, name: str, dtype: str, device: torch.device) -> Weights:
    """Return the weights of a model folder; those in memory where there are such.

    Parameters
    ----------
    folder : Path
    name : str
        What messages call it.
    dtype : str
        A type's name, or ``auto`` for that of the file.
    device : torch.device

    Raises
    ------
    EncoderError
        They cannot be loaded, or are no causal or vision-language model.
    """
    with _LOCK:
        described = _loading(name, transformers.AutoConfig.from_pretrained, folder)
        stated = _DTYPES.get(dtype, getattr(described, "dtype", None))
        key = (*_marks(folder), str(stated), _settled(device))
        found = _LOADED.get(key)
        if found is None:
            found = _LOADED[key] = load_weights(folder, name=name, dtype=dtype, device=device)
        return found


def load_weights(folder: Path, *, name: str, dtype: str, device: torch.device) -> Weights:
    """Return weights that nobody else has, as for training; otherwise as ``weights_of``."""
    described = _loading(name, transformers.AutoConfig.from_pretrained, folder)
    sees = type(described) in transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    kind: Any = transformers.AutoModelForCausalLM
    if sees:
        kind = transformers.AutoModelForImageTextToText
    model = _loading(
        name,
        kind.from_pretrained,
        folder,
        dtype=_DTYPES.get(dtype, "auto"),
        use_safetensors=True,
    )
    model = model.to(device).eval().requires_grad_(False)
    tensors = (*model.parameters(), *model.buffers())
    return Weights(
        model=model,
        described=described,
        sees_pictures=sees,
        shape=_shape(model),
        n_bytes=sum(tensor.numel() * tensor.element_size() for tensor in tensors),
        attached=Attachment(model),
    )


def _loading(name: str, load: Any, folder: Path, **told: Any) -> Any:
    try:
        return load(folder, **told)
    except Exception as error:  # damaged files make the loaders raise nearly anything
        raise EncoderError(
            f"base model '{name}' cannot be loaded as a causal or vision-language model: "
            f"{' '.join(str(error).split())[:300]}"
        ) from error


def _marks(folder: Path) -> tuple[Any, ...]:
    """Return what tells a folder from another, and from itself after its files were replaced."""
    files = [*sorted(folder.glob("*.safetensors")), folder / "config.json"]
    stats = [(file.name, file.stat()) for file in files if file.is_file()]
    return (folder.resolve(), *((file, stat.st_size, stat.st_mtime_ns) for file, stat in stats))


def _settled(device: torch.device) -> str:
    if device.type == "cuda" and device.index is None:
        return f"cuda:{torch.cuda.current_device()}"
    return str(device)


def _shape(model: Any) -> BaseShape:
    linears, others = {}, set()
    for name, module in model.named_modules():
        if type(module) is torch.nn.Linear:
            linears[name] = (module.in_features, module.out_features)
        elif name:
            others.add(name)
    row_parts = [id(part) for part in (model.get_decoder(), model.get_output_embeddings())]
    return BaseShape(
        name="",
        known_as=(),
        linears=linears,
        others=frozenset(others),
        row_parts=tuple(
            name if name in linears else f"{name}."
            for name, module in model.named_modules()
            if id(module) in row_parts
        ),
    )
