"""A candidate that is a LoRA expert in this process, on a base model that all of them share.

``SharedExperts`` is that sharing, also for ``forward_peft``, which passes requests on.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from router_runtime.errors import (
    ConfigError,
    RequestError,
    TargetError,
    TargetStatusError,
    TargetTimeoutError,
)
from router_runtime.experts.adapter_folder import CONFIG_FILE, WEIGHTS_FILE
from router_runtime.experts.chat import Answers
from router_runtime.experts.config import ExpertsConfig, load_experts_config
from router_runtime.experts.service import Experts
from router_runtime.target_config import PeftTargetConfig
from router_runtime.targets.answers import read_completion
from router_runtime.targets.base import ChatCall, Completion
from router_runtime.targets.failures import Asked, Complaint, texts_of, verdict_of
from router_runtime.types import Json


class PeftTarget:
    """A ``Target`` in this process.

    Parameters
    ----------
    model_id : str
        The candidate's id.
    config : PeftTargetConfig
    shared : SharedExperts, optional
        Where loaded experts are shared; by default with the whole process.

    Raises
    ------
    RouterError
        The experts cannot be loaded, or the model is none of theirs.
    """

    def __init__(
        self, model_id: str, config: PeftTargetConfig, *, shared: SharedExperts | None = None
    ) -> None:
        self.model_id = model_id
        self.model = config.model or model_id
        self._parameters = dict(config.parameters)
        self._timeout_s = config.timeout_s
        self._places = asyncio.Semaphore(config.max_concurrency)
        self._shared = shared or PROCESS
        self._experts: Experts | None = self._shared.take(config.experts)
        try:
            check_served(model_id, config, self._experts)
        except ConfigError:
            self._give_back()
            raise

    def __repr__(self) -> str:
        return f"PeftTarget({self.model_id!r}, model={self.model!r})"

    async def acomplete(self, call: ChatCall) -> Completion:
        experts = self._experts
        if experts is None:
            raise ConfigError(f"Target '{self.model_id}' is closed.")
        asked = Asked(f"'{self.model_id}' in this process", tuple(texts_of(call)))
        body: dict[str, Json] = {
            **self._parameters,
            **call.parameters,
            "model": self.model,
            "messages": list(call.messages),
        }
        failure: TargetError
        started = time.perf_counter()
        try:
            async with asyncio.timeout(self._timeout_s), self._places:
                request = experts.read(body)
                answer = Answers(self.model).whole(await experts.answer(request))
            return read_completion(
                asked,
                answer,
                model_id=self.model_id,
                call=call,
                seconds=time.perf_counter() - started,
                headers={},
            )
        except TimeoutError:
            failure = TargetTimeoutError(
                f"{asked.who} gave no whole answer within {self._timeout_s:g} s. Raise 'timeout_s' "
                "if the model is slow.",
                retryable=True,
            )
        except RequestError as error:
            failure = failure_of(asked, error)
        raise failure

    async def aclose(self) -> None:
        await asyncio.to_thread(self._give_back)

    def _give_back(self) -> None:
        experts, self._experts = self._experts, None
        if experts is not None:
            self._shared.give_back(experts)


def check_served(model_id: str, config: PeftTargetConfig, experts: Experts) -> None:
    """Refuse a target whose model is none of the experts.

    Raises
    ------
    ConfigError
        Naming those that there are.
    """
    model = config.model or model_id
    if model not in experts.models:
        known = ", ".join(experts.models)
        raise ConfigError(
            f"Target '{model_id}': '{config.experts}' serves no '{model}' (known: "
            f"{known}). Name one with 'model', or add it there."
        )


def failure_of(asked: Asked, error: RequestError) -> TargetStatusError:
    """Return what a refusal means; it names fields and numbers, and quotes nothing of the call."""
    verdict = verdict_of(error.status, Complaint(codes=(error.code,)))
    return TargetStatusError(
        f"{asked.who} answered status {error.status} ({error.code}): {error}",
        status=error.status,
        retryable=verdict.retryable,
        whole_target=verdict.whole_target,
        retry_after_s=error.retry_after_s,
    )


@dataclass
class _Loaded:
    experts: Experts
    users: int = 0


class SharedExperts:
    """Loaded experts by what they are loaded from, so that each are in memory once.

    What counts is the content of a config and the state of the files that it names: a config that
    is loaded again finds what is there, unless something of it has changed. Then experts of their
    own are made, on the weights of the base that are in memory (``experts.shared``).
    """

    def __init__(self) -> None:
        self._loaded: dict[str, _Loaded] = {}
        self._lock = threading.Lock()

    def take(self, file: Path, *, users: int = 1) -> Experts:
        """Return the experts of a config, loaded when nobody uses them yet.

        Parameters
        ----------
        file : Path
        users : int
            How many will give them back.

        Raises
        ------
        RouterError
            They cannot be loaded.
        """
        with self._lock:
            config = load_experts_config(file)
            key = repr((config.model_dump_json(), list(_marks(config))))
            loaded = self._loaded.get(key) or _Loaded(Experts.load(config))
            self._loaded[key] = loaded
            loaded.users += users
            return loaded.experts

    def give_back(self, experts: Experts) -> None:
        """Say that one who took them is done; with the last they end."""
        with self._lock:
            key, loaded = next(
                (key, each) for key, each in self._loaded.items() if each.experts is experts
            )
            loaded.users -= 1
            if loaded.users:
                return
            del self._loaded[key]
        experts.close()


def _marks(config: ExpertsConfig) -> Iterator[tuple[str, int, int]]:
    """Yield what tells the files that a config names from themselves before a change."""
    base = Path(config.base.model)
    files = [place / name for place in config.adapters.values() for name in _ADAPTER_FILES]
    files += sorted(base.iterdir()) if base.is_dir() else []
    files += [config.base.chat_template] if config.base.chat_template else []
    for file in files:
        if file.is_file():
            stat = file.stat()
            yield str(file), stat.st_size, stat.st_mtime_ns


_ADAPTER_FILES: Final = (CONFIG_FILE, WEIGHTS_FILE)

PROCESS: Final = SharedExperts()
"""What the targets of this process share."""
