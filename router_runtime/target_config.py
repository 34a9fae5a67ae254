"""Where candidates are called: the ``target`` of each, as a frozen value.

Secrets are never in a config, only the name of the variable that holds them (``api_key_env``).
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal, TypeAlias
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, field_validator, model_validator

from router_runtime.types import Json
from router_runtime.yaml_config import StrictModel


def _variable_name(value: str) -> str:
    """Refuse what is no name of a variable, without showing it: it may be the key itself."""
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", value):
        raise ValueError(
            "it is no name of an environment variable; put the key into a variable and give the "
            "variable's name"
        )
    return value


VariableName = Annotated[str, AfterValidator(_variable_name)]
"""Name of an environment variable that holds a secret."""


class _TargetBase(StrictModel):
    """What every target has: limits, and parameters that are sent with each call.

    Parameters
    ----------
    model : str or None
        The ``model`` field of the request; None: the candidate's id. For an adapter on vLLM it is
        the adapter's name.
    api_key_env : str or None
        Name of the environment variable that holds the key; None: no key is sent.
    timeout_s : float
        Seconds for one call, from connecting to the last byte.
    max_concurrency : int
        Calls in flight at a time.
    requests_per_minute, tokens_per_minute : int or None
        The provider's limits; None: no limit is known.
    parameters : mapping
        Fields of the request body beside ``model`` and ``messages``, such as ``temperature``.
    """

    model: str | None = Field(default=None, min_length=1)
    api_key_env: VariableName | None = None
    timeout_s: float = Field(default=120.0, gt=0, allow_inf_nan=False)
    max_concurrency: int = Field(default=16, ge=1, le=4096)
    requests_per_minute: int | None = Field(default=None, ge=1)
    tokens_per_minute: int | None = Field(default=None, ge=1)
    parameters: dict[str, Json] = Field(default_factory=dict)

    @field_validator("parameters")
    @classmethod
    def _no_owned_fields(cls, value: dict[str, Json]) -> dict[str, Json]:
        for name in ("model", "messages", "stream"):
            if name in value:
                raise ValueError(f"'{name}' is not a parameter; it is set for each call")
        return value


def _plain_url(value: str) -> str:
    """Refuse what is no ``http(s)://host[:port][/path]``, without showing it: it may hold a key."""
    try:
        parts = urlsplit(value)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port beyond 65535, half a bracket
        usable = False
    if not usable or not _URL.match(value):
        raise ValueError(
            "it must be http(s)://host[:port][/path], without a user, password or query; a key "
            "goes into the variable that 'api_key_env' names"
        )
    return value


_URL = re.compile(r"^https?://[^\s/@?#\\]+(/[^\s@?#]*)?\Z", re.IGNORECASE)

Url = Annotated[str, AfterValidator(_plain_url)]
"""``http(s)://host[:port][/path]``, without a user, password or query in it."""


class OpenAITargetConfig(_TargetBase):
    """OpenAI itself.

    Parameters
    ----------
    base_url : str
        Of the API, with its version.
    """

    kind: Literal["openai"] = "openai"
    base_url: Url = "https://api.openai.com/v1"
    api_key_env: VariableName | None = "OPENAI_API_KEY"


class AzureTargetConfig(_TargetBase):
    """Azure OpenAI; ``model`` is the deployment's name.

    Parameters
    ----------
    endpoint : str
        Of the resource, such as ``https://NAME.openai.azure.com``.
    api_version : str
        Sent with every call.
    """

    kind: Literal["azure"]
    endpoint: Url
    api_version: str = "2024-10-21"
    api_key_env: VariableName | None = "AZURE_OPENAI_API_KEY"


class NimTargetConfig(_TargetBase):
    """NVIDIA NIM, hosted (the default) or one's own.

    Parameters
    ----------
    base_url : str
        Of the API, with its version.
    """

    kind: Literal["nim"]
    base_url: Url = "https://integrate.api.nvidia.com/v1"
    api_key_env: VariableName | None = "NVIDIA_API_KEY"


class VllmTargetConfig(_TargetBase):
    """A vLLM server; ``model`` names the base model or one of its LoRA adapters.

    Parameters
    ----------
    base_url : str
        Of the API, such as ``http://127.0.0.1:8000/v1``.
    """

    kind: Literal["vllm"]
    base_url: Url


class CompatibleTargetConfig(_TargetBase):
    """Any other server that speaks OpenAI's API.

    Parameters
    ----------
    base_url : str
        Of the API, such as ``http://127.0.0.1:8000/v1``.
    """

    kind: Literal["compatible"]
    base_url: Url


class LoraxTargetConfig(_TargetBase):
    """A LoRAX server, which loads the adapter that ``model`` names when it is first asked for.

    Parameters
    ----------
    base_url : str
        Of the API, such as ``http://127.0.0.1:8000/v1``.
    """

    kind: Literal["lorax"]
    base_url: Url


class LoraVllmTargetConfig(_TargetBase):
    """A LoRA adapter on one or more vLLM replicas; ``model`` is the adapter's name.

    Parameters
    ----------
    base_urls : tuple of str
        One per replica. A call goes to the one with the fewest calls in flight.
    adapter_path : str or None
        Where the replicas find the adapter; a replica that does not have it is told to load it
        from there. None: an adapter that is missing is an error.
    adapters_root : str or None
        The folder on the replicas' machines below which ``adapter_path`` must lie.
    rest_s : float
        How long a replica that failed is left alone.
    """

    kind: Literal["lora-vllm"]
    base_urls: tuple[Url, ...] = Field(min_length=1)
    adapter_path: str | None = Field(default=None, min_length=1)
    adapters_root: str | None = Field(default=None, min_length=1)
    rest_s: float = Field(default=10.0, gt=0, allow_inf_nan=False)

    @model_validator(mode="after")
    def _below_root(self) -> LoraVllmTargetConfig:
        if len({url.rstrip("/") for url in self.base_urls}) < len(self.base_urls):
            raise ValueError("'base_urls' names a replica twice; remove one")
        if self.adapter_path is None:
            return self
        if self.adapters_root is None:
            raise ValueError("'adapter_path' needs 'adapters_root', the folder that it must be in")
        root, path = PurePosixPath(self.adapters_root), PurePosixPath(self.adapter_path)
        inside = path.is_relative_to(root) and path != root
        if not (root.is_absolute() and inside) or ".." in (*root.parts, *path.parts):
            raise ValueError(
                f"'adapter_path' must be an absolute path below 'adapters_root' "
                f"({self.adapters_root}), without '..'"
            )
        return self


class PeftTargetConfig(_TargetBase):
    """A LoRA expert in this process; ``model`` is the adapter's name, or the base model's.

    Parameters
    ----------
    experts : Path
        An experts config (as for ``model-router experts serve``); in a runtime config relative to
        its file. Candidates that name the same one share its queue, and with all others on the same
        base model its weights in memory.
    """

    kind: Literal["peft"]
    experts: Path
    api_key_env: None = None


HttpTargetConfig: TypeAlias = (
    OpenAITargetConfig
    | AzureTargetConfig
    | NimTargetConfig
    | VllmTargetConfig
    | CompatibleTargetConfig
    | LoraxTargetConfig
)
"""One server that speaks OpenAI's API."""

TargetConfig = Annotated[
    HttpTargetConfig | LoraVllmTargetConfig | PeftTargetConfig,
    Field(discriminator="kind"),
]
