"""From a target's configuration to the target; the SDK is imported when the first one is built."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from router_runtime.errors import ConfigError, MissingDependencyError
from router_runtime.target_config import LoraVllmTargetConfig, PeftTargetConfig, TargetConfig
from router_runtime.targets.base import Target


def build_target(
    model_id: str, config: TargetConfig, *, environment: Mapping[str, str] | None = None
) -> Target:
    """Return the target that ``config`` describes. Nothing is sent yet.

    Parameters
    ----------
    model_id : str
        The candidate's id.
    config : TargetConfig
        Where and how it is called.
    environment : mapping, optional
        Where ``api_key_env`` is looked up, and nothing else; by default the process's environment.

    Raises
    ------
    ConfigError
        The variable that ``api_key_env`` names is not set or holds no key, or the URL or a
        parameter cannot be used.
    MissingDependencyError
        The ``openai`` package is not installed, or what experts in this process need.
    """
    if isinstance(config, PeftTargetConfig):
        return _expert(model_id, config)
    key = key_of(model_id, config.api_key_env, os.environ if environment is None else environment)
    try:
        from router_runtime.targets.lora import LoraVllmTarget
        from router_runtime.targets.openai import OpenAITarget
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("openai", "httpx2", "aiohttp", "yarl"):
            raise
        raise MissingDependencyError("openai", "label") from error
    if isinstance(config, LoraVllmTargetConfig):
        return LoraVllmTarget(model_id, config, key=key)
    return OpenAITarget(model_id, config, key=key)


def _expert(model_id: str, config: PeftTargetConfig) -> Target:
    with expert_import():
        from router_runtime.targets.peft import PeftTarget
    return PeftTarget(model_id, config)


@contextmanager
def expert_import() -> Iterator[None]:
    """Explain, around an import, what experts in this process lack.

    Raises
    ------
    MissingDependencyError
        One of their packages is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in ("peft", "torch", "transformers"):
            raise
        raise MissingDependencyError(package, "lora") from error


def key_of(model_id: str, name: str | None, environment: Mapping[str, str]) -> str | None:
    """Return the key of a target from the variable of that name; None where it has no key.

    Raises
    ------
    ConfigError
        The variable is not set, or holds what no HTTP header may carry.
    """
    if name is None:
        return None
    key = environment.get(name, "").strip()
    if not key:
        raise ConfigError(
            f"Target '{model_id}': environment variable '{name}' is not set, but 'api_key_env' "
            "names it. Set it, or write 'api_key_env: null' for a server without keys."
        )
    if not (key.isascii() and key.isprintable()):
        raise ConfigError(
            f"Target '{model_id}': environment variable '{name}' holds characters that no HTTP "
            "header may carry."
        )
    return key
