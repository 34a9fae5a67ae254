"""A key whose calls go to the dearest candidates all of a sudden: told, or held back.

Some prefixes make a router send everything to its strongest model. Whatever the text is, it shows
in the share of a key's calls that were routed there. Calls that name a model are not counted: that
is the caller's own choice, and a matter of its budget. Each process counts for itself.
"""

from __future__ import annotations

import logging
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

from router_runtime.config import CandidateConfig
from router_runtime.errors import ConfigError
from router_runtime.service.values import RouteEvent
from router_runtime.service_config import ExpensiveConfig
from router_runtime.types import Json

_log = logging.getLogger(__name__)

_MOST_KEYS = 10_000
_CALM = 0.9
"""An alarm ends below this part of the share that raised it, so that it does not flicker."""


def dear_models(config: ExpensiveConfig, candidates: Sequence[CandidateConfig]) -> frozenset[str]:
    """Return the dear candidates: those configured, or the dearest by price of output tokens.

    Without prices their relative cost tells. Where all cost the same, or nothing is known, none
    is dear.

    Raises
    ------
    ConfigError
        ``models`` names no candidate.
    """
    known = {candidate.id for candidate in candidates}
    if unknown := [model for model in config.models if model not in known]:
        raise ConfigError(
            f"service.expensive.models: '{unknown[0]}' is no candidate (known: "
            f"{', '.join(sorted(known))}). Correct or remove it."
        )
    if config.models:
        return frozenset(config.models)
    prices = {c.id: price for c in candidates if (price := _price(c)) is not None}
    if len(set(prices.values())) < 2:
        return frozenset()
    dearest = max(prices.values())
    return frozenset(model for model, price in prices.items() if price == dearest)


def _price(candidate: CandidateConfig) -> Decimal | None:
    if candidate.price is not None:
        return candidate.price.output_mtok
    return None if candidate.cost is None else Decimal(str(candidate.cost))


@dataclass(slots=True)
class _Recent:
    calls: deque[bool]
    dear: int = 0
    alarmed: bool = False


class ExpensiveWatch:
    """Counts, key by key, which of the last routed calls went to dear candidates; a ``Sink``.

    The share is of ``window`` calls also where a key has made fewer: some dear calls of a new key
    are no leap, and an alarm need not wait for the window to fill.

    Parameters
    ----------
    config : ExpensiveConfig
    dear : frozenset of str
        See ``dear_models``.
    """

    def __init__(self, config: ExpensiveConfig, *, dear: frozenset[str]) -> None:
        self._config = config
        self._dear: frozenset[str] = frozenset()
        self.watch(dear)
        self._keys: OrderedDict[str, _Recent] = OrderedDict()
        self.alarms = 0

    def watch(self, dear: frozenset[str]) -> None:
        """Take other candidates for the dear ones; what was counted before stays counted."""
        self._dear = dear if self._config.share < 1 else frozenset()

    def record(self, event: RouteEvent) -> None:
        if not self._dear or event.routed is None or event.routed.policy is None:
            return
        served = event.served
        model = event.routed.model_id if served is None else served.model_id
        recent = self._recent(event.key_id)
        if len(recent.calls) == self._config.window:
            recent.dear -= recent.calls.popleft()
        recent.calls.append(model in self._dear)
        recent.dear += recent.calls[-1]
        self._judge(event.key_id, recent)

    def excluded(self, key_id: str) -> frozenset[str]:
        """Return the candidates that a key shall not get for now; none unless ``clamp`` is set."""
        if self._config.action != "clamp":
            return frozenset()
        recent = self._keys.get(key_id)
        return self._dear if recent is not None and recent.alarmed else frozenset()

    @property
    def alarmed(self) -> list[str]:
        """Ids of the keys with an alarm now."""
        return sorted(key for key, recent in self._keys.items() if recent.alarmed)

    def status(self) -> dict[str, Json]:
        """Return what an operator should see."""
        return {
            "dear_models": sorted(self._dear),
            "action": self._config.action,
            "alarms": self.alarms,
            "alarmed_keys": self.alarmed,
        }

    def _recent(self, key_id: str) -> _Recent:
        recent = self._keys.get(key_id)
        if recent is None:
            recent = self._keys[key_id] = _Recent(deque())
            if len(self._keys) > _MOST_KEYS:
                self._keys.popitem(last=False)
        self._keys.move_to_end(key_id)
        return recent

    def _judge(self, key_id: str, recent: _Recent) -> None:
        share = recent.dear / self._config.window
        if not recent.alarmed and share > self._config.share:
            recent.alarmed = True
            self.alarms += 1
            _log.warning(
                "a key's calls go to the dearest candidates",
                extra={"key_id": key_id, "share": share, "action": self._config.action},
            )
        elif recent.alarmed and share <= self._config.share * _CALM:
            recent.alarmed = False
            _log.warning(
                "a key's share of the dearest candidates is back", extra={"key_id": key_id}
            )
