"""LiteLLM's proxy config (``model_list``), turned into our runtime config.

What is called, with which key variable, limits and prices is carried over. Keys themselves never
are: one that stands in the file is replaced by the name of a variable, and said.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Final, NamedTuple

from router_runtime.config import RuntimeConfig
from router_runtime.errors import ConfigError
from router_runtime.types import Json
from router_runtime.yaml_config import read_yaml, validate

_ENVIRONMENT: Final = "os.environ/"

_KINDS: Final = {
    "openai": "openai",
    "azure": "azure",
    "nvidia_nim": "nim",
    "hosted_vllm": "vllm",
    "vllm": "vllm",
}
"""LiteLLM's provider prefixes that are kinds of targets here."""

_COMPATIBLE: Final = {
    "custom_openai": (None, None),
    "litellm_proxy": (None, "LITELLM_PROXY_API_KEY"),
    "openai_like": (None, None),
    "deepseek": ("https://api.deepseek.com/v1", "DEEPSEEK_API_KEY"),
    "fireworks_ai": ("https://api.fireworks.ai/inference/v1", "FIREWORKS_AI_API_KEY"),
    "groq": ("https://api.groq.com/openai/v1", "GROQ_API_KEY"),
    "mistral": ("https://api.mistral.ai/v1", "MISTRAL_API_KEY"),
    "openrouter": ("https://openrouter.ai/api/v1", "OPENROUTER_API_KEY"),
    "together_ai": ("https://api.together.xyz/v1", "TOGETHERAI_API_KEY"),
    "xai": ("https://api.x.ai/v1", "XAI_API_KEY"),
}
"""Prefixes of servers that speak OpenAI's API: base URL and key variable, where there is a usual
one."""

_LIMITS: Final = {
    "rpm": "requests_per_minute",
    "tpm": "tokens_per_minute",
    "max_parallel_requests": "max_concurrency",
    "timeout": "timeout_s",
}
_PARAMETERS: Final = ("temperature", "top_p", "max_tokens", "seed", "presence_penalty")
_INFO: Final = {"supports_function_calling": "tools", "supports_response_schema": "json_mode"}
_RATES: Final = {
    "input_cost_per_token": "input_mtok",
    "output_cost_per_token": "output_mtok",
    "cache_read_input_token_cost": "cached_input_mtok",
}


class LiteLLMConversion(NamedTuple):
    """A converted config.

    ``config`` is what ``RuntimeConfig`` accepts; ``without_counterpart`` are the dotted keys of the
    original that mean nothing here, or whose value could not be kept, each with the reason where it
    is not plain.
    """

    config: dict[str, Json]
    without_counterpart: tuple[str, ...]


def convert_litellm_config(
    path: str | Path,
    *,
    artifact: str | Path = "../router_artifacts/imported",
    model_ids: Sequence[str] | None = None,
) -> LiteLLMConversion:
    """Convert the ``model_list`` of a proxy's YAML.

    Parameters
    ----------
    path : path
        The YAML file.
    artifact : path
        Artifact folder to write into the config, relative to where that will lie.
    model_ids : sequence of str or None
        The models that the artifact knows: they become candidates, the others are called by name
        only (``direct``). None, or where it knows none of them: every chat model becomes a
        candidate, and ``without_counterpart`` says what is missing.

    Raises
    ------
    ConfigError
        The file is no YAML mapping, has no ``model_list``, or a value is not what
        ``RuntimeConfig`` accepts.
    """
    file = Path(path)
    content = read_yaml(file)
    entries = content.get("model_list")
    if not isinstance(entries, list) or not entries:
        raise ConfigError(
            f"{file}: expected a list of models under 'model_list'. Give the YAML that LiteLLM's "
            "proxy is started with."
        )
    lost = [key for key in content if key != "model_list"]
    models: dict[str, dict[str, Json]] = {}
    chatting: set[str] = set()
    for at, entry in enumerate(entries):
        where = f"model_list.{at}"
        if not isinstance(entry, dict):
            raise ConfigError(f"{file}: {where} must be a mapping with a 'model_name'.")
        reader = _Entry(where, entry, lost)
        model = reader.candidate()
        if model is None:
            continue
        if model["id"] in models:
            lost.append(f"{where} (another deployment of '{model['id']}'; one target is kept)")
            continue
        models[model["id"]] = model
        if reader.chats:
            chatting.add(model["id"])
    chosen = _predicted(models, chatting, model_ids, lost)
    candidates = [model for name, model in models.items() if name in chosen]
    direct = [model for name, model in models.items() if name not in chosen]
    config: dict[str, Json] = {"artifact": str(artifact)}
    config |= {"candidates": candidates} if candidates else {}
    config |= {"direct": direct} if direct else {}
    validate(RuntimeConfig, _filled(config), source=str(file))
    return LiteLLMConversion(config, tuple(lost))


def _predicted(
    models: Iterable[str], chatting: Set[str], model_ids: Sequence[str] | None, lost: list[str]
) -> Set[str]:
    """Return who becomes a candidate; tell where the artifact predicts for none of them."""
    if model_ids is None or not chatting:
        return chatting
    if known := chatting & set(model_ids):
        return known
    lost.append(
        f"what predicts for {', '.join(name for name in models if name in chatting)} (the artifact "
        f"knows {', '.join(model_ids)}: give each candidate the 'tier' that stands for it, or "
        "train on your own outcomes)"
    )
    return chatting


class _Entry:
    """One deployment of a ``model_list``; what is not understood is added to ``lost``."""

    def __init__(self, where: str, entry: Mapping[str, Json], lost: list[str]) -> None:
        self._where = where
        self._lost = lost
        self._name = str(entry.get("model_name") or "")
        self._params: dict[str, Json] = dict(entry.get("litellm_params") or {})
        self._info: dict[str, Json] = dict(entry.get("model_info") or {})
        self.chats = self._info.pop("mode", "chat") == "chat"
        lost += [
            f"{where}.{key}"
            for key in entry
            if key not in ("model_name", "litellm_params", "model_info")
        ]

    def candidate(self) -> dict[str, Json] | None:
        """Return the entry as a candidate, None where its provider cannot be called from here."""
        if not self._name:
            raise ConfigError(f"{self._where} has no 'model_name'; give it one.")
        target = self._target()
        if target is None:
            return None
        found: dict[str, Json] = {"id": self._name}
        if self._info.pop("supports_vision", False):
            found["modalities"] = ["text", "image"]
        window = self._info.pop("max_input_tokens", None) or self._info.pop("max_tokens", None)
        if window is not None:
            found["context_window"] = window
        for theirs, ours in _INFO.items():
            if theirs in self._info:
                found[ours] = bool(self._info.pop(theirs))
        if price := self._price():
            found["price"] = price
        found["target"] = target
        self._lost += [f"{self._where}.litellm_params.{key}" for key in self._params]
        self._lost += [f"{self._where}.model_info.{key}" for key in self._info if key != "id"]
        return found

    def _target(self) -> dict[str, Json] | None:
        full = str(self._params.pop("model", ""))
        base = _variable(self._params.pop("api_base", None))
        provider = str(self._params.pop("custom_llm_provider", "") or "")
        prefix, slash, rest = full.partition("/")
        if not provider and slash and (prefix in _KINDS or prefix in _COMPATIBLE):
            provider, model = prefix, rest
        elif not provider and slash and base is None:
            own = prefix == "auto_router"
            reason = "LiteLLM's own router; here the model 'auto' routes"
            reason = reason if own else f"provider '{prefix}' does not speak OpenAI's API"
            self._lost.append(f"{self._where} ({reason})")
            return None
        else:
            model = rest if provider and prefix == provider else full
        target = self._address(provider, base)
        if target is None:
            return None
        if model and model != self._name:
            target["model"] = model
        self._key(target)
        for theirs, ours in _LIMITS.items():
            if self._params.get(theirs) is not None:
                target[ours] = self._params.pop(theirs)
        sent = {key: self._params.pop(key) for key in _PARAMETERS if key in self._params}
        if sent:
            target["parameters"] = sent
        return target

    def _address(self, provider: str, base: str | None) -> dict[str, Json] | None:
        kind = _KINDS.get(provider or ("openai" if base is None else ""))
        if kind == "azure":
            azure: dict[str, Json] = {"kind": "azure", "endpoint": base}
            version = _variable(self._params.pop("api_version", None))
            return azure | ({"api_version": version} if version else {})
        usual, variable = _COMPATIBLE.get(provider, (None, None))
        if kind == "openai" and base is not None:
            kind, variable = None, "OPENAI_API_KEY"
        url = base or usual
        if kind is None and url is None:
            self._lost.append(f"{self._where} (provider '{provider}' has no 'api_base')")
            return None
        found: dict[str, Json] = {"kind": kind or "compatible"}
        found |= {} if url is None else {"base_url": url}
        return found | ({} if variable is None else {"api_key_env": variable})

    def _key(self, target: dict[str, Json]) -> None:
        key = self._params.pop("api_key", None)
        if not isinstance(key, str) or not key:
            return
        if key.startswith(_ENVIRONMENT):
            target["api_key_env"] = key.removeprefix(_ENVIRONMENT)
            return
        target["api_key_env"] = re.sub(r"\W", "_", f"{self._name}_API_KEY".upper())
        self._lost.append(
            f"{self._where}.litellm_params.api_key (a key does not belong into a file; put it "
            f"into the variable {target['api_key_env']})"
        )

    def _price(self) -> dict[str, Json]:
        found: dict[str, Json] = {}
        for theirs, ours in _RATES.items():
            value = self._params.pop(theirs, None)
            told = self._info.pop(theirs, None)
            value = told if value is None else value
            if value is None:
                continue
            try:
                found[ours] = f"{Decimal(str(value)).scaleb(6).normalize():f}"
            except InvalidOperation:
                raise ConfigError(
                    f"{self._where}: '{theirs}' is no number of US dollars; write one."
                ) from None
        if "input_mtok" in found and "output_mtok" not in found and not self.chats:
            found["output_mtok"] = "0"
        if set(found) >= {"input_mtok", "output_mtok"}:
            return found
        self._lost += [f"{self._where}.{name} (half a price)" for name in _halves(found)]
        return {}


def _filled(value: Json) -> Json:
    """Return the config with an address in the place of each variable, to be checked."""
    if isinstance(value, dict):
        return {key: _filled(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_filled(entry) for entry in value]
    return "http://localhost" if isinstance(value, str) and value.startswith("${") else value


def _halves(found: Mapping[str, Json]) -> Iterator[str]:
    return (theirs for theirs, ours in _RATES.items() if ours in found)


def _variable(value: Json) -> str | None:
    if not isinstance(value, str) or not value:
        return None
    if value.startswith(_ENVIRONMENT):
        return f"${{{value.removeprefix(_ENVIRONMENT)}}}"
    return value
