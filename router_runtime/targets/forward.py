"""How a request is passed on, wherever its target is: one seam for whoever calls candidates.

Bytes go in and bytes come back, whole or as a stream. A server that speaks OpenAI's API
(``forward_http``), an adapter on vLLM replicas (``forward_lora``) and an adapter in this process
(``forward_peft``) look alike from here.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path as FilePath
from typing import Protocol

from router_runtime.config import CandidateConfig
from router_runtime.target_config import (
    HttpTargetConfig,
    LoraVllmTargetConfig,
    PeftTargetConfig,
    TargetConfig,
)
from router_runtime.targets.forward_base import Prepared
from router_runtime.targets.forward_http import MAX_ANSWER_BYTES, HttpForwarder
from router_runtime.targets.registry import expert_import, key_of
from router_runtime.targets.replies import Path, Refused, Reply
from router_runtime.types import Json

__all__ = ["MAX_ANSWER_BYTES", "Forwarder", "Prepared", "build_forwarders"]


class Forwarder(Protocol):
    """Passes requests on to one target.

    Attributes
    ----------
    model_id : str
        The candidate's id.
    model : str
        What the target calls it.
    timeout_s : float
        Longest time to a whole answer, of a stream to its first word.
    identity : str
        What its breaker is kept under: the place and the model.
    """

    model_id: str
    model: str
    timeout_s: float
    identity: str

    @property
    def in_flight(self) -> int:
        """Calls that have begun and not ended."""

    @property
    def busy(self) -> bool:
        """Whether a call would fail at once because the target has all that it takes."""

    def prepare(self, body: Mapping[str, Json], *, asks_usage: bool = True) -> Prepared:
        """Return a client's body as this target is to get it; all else in it stays as it is.

        Parameters
        ----------
        body : mapping
            The client's JSON object.
        asks_usage : bool
            Ask a stream to tell its usage.
        """

    async def open(
        self, path: Path, body: bytes, *, timeout_s: float, idle_s: float
    ) -> Reply | Refused:
        """Send a request and return its answer when there is one.

        Cancelling it, or closing the reply, ends the work on it.

        Parameters
        ----------
        path : Path
        body : bytes
            From ``prepare``.
        timeout_s : float
            Seconds to the whole answer, of a stream to ``Reply.began``.
        idle_s : float
            Longest silence within a stream after that.

        Raises
        ------
        TargetError
            No answer, or one that cannot be passed on.
        """

    async def aclose(self) -> None:
        """Free what it holds."""


def build_forwarders(
    candidates: Iterable[CandidateConfig],
    *,
    environment: Mapping[str, str] | None = None,
    max_answer_bytes: int = MAX_ANSWER_BYTES,
) -> dict[str, Forwarder]:
    """Return a forwarder for each candidate that has a target. Nothing is sent yet.

    Experts in this process are loaded, which blocks and takes a while; PyTorch is imported only
    where there are any. A target's ``max_concurrency`` binds where it is written in the config; its
    default is meant for labelling, where one run has the provider to itself.

    Raises
    ------
    ConfigError
        The variable that an ``api_key_env`` names is not set or holds no key.
    MissingDependencyError
        There are experts in this process, and what they need is not installed.
    RouterError
        Experts cannot be loaded.
    """
    found = os.environ if environment is None else environment
    named = [(candidate.id, candidate.target) for candidate in candidates if candidate.target]
    built: dict[str, Forwarder] = {}
    for model_id, target in named:
        if isinstance(target, PeftTargetConfig):
            continue
        key = key_of(model_id, target.api_key_env, found)
        built[model_id] = _remote(model_id, target, key, max_answer_bytes)
    experts: dict[FilePath, dict[str, tuple[PeftTargetConfig, int | None]]] = {}
    for model_id, target in named:
        if isinstance(target, PeftTargetConfig):
            experts.setdefault(target.experts.resolve(), {})[model_id] = target, _bound(target)
    if experts:
        with expert_import():
            from router_runtime.targets.forward_peft import build_peft_forwarders
        built |= build_peft_forwarders(experts)
    return {model_id: built[model_id] for model_id, _ in named}


def _bound(target: TargetConfig) -> int | None:
    """Return ``max_concurrency`` where it is written in the config."""
    return target.max_concurrency if "max_concurrency" in target.model_fields_set else None


def _remote(
    model_id: str,
    target: HttpTargetConfig | LoraVllmTargetConfig,
    key: str | None,
    max_answer_bytes: int,
) -> Forwarder:
    bound = _bound(target)
    if not isinstance(target, LoraVllmTargetConfig):
        return HttpForwarder(
            model_id, target, key=key, max_in_flight=bound, max_answer_bytes=max_answer_bytes
        )
    from router_runtime.targets.forward_lora import LoraForwarder

    return LoraForwarder(
        model_id, target, key=key, max_in_flight=bound, max_answer_bytes=max_answer_bytes
    )
