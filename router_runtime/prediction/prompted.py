"""The predictor kind ``prompted``: ask a target which kind of request it is; nothing is trained.

The target, usually a vision-language model, reads text and pictures and a description of each
candidate, and answers with a letter. Where it tells log-probabilities, one call gives ``P``;
otherwise several replies are counted. What to ask is in the artifact; where and with which key is
chosen by who loads it: ``encoder.url`` and ``encoder.api_key_env`` replace the recorded ones, and a
key is never sent because an artifact says so.

A reply that names no candidate is no choice. With a ``fallback`` such a query has each model's base
rate and novelty 1, so that the policy's fallback takes it; without one it is an error.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Self, TypeVar
from urllib.parse import urlsplit

import numpy as np
from pydantic import Field, ValidationError, field_validator, model_validator

from router_runtime.config import EncoderRuntime
from router_runtime.errors import (
    ArtifactIntegrityError,
    ConfigError,
    TargetProtocolError,
    TargetStatusError,
)
from router_runtime.messages import TextRule
from router_runtime.prediction.calibration import Calibrator
from router_runtime.prediction.heads.base import RESTORE
from router_runtime.prediction.novelty import NoveltyModel
from router_runtime.prediction.parts import refuse_exported
from router_runtime.prediction.predictor import TellingPredictor, Told
from router_runtime.prediction.prompting import (
    LETTERS,
    chosen_letter,
    letter_probabilities,
    logprob_parameters,
    question,
    rotation,
    sample_parameters,
    votes_to_probabilities,
)
from router_runtime.target_config import (
    AzureTargetConfig,
    LoraVllmTargetConfig,
    PeftTargetConfig,
    TargetConfig,
)
from router_runtime.targets.base import Target
from router_runtime.targets.registry import build_target
from router_runtime.types import F64, Json, Query
from router_runtime.yaml_config import StrictModel, problems

T = TypeVar("T")
Rate = Annotated[float, Field(ge=0, le=1)]

_TARGET_ID = "prompted-router"


class PromptedConfig(StrictModel):
    """What is asked, and whom: ``predictor:`` of a training config, or of ``make-prompted``.

    Parameters
    ----------
    target : TargetConfig
        Whom to ask; its ``model`` must be named.
    descriptions : mapping of model to str
        Which requests a candidate is for, in the order in which they are listed.
    samples : int
        Replies that are counted where there are no log-probabilities.
    method : str
        ``logprobs``, ``samples``, or ``auto``: log-probabilities where the target tells them.
    pictures : bool
        Whether pictures are sent.
    max_chars : int
        A longer request loses its middle.
    fallback : str or None
        The model that takes requests of which the target names no kind; None: they are errors.
    """

    kind: Literal["prompted"] = "prompted"
    target: TargetConfig
    descriptions: dict[str, Annotated[str, Field(min_length=1)]]
    samples: int = Field(default=5, ge=1, le=100)
    method: Literal["auto", "logprobs", "samples"] = "auto"
    pictures: bool = True
    max_chars: int = Field(default=8000, ge=100, le=1_000_000)
    fallback: str | None = None

    @field_validator("descriptions")
    @classmethod
    def _some(cls, value: dict[str, str]) -> dict[str, str]:
        if not 2 <= len(value) <= len(LETTERS):
            raise ValueError(f"describe 2 to {len(LETTERS)} models, not {len(value)}")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> PromptedConfig:
        if self.target.model is None:
            raise ValueError("target.model: name the model that is asked")
        if self.fallback is not None and self.fallback not in self.descriptions:
            raise ValueError(f"fallback '{self.fallback}' is not among the described models")
        return self


class PromptedDescription(StrictModel):
    """The manifest's ``predictor`` of this kind.

    Parameters
    ----------
    asks : PromptedConfig
        With the target's key variable left out.
    needs_key : bool
        Whether the target had one when this was made.
    base_rates : tuple of float
        Of each model, for queries of which nothing is told.
    text : TextRule
        Which part of a conversation is routed on.
    fingerprint : str
        Digest of all above, but not of where the target is.
    """

    kind: Literal["prompted"] = "prompted"
    asks: PromptedConfig
    needs_key: bool
    base_rates: tuple[Rate, ...]
    text: TextRule = TextRule()
    fingerprint: str = ""


class PromptedPredictor(TellingPredictor):
    """Predicts ``P`` from what a target says.

    Any thread may predict; the calls run on one event loop in a thread of its own, because a target
    belongs to the loop that first uses it and the caller may be within another.

    Parameters
    ----------
    model_ids : tuple of str
        Column order of ``P``.
    description : PromptedDescription
    target : callable
        Makes the target when it is first needed.
    calibrator : Calibrator
    """

    frozen = None  # whoever runs the target knows

    def __init__(
        self,
        model_ids: tuple[str, ...],
        description: PromptedDescription,
        *,
        target: Callable[[], Target],
        calibrator: Calibrator,
    ) -> None:
        self.model_ids = model_ids
        self.description = description
        self._make_target = target
        self.calibrator = calibrator
        self._asks = description.asks
        self._texts = [self._asks.descriptions[model] for model in model_ids]
        self._by_logprobs = self._asks.method != "samples"
        self._loop = _LoopThread()
        self._target: Target | None = None

    def tell(self, queries: Sequence[Query]) -> Told:
        """Return what the target says of queries, before calibration.

        Raises
        ------
        TargetError
            The target cannot be asked, or, without a ``fallback``, names no kind.
        """
        if not queries:
            return Told(np.zeros((0, len(self.model_ids))), np.zeros(0, dtype=np.bool_))
        rows = self._loop.run(self._tell_all(queries))
        known = np.array([row is not None for row in rows], dtype=np.bool_)
        if self._asks.fallback is None and not known.all():
            raise TargetProtocolError(
                f"'{self._asks.target.model}' named no kind of request {int(np.argmin(known)) + 1} "
                f"of {len(queries)}. Set 'fallback' to the model that takes such requests, or "
                "describe the candidates more clearly.",
                retryable=False,
            )
        n = len(self.model_ids)
        return Told(np.array([np.zeros(n) if row is None else row for row in rows]), known)

    @property
    def tells_novelty(self) -> bool:
        return self._asks.fallback is not None

    def close(self) -> None:
        """Close the target's connections and end the thread; it cannot predict afterwards."""
        if self._target is not None:
            self._loop.run(self._target.aclose())
        self._loop.close()

    async def _tell_all(self, queries: Sequence[Query]) -> list[F64 | None]:
        if self._target is None:
            self._target = self._make_target()
        target, most = self._target, asyncio.Semaphore(self._asks.target.max_concurrency)
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._tell_one(target, query, most)) for query in queries]
        return [task.result() for task in tasks]

    async def _tell_one(self, target: Target, query: Query, most: asyncio.Semaphore) -> F64 | None:
        if not self._asks.pictures:
            query = Query(query.text)
        if not (query.text or query.images):
            return None
        n = len(self.model_ids)
        if self._by_logprobs:
            try:
                return await self._by_letters(target, query, most)
            except LookupError:
                if self._asks.method == "logprobs":
                    raise TargetProtocolError(
                        f"'{self._asks.target.model}' tells no log-probabilities. Use method "
                        "'samples' or 'auto'.",
                        retryable=False,
                    ) from None
                self._by_logprobs = False  # it will not the next time either

        async def vote(sample: int) -> int | None:
            order = rotation(n, sample)
            call = self._question(query, order, sample_parameters())
            async with most:
                completion = await target.acomplete(call)
            place = chosen_letter(completion.text, n)
            return None if place is None else order[place]

        async with asyncio.TaskGroup() as group:
            votes = [group.create_task(vote(sample)) for sample in range(self._asks.samples)]
        return votes_to_probabilities([task.result() for task in votes], n)

    async def _by_letters(
        self, target: Target, query: Query, most: asyncio.Semaphore
    ) -> F64 | None:
        n = len(self.model_ids)
        call = self._question(query, range(n), logprob_parameters(n))
        try:
            async with most:
                completion = await target.acomplete(call)
        except TargetStatusError as error:
            if error.status not in (400, 422):
                raise
            raise LookupError("refused") from error  # some servers refuse the parameter
        return letter_probabilities(completion, n)

    def _question(self, query: Query, order: Sequence[int], parameters: Mapping[str, Json]) -> Any:
        return question(
            query,
            self._texts,
            order=order,
            max_chars=self._asks.max_chars,
            parameters=parameters,
        )


class _LoopThread:
    """An event loop in a thread, started when first needed."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lock = threading.Lock()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Return what ``work`` returns; of errors in a group the first."""
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                thread = threading.Thread(
                    target=self._loop.run_forever, name="prompted-router", daemon=True
                )
                thread.start()
        task = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return task.result()
        except BaseExceptionGroup as group:
            raise _first(group) from None
        except BaseException:
            task.cancel()
            raise

    def close(self) -> None:
        """End the thread."""
        with self._lock:
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._loop.stop)


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


@dataclass(frozen=True)
class PromptedParts:
    """What is asked.

    Parameters
    ----------
    description : PromptedDescription
    target : Target or None
        Asked instead of the recorded one; not kept in the artifact.
    """

    description: PromptedDescription
    target: Target | None = field(default=None, compare=False)

    kind = "prompted"
    encoders: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        config: PromptedConfig,
        *,
        base_rates: Sequence[float],
        text: TextRule = TextRule(),
    ) -> Self:
        """Return the parts with their fingerprint, without the name of the key's variable."""
        target = config.target.model_copy(update={"api_key_env": None})
        description = PromptedDescription(
            asks=config.model_copy(update={"target": target}),
            needs_key=config.target.api_key_env is not None,
            base_rates=tuple(base_rates),
            text=text,
        )
        mark = _fingerprint(description)
        return cls(description.model_copy(update={"fingerprint": mark}))

    @property
    def text(self) -> TextRule:
        return self.description.text

    @property
    def tells_novelty(self) -> bool:
        return self.description.asks.fallback is not None

    @property
    def settings(self) -> dict[str, Json]:
        return self.description.model_dump(mode="json", exclude={"text"})

    def check(self, n_models: int, novelty: NoveltyModel | None) -> None:
        sizes = {
            "described models": len(self.description.asks.descriptions),
            "base rates": len(self.description.base_rates),
        }
        for name, found in sizes.items():
            if found != n_models:
                raise ValueError(f"{name}: {found}, expected {n_models}")
        if novelty is not None:
            raise ValueError("a novelty model needs features, and there are none")

    def describe(self) -> dict[str, Json]:
        return self.description.model_dump(mode="json")

    def to_files(self) -> dict[str, bytes]:
        return {}

    @classmethod
    def from_files(cls, description: Mapping[str, Json], files: Mapping[str, bytes]) -> Self:
        """Return the parts; see ``parts.load_parts``."""
        told = _described(description)
        if _fingerprint(told) != told.fingerprint:
            raise ArtifactIntegrityError(
                f"What the prompted router asks '{told.asks.target.model}' was changed after it "
                f"was made. {RESTORE}"
            )
        return cls(told)

    @classmethod
    def facts(cls, description: Mapping[str, Json]) -> dict[str, str]:
        """Return who is asked, and how."""
        asks = _described(description).asks
        return {
            "asks": f"{asks.target.model} at {urlsplit(_url(asks.target)).netloc}",
            "method": f"{asks.method}, {asks.samples} samples",
        }

    def build(
        self,
        model_ids: tuple[str, ...],
        *,
        calibrator: Calibrator,
        novelty: NoveltyModel | None,
        runtime: EncoderRuntime,
    ) -> PromptedPredictor:
        missing = [model for model in model_ids if model not in self.description.asks.descriptions]
        if missing:
            raise ArtifactIntegrityError(
                f"The prompted router has no description of model '{missing[0]}'. {RESTORE}"
            )
        target = self.target

        def make() -> Target:
            return build_target(_TARGET_ID, config) if target is None else target

        refuse_exported(runtime, kinds=["prompted"])
        config = self._target_config(runtime)
        return PromptedPredictor(model_ids, self.description, target=make, calibrator=calibrator)

    def _target_config(self, runtime: EncoderRuntime) -> TargetConfig:
        """Return whom to ask, as chosen by who loads the artifact.

        Raises
        ------
        ConfigError
            The target needs a key, and no variable is named.
        """
        target = self.description.asks.target
        if self.target is None and self.description.needs_key and runtime.api_key_env is None:
            raise ConfigError(
                f"The prompted router asks '{target.model}' at {urlsplit(_url(target)).netloc}, "
                "which needs a key. Name its variable: 'encoder: {api_key_env: NAME}'."
            )
        update: dict[str, Json] = {"api_key_env": runtime.api_key_env}
        if runtime.url is not None:
            name = "endpoint" if isinstance(target, AzureTargetConfig) else "base_url"
            update[name] = runtime.url
        if "timeout_s" in runtime.model_fields_set:
            update["timeout_s"] = runtime.timeout_s
        return target.model_copy(update=update)


def _url(target: TargetConfig) -> str:
    if isinstance(target, AzureTargetConfig):
        return target.endpoint
    if isinstance(target, LoraVllmTargetConfig):
        return target.base_urls[0]
    if isinstance(target, PeftTargetConfig):
        return str(target.experts)
    return target.base_url


def _described(description: Mapping[str, Json]) -> PromptedDescription:
    try:
        return PromptedDescription.model_validate(dict(description))
    except ValidationError as error:
        raise ArtifactIntegrityError(f"predictor: {problems(error)}. {RESTORE}") from error


def _fingerprint(description: PromptedDescription) -> str:
    told = description.model_dump(mode="json", exclude={"fingerprint": True, "needs_key": True})
    told["asks"]["target"] = {
        name: told["asks"]["target"].get(name) for name in ("model", "parameters")
    }
    text = json.dumps(told, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
