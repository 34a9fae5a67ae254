"""Calling a server of experts to list, add and remove adapters; for the command line.

It works on ``model-router experts serve`` and on vLLM, whose interface this is.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from router_runtime.errors import (
    ConfigError,
    TargetConnectionError,
    TargetProtocolError,
    TargetStatusError,
)
from router_runtime.types import Json

_TIMEOUT_S: Final = 120.0  # a large adapter takes its time to load
_MAX_BYTES: Final = 2**22
_SHOWN_CHARS: Final = 300


@dataclass(frozen=True)
class RemoteModel:
    """A model that a server lists; ``parent`` is None for a base model."""

    id: str
    parent: str | None
    root: str | None
    n_bytes: int | None


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Json, **__: Json) -> None:
        return None


def list_models(url: str, *, key: str | None = None) -> tuple[RemoteModel, ...]:
    """Return what a server serves.

    Raises
    ------
    ConfigError
        ``url`` is none.
    TargetConnectionError, TargetStatusError, TargetProtocolError
        It cannot be reached, refuses, or answers something else.
    """
    try:
        entries = json.loads(_call(url, "models", None, key))["data"]
        return tuple(
            RemoteModel(
                id=str(entry["id"]),
                parent=entry.get("parent"),
                root=entry.get("root"),
                n_bytes=entry.get("bytes"),
            )
            for entry in entries
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        raise TargetProtocolError(
            f"{_who(url)} answered no list of models. Check the URL.", retryable=False
        ) from None


def add_adapter(url: str, name: str, path: str, *, key: str | None = None) -> str:
    """Have a server load an adapter from a folder on its machine; return what it says.

    Raises
    ------
    ConfigError, TargetConnectionError, TargetStatusError
        As ``list_models``.
    """
    body = {"lora_name": name, "lora_path": path}
    return _call(url, "load_lora_adapter", body, key).decode("utf-8", "replace")


def remove_adapter(url: str, name: str, *, key: str | None = None) -> str:
    """Have a server forget an adapter; return what it says.

    Raises
    ------
    ConfigError, TargetConnectionError, TargetStatusError
        As ``list_models``.
    """
    return _call(url, "unload_lora_adapter", {"lora_name": name}, key).decode("utf-8", "replace")


def _call(url: str, path: str, body: Json, key: str | None) -> bytes:
    if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
        raise ConfigError(f"--url '{url:.80}' is no http(s)://host[:port][/path].")
    root = url.rstrip("/").removesuffix("/v1")
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    if key is not None:
        headers["Authorization"] = f"Bearer {key}"
    request = urllib.request.Request(f"{root}/v1/{path}", data=data, headers=headers)  # noqa: S310 - checked above
    opener = urllib.request.build_opener(_NoRedirect, urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=_TIMEOUT_S) as answer:
            return bytes(answer.read(_MAX_BYTES))
    except urllib.error.HTTPError as error:
        status, told = error.code, _complaint(error.read(_MAX_BYTES))
    except (OSError, ValueError) as error:
        raise TargetConnectionError(
            f"{_who(url)} cannot be reached ({type(error).__name__}). Check that it runs and that "
            "the URL is right.",
            retryable=True,
        ) from None
    raise TargetStatusError(
        f"{_who(url)} answered status {status}: {told}", status=status, retryable=False
    )


def _who(url: str) -> str:
    return f"The server at {urlsplit(url).netloc.rpartition('@')[2]}"


def _complaint(data: bytes) -> str:
    try:
        body = json.loads(data)
        error = body.get("error", body)
        told = error.get("message", error.get("detail")) if isinstance(error, dict) else error
    except (ValueError, AttributeError, RecursionError):
        told = None
    return " ".join(str(told or "no reason").split())[:_SHOWN_CHARS]
