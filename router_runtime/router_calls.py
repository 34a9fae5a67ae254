"""What ``ModelRouter`` does beyond deciding: it calls the models in the order of its ranking.

Apart from the deciding, which does no network I/O; the HTTP client is loaded when the first call is
made.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from router_runtime.artifacts import Artifact
from router_runtime.config import RuntimeConfig
from router_runtime.errors import MissingDependencyError
from router_runtime.images import ImageLimits
from router_runtime.messages import query_from_messages, request_requirements
from router_runtime.types import Json, Query, RoutingDecision

if TYPE_CHECKING:
    from router_runtime.router_targets import RouterTargets
    from router_runtime.targets.base import Completion
    from router_runtime.targets.calling import StreamPart


class CallsCandidates(ABC):
    """Calls the candidates of whatever decides."""

    config: RuntimeConfig
    artifact: Artifact
    model_ids: tuple[str, ...]
    limits: ImageLimits

    @abstractmethod
    def decide(
        self,
        query: Query,
        *,
        policy: str | None = None,
        excluded: Mapping[str, str] | None = None,
    ) -> RoutingDecision:
        """Rank the candidates for one query."""

    def complete(
        self,
        messages: Sequence[Mapping[str, Json]],
        *,
        policy: str | None = None,
        **parameters: Json,
    ) -> Completion:
        """Decide, call the candidates best first, and return the first whole answer.

        Parameters
        ----------
        messages : sequence of mapping
            OpenAI chat messages; pictures as data URIs.
        policy : str, optional
            Name of a policy or preset.
        **parameters
            Further fields of the request, such as ``max_tokens`` or ``tools``; sent as they are.

        Raises
        ------
        ConfigError
            No candidate has a target, or a key is not set.
        NoEligibleModelError
            No candidate with a target can serve it.
        AllTargetsFailedError
            Every candidate that was tried failed.
        """
        return self._calls.complete(*self._asked(messages, policy, parameters))

    async def acomplete(
        self,
        messages: Sequence[Mapping[str, Json]],
        *,
        policy: str | None = None,
        **parameters: Json,
    ) -> Completion:
        """Do what ``complete`` does; deciding is done in a thread."""
        asked = await asyncio.to_thread(self._asked, messages, policy, parameters)
        return await self._calls.acomplete(*asked)

    async def astream(
        self,
        messages: Sequence[Mapping[str, Json]],
        *,
        policy: str | None = None,
        **parameters: Json,
    ) -> AsyncIterator[StreamPart]:
        """Yield the answer of the first candidate that begins one, as it comes.

        Raises
        ------
        TargetError
            As ``complete``, or the stream broke; then what came before is no whole answer.
        """
        asked = await asyncio.to_thread(self._asked, messages, policy, parameters)
        async for part in self._calls.astream(*asked):
            yield part

    async def aclose(self) -> None:
        """Close the connections that calls have opened; further calls open others."""
        if "_calls" in self.__dict__:
            await self.__dict__.pop("_calls").aclose()

    @cached_property
    def _calls(self) -> RouterTargets:
        try:
            from router_runtime.router_targets import RouterTargets
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] not in ("aiohttp", "orjson", "yarl"):
                raise
            raise MissingDependencyError("aiohttp", "service") from error
        return RouterTargets(self.config)

    def _asked(
        self, messages: Sequence[Mapping[str, Json]], policy: str | None, parameters: Json
    ) -> tuple[tuple[str, ...], dict[str, Json]]:
        body = {"messages": list(messages), **parameters}
        query = query_from_messages(
            messages,
            rule=self.artifact.text,
            limits=self.limits,
            requirements=request_requirements(body),
        )
        excluded = self._calls.without_target(self.model_ids)
        return self.decide(query, policy=policy, excluded=excluded).ranking, body
