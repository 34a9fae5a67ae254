"""The targets of a config's candidates, called in the order of a ranking, for programs.

The plan of attempts is the service's own (``targets/dispatch``): failures that may
pass go to the next candidate before the first byte, and a target that keeps failing is passed over
for a while.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence

from router_runtime.config import RuntimeConfig
from router_runtime.errors import ConfigError
from router_runtime.targets.base import Completion
from router_runtime.targets.breaker import Breakers
from router_runtime.targets.calling import StreamPart, acomplete, astream, complete
from router_runtime.targets.dispatch import Rules
from router_runtime.targets.forward import build_forwarders
from router_runtime.types import Json


class RouterTargets:
    """The targets of a config's candidates, with connections that are kept.

    Parameters
    ----------
    config : RuntimeConfig
        ``service.calls`` says how many candidates are tried and for how long, ``service.breaker``
        when one rests.

    Raises
    ------
    ConfigError
        No candidate has a target, or the key of one is not set.
    """

    def __init__(self, config: RuntimeConfig) -> None:
        calls = config.service.calls
        self._forwarders = build_forwarders(
            config.candidates, max_answer_bytes=calls.max_answer_bytes
        )
        if not self._forwarders:
            raise ConfigError(
                "No candidate has a 'target', so nothing can be called. Say in the config where "
                "each candidate is, and build the router with ModelRouter.from_config."
            )
        self._rules = Rules(calls.max_attempts, calls.deadline_s, calls.stream_idle_s)
        identities = {model: target.identity for model, target in self._forwarders.items()}
        self._breakers = Breakers().for_models(identities, config.service.breaker)

    def without_target(self, model_ids: Sequence[str]) -> dict[str, str]:
        """Return the models that cannot be called, with that as the reason."""
        return {model: "no_target" for model in model_ids if model not in self._forwarders}

    def complete(self, ranking: Sequence[str], body: Mapping[str, Json]) -> Completion:
        """Return the first whole answer; blocks, also inside a running event loop."""
        return complete(ranking, self._forwarders, body, rules=self._rules, breakers=self._breakers)

    async def acomplete(self, ranking: Sequence[str], body: Mapping[str, Json]) -> Completion:
        """Return the first whole answer."""
        return await acomplete(
            ranking, self._forwarders, body, rules=self._rules, breakers=self._breakers
        )

    def astream(
        self, ranking: Sequence[str], body: Mapping[str, Json]
    ) -> AsyncIterator[StreamPart]:
        """Yield an answer as it comes."""
        return astream(ranking, self._forwarders, body, rules=self._rules, breakers=self._breakers)

    async def aclose(self) -> None:
        """Close the connections."""
        for target in self._forwarders.values():
            await target.aclose()
