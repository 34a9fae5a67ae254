"""A candidate that is a LoRA expert in this process, on a base model that all of them share."""

from __future__ import annotations

import asyncio
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from router_runtime.config import PeftTargetConfig
from router_runtime.errors import (
    ConfigError,
    RequestError,
    TargetError,
    TargetStatusError,
    TargetTimeoutError,
)
from router_runtime.experts.chat import Answers
from router_runtime.experts.config import load_experts_config
from router_runtime.experts.service import Experts
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
        self._shared = shared or _PROCESS
        self._file = config.experts
        self._experts: Experts | None = self._shared.take(config.experts)
        if self.model not in self._experts.models:
            known = ", ".join(self._experts.models)
            self._give_back()
            raise ConfigError(
                f"Target '{model_id}': '{config.experts}' serves no '{self.model}' (known: "
                f"{known}). Name one with 'model', or add it there."
            )

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
            failure = _failure(asked, error)
        raise failure

    async def aclose(self) -> None:
        await asyncio.to_thread(self._give_back)

    def _give_back(self) -> None:
        if self._experts is not None:
            self._experts = None
            self._shared.give_back(self._file)


def _failure(asked: Asked, error: RequestError) -> TargetError:
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
    users: int = 1


class SharedExperts:
    """Loaded experts by the file that describes them, so that a base model is in memory once."""

    def __init__(self) -> None:
        self._loaded: dict[Path, _Loaded] = {}
        self._lock = threading.Lock()

    def take(self, file: Path) -> Experts:
        """Return the experts of a config, loaded when nobody uses them yet.

        Raises
        ------
        RouterError
            They cannot be loaded.
        """
        file = file.resolve()
        with self._lock:
            if file in self._loaded:
                self._loaded[file].users += 1
            else:
                self._loaded[file] = _Loaded(Experts.load(load_experts_config(file)))
            return self._loaded[file].experts

    def give_back(self, file: Path) -> None:
        """Say that one user is done; the last one's model is forgotten."""
        file = file.resolve()
        with self._lock:
            loaded = self._loaded[file]
            loaded.users -= 1
            if loaded.users == 0:
                del self._loaded[file]
                loaded.experts.close()


_PROCESS: Final = SharedExperts()
