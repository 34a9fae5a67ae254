"""A LoRA adapter's folder, read and checked before PyTorch or PEFT sees it.

A folder is what PEFT's ``save_pretrained`` writes: ``adapter_config.json`` and
``adapter_model.safetensors``. Other files are left unread, but a folder with a file that is a
pickle, or is loaded like one, is refused whole: someone would load it one day.

PEFT reads names in an adapter's config as regular expressions and would fill what a file lacks with
fresh weights. Here the weights say which modules are adapted and the config only how strongly;
where the two disagree the folder is refused. The bytes that were checked are the bytes that are
used: the file is read once.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import safetensors

from router_runtime.errors import ArtifactError, ArtifactIntegrityError, ConfigError
from router_runtime.experts.config import NAME_RULE, is_adapter_name
from router_runtime.types import Json

CONFIG_FILE: Final = "adapter_config.json"
WEIGHTS_FILE: Final = "adapter_model.safetensors"
MAX_CONFIG_BYTES: Final = 2**20
MAX_WEIGHTS_BYTES: Final = 8 * 2**30

_LOADS_CODE: Final = frozenset(
    {".bin", ".ckpt", ".dill", ".h5", ".joblib", ".keras", ".npy", ".npz", ".pickle", ".pkl"}
    | {".pt", ".pt2", ".pth", ".py", ".so"}
)
_TENSOR: Final = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")
_FLOATS: Final = {"F64", "F32", "F16", "BF16"}
_deserialize: Any = safetensors.deserialize  # which has no types
_PATTERN: Final = re.compile(r"\^?[\w.]+\$?")
_UNSUPPORTED: Final = {
    "modules_to_save": "whole modules beside the adapter",
    "trainable_token_indices": "trained token embeddings",
    "target_parameters": "adapted parameters that are no modules",
    "layer_replication": "replicated layers",
    "alora_invocation_tokens": "activated LoRA",
    "use_dora": "DoRA",
    "use_qalora": "QALoRA",
    "use_bdlora": "block-diagonal LoRA",
    "lora_bias": "biases on LoRA's second matrix",
    "arrow_config": "Arrow",
    "kasa_config": "KaSA",
    "monteclora_config": "MonteCLoRA",
    "velora_config": "VeLoRA",
}
"""Keys of a config that change what the weights mean, with what they stand for in messages."""


@dataclass(frozen=True)
class Half:
    """One matrix of an adapted module: its shape and safetensors' name of its type."""

    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class AdaptedModule:
    """What an adapter adds to one linear module: ``scale x B A``."""

    rank: int
    in_features: int
    out_features: int
    scale: float


@dataclass(frozen=True)
class AdapterFolder:
    """A checked adapter.

    Parameters
    ----------
    name : str
        What requests call it.
    path : Path
    base_model : str or None
        The base that it says it was trained on.
    target_modules : tuple of str
        The modules that its config lists; empty where that is a pattern.
    modules : mapping
        By a module's name in the base model.
    n_parameters : int
    data : bytes
        The weights' file.
    """

    name: str
    path: Path
    base_model: str | None
    target_modules: tuple[str, ...]
    modules: Mapping[str, AdaptedModule]
    n_parameters: int
    data: bytes = field(repr=False)


def read_adapter(name: str, path: str | Path, *, root: Path | None = None) -> AdapterFolder:
    """Read and check an adapter's folder. Nothing of it is executed.

    Parameters
    ----------
    name : str
        What it will be called.
    path : str or Path
    root : Path or None
        Folder below which it must lie after links are followed; a relative ``path`` begins there.

    Raises
    ------
    ConfigError
        The name or the place is not allowed.
    ArtifactError
        The folder is no LoRA adapter of a supported kind.
    ArtifactIntegrityError
        A file is missing, corrupt, or could execute code when loaded.
    """
    if not is_adapter_name(name):
        raise ConfigError(f"An adapter cannot be called {name!r:.80}: a name has {NAME_RULE}.")
    folder = _placed(name, path, root)
    _refuse_code(name, folder)
    config = _read_config(name, folder)
    data = _bytes_of(name, folder, WEIGHTS_FILE, MAX_WEIGHTS_BYTES)
    return adapter_of(name, config, data, folder=folder)


def adapter_of(
    name: str, config: Mapping[str, Json], data: bytes, *, folder: Path
) -> AdapterFolder:
    """Check an adapter's config and weights, wherever they were kept.

    Parameters
    ----------
    name : str
    config : mapping
        As PEFT writes it.
    data : bytes
        Safetensors.
    folder : Path
        Where messages say that they are.

    Raises
    ------
    ArtifactError, ArtifactIntegrityError
        As ``read_adapter``.
    """
    _check_kind(name, config, folder)
    halves = _read_halves(name, folder, data)
    modules = _modules(name, config, halves)
    base, targets = config.get("base_model_name_or_path"), config.get("target_modules")
    return AdapterFolder(
        name=name,
        path=folder,
        base_model=base if isinstance(base, str) and base.strip() else None,
        target_modules=tuple(sorted(map(str, targets))) if isinstance(targets, list) else (),
        modules=modules,
        n_parameters=sum(math.prod(half.shape) for half in halves.values()),
        data=data,
    )


def _placed(name: str, path: str | Path, root: Path | None) -> Path:
    try:
        folder = (Path(path) if root is None else root / path).resolve()
        inside = root is None or folder.is_relative_to(root.resolve())
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigError(f"Adapter '{name}': its path cannot be read ({error}).") from None
    if not inside:
        raise ConfigError(
            f"Adapter '{name}': '{path}' lies outside 'adapters_root' ({root}). Move it there."
        )
    if not folder.is_dir():
        raise ArtifactIntegrityError(
            f"Adapter '{name}': there is no folder '{path}'. Give the folder that PEFT's "
            "save_pretrained wrote."
        )
    return folder


def _refuse_code(name: str, folder: Path) -> None:
    for file in sorted(folder.iterdir()):
        if any(suffix.lower() in _LOADS_CODE for suffix in file.suffixes):
            raise ArtifactIntegrityError(
                f"Adapter '{name}': '{file.name}' in {folder} could execute code when it is "
                f"loaded. Keep {CONFIG_FILE} and {WEIGHTS_FILE} in a folder of their own."
            )


def _bytes_of(name: str, folder: Path, file: str, most: int) -> bytes:
    place = folder / file
    try:
        inside = place.resolve().is_relative_to(folder)
        if not (place.is_file() and inside):
            raise ArtifactIntegrityError(
                f"Adapter '{name}': {folder} has no file {file}"
                + (" of its own (it is a link). Copy the file." if place.is_symlink() else ".")
            )
        with place.open("rb") as stream:
            data = stream.read(most + 1)
    except OSError as error:
        raise ArtifactIntegrityError(
            f"Adapter '{name}': {place} cannot be read: {error.strerror or error}."
        ) from error
    if len(data) > most:
        raise ArtifactIntegrityError(
            f"Adapter '{name}': {place} has more than {most:,} bytes, which is no adapter."
        )
    return data


def _read_config(name: str, folder: Path) -> Mapping[str, Json]:
    data = _bytes_of(name, folder, CONFIG_FILE, MAX_CONFIG_BYTES)
    try:
        config = json.loads(data)
    except (ValueError, RecursionError):
        raise ArtifactIntegrityError(
            f"Adapter '{name}': {folder / CONFIG_FILE} is no JSON. Save the adapter again."
        ) from None
    if not isinstance(config, dict):
        raise ArtifactError(
            f"Adapter '{name}': {folder / CONFIG_FILE} is no adapter's config. Save the adapter "
            "again."
        )
    return config


def _check_kind(name: str, config: Mapping[str, Json], folder: Path) -> None:
    kind = config.get("peft_type")
    if kind != "LORA":
        raise ArtifactError(
            f"Adapter '{name}': {folder / CONFIG_FILE} describes peft_type {kind!r:.40}; only "
            "'LORA' is served."
        )
    used = [words for key, words in _UNSUPPORTED.items() if config.get(key)]
    if config.get("bias", "none") != "none":
        used.append("trained biases")
    if used:
        raise ArtifactError(
            f"Adapter '{name}' uses {', '.join(used)}, which cannot be served beside other "
            "adapters. Train a plain LoRA, or merge it into a model of its own."
        )


def _read_halves(name: str, folder: Path, data: bytes) -> dict[str, Half]:
    try:
        entries = _deserialize(data)
    except (safetensors.SafetensorError, ValueError, OverflowError) as error:
        raise ArtifactIntegrityError(
            f"Adapter '{name}': {folder / WEIGHTS_FILE} is corrupt "
            f"({' '.join(str(error).split())[:120]}). Copy or save it again."
        ) from None
    halves = {key: Half(tuple(entry["shape"]), entry["dtype"]) for key, entry in entries}
    if not halves:
        raise ArtifactIntegrityError(
            f"Adapter '{name}': {folder / WEIGHTS_FILE} holds no tensor. Save the adapter again."
        )
    for key, half in halves.items():
        if _TENSOR.fullmatch(key) is None:
            raise ArtifactError(
                f"Adapter '{name}': its tensor '{key:.120}' is no LoRA matrix of a linear module."
            )
        if len(half.shape) != 2 or 0 in half.shape or half.dtype not in _FLOATS:
            raise ArtifactError(
                f"Adapter '{name}': its tensor '{key:.120}' is {half.dtype} of shape "
                f"{half.shape}, where a matrix of floating-point numbers was expected."
            )
    return halves


def _modules(
    name: str, config: Mapping[str, Json], halves: Mapping[str, Half]
) -> dict[str, AdaptedModule]:
    shapes: dict[str, dict[str, tuple[int, ...]]] = {}
    for key, half in halves.items():
        found = _TENSOR.fullmatch(key)
        if found is not None:
            shapes.setdefault(found[1], {})[found[2]] = half.shape
    modules = {}
    for module, pair in sorted(shapes.items()):
        if len(pair) != 2:
            lacking = "B" if "A" in pair else "A"
            raise ArtifactIntegrityError(
                f"Adapter '{name}': module '{module}' has no lora_{lacking}. Save it again."
            )
        (rank, in_features), (out_features, rank_b) = pair["A"], pair["B"]
        stated = _setting(name, config, module, value="r", patterns="rank_pattern")
        if not rank == rank_b == stated:
            raise ArtifactIntegrityError(
                f"Adapter '{name}': module '{module}' has matrices of rank {rank} and {rank_b}, "
                f"but {CONFIG_FILE} says {stated:g}. Save the adapter again."
            )
        alpha = _setting(name, config, module, value="lora_alpha", patterns="alpha_pattern")
        scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
        modules[module] = AdaptedModule(rank, in_features, out_features, scale)
    return modules


def _setting(
    name: str, config: Mapping[str, Json], module: str, *, value: str, patterns: str
) -> float:
    """Return a number of the config for one module; patterns are plain ends of names only."""
    found: Any = config.get(value)
    special = config.get(patterns) or {}
    for pattern, own in special.items() if isinstance(special, dict) else ():
        if not _PATTERN.fullmatch(pattern):
            raise ArtifactError(
                f"Adapter '{name}': '{patterns}' in {CONFIG_FILE} holds the regular expression "
                f"'{pattern:.80}'; only names of modules are read."
            )
        plain = pattern.removeprefix("^").removesuffix("$")
        if module == plain or (not pattern.startswith("^") and module.endswith("." + plain)):
            found = own
            break
    number = isinstance(found, int | float) and not isinstance(found, bool)
    if not number or not math.isfinite(found) or found <= 0:
        raise ArtifactError(
            f"Adapter '{name}': {CONFIG_FILE} says {value} = {found!r:.40} for '{module}', where a "
            "number above 0 was expected."
        )
    return float(found)
