"""A conversation stays with its model unless another gains enough.

Changing the model within a conversation costs its provider's prompt cache and often its tone; a
difference in ``P`` that is smaller than the prediction's own error is no reason to.

A conversation is known by what the client calls it (a header, or ``user`` in the body), else by how
it begins. Names of one key never meet those of another, nor those of another policy or artifact.
Only digests are kept.
"""

from __future__ import annotations

import hashlib
import math
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from router_runtime.config import (
    CheapestQualifiedConfig,
    FixedConfig,
    PolicyConfig,
    UtilityConfig,
)
from router_runtime.service_config import StickinessConfig
from router_runtime.types import RoutingDecision

_PEEK: Final = 4096  # characters of a text that are hashed at each end; a picture's data URI is one


@dataclass(frozen=True, slots=True)
class Identity:
    """What a request says about the conversation that it belongs to.

    Parameters
    ----------
    name : bytes
        What a header or ``user`` says, or a digest of how the conversation begins.
    follows : bool
        The request may follow an earlier one: it was named, or it holds an assistant's turn. Else
        it only begins a conversation, and is decided on its own.
    """

    name: bytes
    follows: bool


def identify(
    messages: Sequence[Any], *, header: str | None = None, user: object = None
) -> Identity | None:
    """Return a request's identity: of the header, else ``user``, else its beginning.

    Parameters
    ----------
    messages : sequence
        OpenAI's chat turns, unchecked.
    header : str or None
        Value of the configured header.
    user : object
        The body's ``user``; what is no text or empty counts as absent.

    Returns
    -------
    Identity or None
        None where there is nothing to know a conversation by.
    """
    if header:
        return Identity(b"h" + header.encode("utf-8", "surrogatepass"), follows=True)
    if isinstance(user, str) and user:
        return Identity(b"u" + user.encode("utf-8", "surrogatepass"), follows=True)
    beginning: dict[str, Any] = {}
    answered = False
    for message in messages:
        if not isinstance(message, Mapping):
            continue
        role = message.get("role")
        if role == "assistant":
            answered = True
        elif role in ("system", "developer", "user"):
            beginning.setdefault("user" if role == "user" else "system", message.get("content"))
        if answered and "user" in beginning:
            break
    if "user" not in beginning:
        return None
    digest = hashlib.sha256()
    for role in ("system", "user"):
        _add_content(digest, beginning.get(role))
        digest.update(b"\x1e")
    return Identity(b"f" + digest.digest(), follows=answered)


def _add_content(digest: hashlib._Hash, content: object) -> None:
    """Hash a text, of a long one its length and both ends: it may be a picture of megabytes."""
    if isinstance(content, str):
        digest.update(b"s%d:" % len(content))
        shown = content if len(content) <= 2 * _PEEK else content[:_PEEK] + content[-_PEEK:]
        digest.update(shown.encode("utf-8", "surrogatepass"))
    elif isinstance(content, Mapping):
        for name in sorted(map(str, content)):
            _add_content(digest, name)
            _add_content(digest, content.get(name))
    elif isinstance(content, Sequence) and not isinstance(content, bytes):
        for part in content:
            _add_content(digest, part)
    else:
        digest.update(repr(content).encode())


class Sessions:
    """Which model each conversation has; the least recently used of too many are forgotten.

    Parameters
    ----------
    config : StickinessConfig
    clock : callable
        Seconds, only going forward.
    """

    def __init__(self, config: StickinessConfig, *, clock: Callable[[], float]) -> None:
        self._ttl_s = config.ttl_s
        self._most = config.max_sessions
        self._clock = clock
        self._models: OrderedDict[str, tuple[str, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._models)

    @staticmethod
    def key(identity: Identity, *, key_id: str, policy: str, artifact_id: str) -> str:
        """Return the digest under which a conversation is kept."""
        digest = hashlib.sha256()
        for part in (key_id.encode(), policy.encode(), artifact_id.encode(), identity.name):
            digest.update(b"%d:" % len(part))
            digest.update(part)
        return digest.hexdigest()

    def model_of(self, key: str) -> str | None:
        """Return a conversation's model; None where it is new or was silent for too long."""
        found = self._models.get(key)
        if found is None:
            return None
        model, at = found
        if self._clock() - at > self._ttl_s:
            del self._models[key]
            return None
        return model

    def set_model(self, key: str, model_id: str) -> None:
        """Keep a conversation's model, from now on for ``ttl_s``."""
        self._models[key] = (model_id, self._clock())
        self._models.move_to_end(key)
        while len(self._models) > self._most:
            self._models.popitem(last=False)


def gain(
    decision: RoutingDecision,
    current: str,
    *,
    policy: PolicyConfig,
    thresholds: Mapping[str, float],
) -> float:
    """Return what the first of a ranking gains over the conversation's model.

    Parameters
    ----------
    decision : RoutingDecision
    current : str
        Eligible.
    policy : PolicyConfig
        Its kind says in which terms; see ``StickinessConfig``. ``fixed`` always gains.
    thresholds : mapping
        Least probability by model, as applied.

    Returns
    -------
    float
        Infinite where the policy leaves no choice; 0 where costs that it depends on are unknown.
    """
    best = decision.model_id
    more_likely = decision.probabilities[best] - decision.probabilities[current]
    cost, other = decision.expected_cost[current], decision.expected_cost[best]
    match policy:
        case FixedConfig():
            return math.inf
        case UtilityConfig(lambda_per_usd=weight) if weight > 0:
            if cost is None or other is None:
                return 0.0
            return more_likely - weight * (other - cost)
        case CheapestQualifiedConfig() if decision.probabilities[current] >= thresholds[current]:
            if cost is None or other is None or cost <= 0:
                return 0.0
            return (cost - other) / cost
        case _:
            return more_likely
