"""What is served: a base model, its adapters, and limits."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, Field, model_validator

from router_runtime.config import ImageLimitsConfig
from router_runtime.errors import ConfigError
from router_runtime.target_config import VariableName
from router_runtime.types import Json
from router_runtime.yaml_config import StrictModel, read_yaml, validate, with_overrides

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
NAME_RULE: Final = (
    "letters, digits, '.', '_' and '-', at most 64, beginning with a letter or a digit"
)


def is_adapter_name(name: str) -> bool:
    """Return whether an adapter may be called so; names appear in URLs, logs and tables."""
    return _NAME.match(name) is not None


def _adapter_name(value: str) -> str:
    if not is_adapter_name(value):
        raise ValueError(f"an adapter's name has {NAME_RULE}")
    return value


AdapterName = Annotated[str, AfterValidator(_adapter_name)]


class BaseConfig(StrictModel):
    """The model below all adapters.

    Parameters
    ----------
    model : str
        Local folder or hub id of a causal or vision-language model with a chat template.
    revision : str or None
        Of a hub id.
    known_as : tuple of str
        Further names under which adapters may know this model (``base_model_name_or_path``), such
        as the folder that it had where they were trained. ``model`` itself always counts, and of
        paths and ids the last part is compared.
    dtype : str
        Type of the weights in memory; ``auto`` is the type of the file.
    device : str
        ``auto`` is a GPU when there is one.
    chat_template : Path or None
        A Jinja file, instead of the template that comes with the model.
    """

    model: str = Field(min_length=1)
    revision: str | None = None
    known_as: tuple[str, ...] = ()
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda|cuda:\d{1,3})$")
    chat_template: Path | None = None


class ExpertsConfig(StrictModel):
    """A base model and the experts on it.

    Parameters
    ----------
    base : BaseConfig
        The model below all adapters.
    name : str or None
        What the base model alone is called in requests; None: ``base.model``.
    adapters : mapping of name to Path
        Folders written by PEFT, loaded at the start.
    adapters_root : Path or None
        Folder below which every adapter must lie, links followed.
    allow_updates : bool
        Let clients add and remove adapters while it runs; needs ``adapters_root``.
    max_adapter_mb : float or None
        Memory that adapters may take together, in units of 2**20 bytes; None: no bound.
    evict : bool
        Where they would take more, put the least recently used back to disk instead of refusing
        the new one. Its next request loads it again.
    max_batch : int
        Requests that are answered together.
    max_waiting : int
        Requests that may wait; beyond it they are refused with status 503.
    max_tokens : int
        Longest answer. Requests that ask for more, or say nothing, get this.
    images : ImageLimitsConfig
        Caps on pictures, which come as data URIs only.
    api_key_env : str or None
        Name of the variable with the key that clients send; None: no key, on loopback only.
    """

    base: BaseConfig
    name: str | None = Field(default=None, min_length=1, max_length=200)
    adapters: dict[AdapterName, Path] = Field(default_factory=dict)
    adapters_root: Path | None = None
    allow_updates: bool = False
    max_adapter_mb: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    evict: bool = False
    max_batch: int = Field(default=8, ge=1, le=256)
    max_waiting: int = Field(default=64, ge=1, le=100_000)
    max_tokens: int = Field(default=1024, ge=1, le=1_000_000)
    images: ImageLimitsConfig = ImageLimitsConfig()
    api_key_env: VariableName | None = None

    @model_validator(mode="after")
    def _consistent(self) -> ExpertsConfig:
        if self.allow_updates and self.adapters_root is None:
            raise ValueError(
                "'allow_updates' needs 'adapters_root', the folder below which adapters may lie"
            )
        if self.evict and self.max_adapter_mb is None:
            raise ValueError("'evict' does nothing without 'max_adapter_mb'; set both or neither")
        if self.images.fetch is not None:
            raise ValueError("'images.fetch' is not offered here; pictures come as data URIs")
        if self.base_name in self.adapters:
            raise ValueError(f"'{self.base_name}' names the base model and an adapter; rename one")
        return self

    @property
    def base_name(self) -> str:
        """What the base model alone is called."""
        return self.name or self.base.model

    @property
    def max_adapter_bytes(self) -> int | None:
        """``max_adapter_mb`` in bytes."""
        return None if self.max_adapter_mb is None else int(self.max_adapter_mb * 2**20)


def load_experts_config(path: str | Path) -> ExpertsConfig:
    """Read and validate a config; its paths become relative to the file's folder.

    ``base.model`` is a local folder where one of that name lies beside the file, or where it begins
    with ``.``, and else a hub id.

    Raises
    ------
    ConfigError
        One line naming the file, the key, what is wrong and what is known.
    """
    file = Path(path)
    config = validate(ExpertsConfig, read_yaml(file), source=str(file))
    folder = file.parent.resolve()
    base = config.base
    beside = folder / base.model
    local = beside.is_dir() or base.model.startswith(("./", "../"))
    template = None if base.chat_template is None else folder / base.chat_template
    return config.model_copy(
        update={
            "name": config.base_name,
            "base": base.model_copy(
                update={"model": str(beside) if local else base.model, "chat_template": template}
            ),
            "adapters": {name: folder / place for name, place in config.adapters.items()},
            "adapters_root": config.adapters_root and folder / config.adapters_root,
        }
    )


def config_of_options(
    base: str, adapters: tuple[str, ...], options: dict[str, Json]
) -> ExpertsConfig:
    """Return the config that a command line describes.

    Parameters
    ----------
    base : str
        Folder or hub id.
    adapters : tuple of str
        ``name=folder`` each.
    options : mapping
        Further keys by dotted name; None is left out.

    Raises
    ------
    ConfigError
        An adapter without a name or named twice, or a value that the config refuses.
    """
    named: dict[str, str] = {}
    for entry in adapters:
        name, found, place = entry.partition("=")
        if not (name and found and place):
            raise ConfigError(f"--adapter '{entry}' is not of the form name=folder.")
        if name in named:
            raise ConfigError(f"--adapter '{name}' is given twice; an adapter's name is its own.")
        named[name] = str(Path(place).resolve())
    given = {key: value for key, value in options.items() if value is not None}
    content: dict[str, Json] = {"base": {"model": base}, "adapters": named}
    return validate(
        ExpertsConfig,
        with_overrides(content, given, source="command line"),
        source="command line",
    )
