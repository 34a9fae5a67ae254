"""What all ways of passing a request on share: the body as a target gets it, and its limits."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import orjson

from router_runtime.errors import TargetConnectionError
from router_runtime.target_config import TargetConfig
from router_runtime.targets.quota import MinuteQuota
from router_runtime.types import Json

_ANSWER_LIMITS: Final = ("max_completion_tokens", "max_tokens")


@dataclass(frozen=True, slots=True)
class Prepared:
    """A body for one target.

    Parameters
    ----------
    data : bytes
    stream : bool
        A stream is asked for.
    hides_usage : bool
        Its usage was asked for here and not by the client, who is not to see it.
    """

    data: bytes = field(repr=False)
    stream: bool = False
    hides_usage: bool = False


class ForwarderBase:
    """The part of a ``Forwarder`` that does not depend on where its target is.

    Parameters
    ----------
    model_id : str
        The candidate's id.
    config : TargetConfig
    who : str
        Names the target in messages.
    identity : str
        What its breaker is kept under: the place and the model.
    max_in_flight : int or None
        Calls at a time; beyond it a call fails at once, so that another candidate takes it. None:
        no bound.
    """

    def __init__(
        self,
        model_id: str,
        config: TargetConfig,
        *,
        who: str,
        identity: str,
        max_in_flight: int | None = None,
    ) -> None:
        self.model_id = model_id
        self.model = config.model or model_id
        self.timeout_s = config.timeout_s
        self.identity = identity
        self._who = who
        self._places: set[object] = set()  # of calls in flight, maybe of several event loops
        self._max_in_flight = max_in_flight
        rates = config.requests_per_minute, config.tokens_per_minute
        self._quota = None if rates == (None, None) else MinuteQuota(*rates)
        self._parameters = dict(config.parameters)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.model_id!r}, model={self.model!r})"

    @property
    def in_flight(self) -> int:
        """Calls that have begun and not ended."""
        return len(self._places)

    @property
    def busy(self) -> bool:
        """Whether there are as many calls, or were as many this minute, as the target takes."""
        if self._quota is not None and self._quota.full:
            return True
        return self._max_in_flight is not None and len(self._places) >= self._max_in_flight

    def prepare(self, body: Mapping[str, Json], *, asks_usage: bool = True) -> Prepared:
        """Return a client's body as this target is to get it; all else in it stays as it is.

        A configured limit of tokens does not stand beside the client's own under the other name.

        Parameters
        ----------
        body : mapping
            The client's JSON object.
        asks_usage : bool
            Ask a stream to tell its usage.
        """
        sent = {**body, "model": self.model}
        sent.pop("router", None)
        limited = any(name in body for name in _ANSWER_LIMITS)
        for name, value in self._parameters.items():
            if name not in sent and not (limited and name in _ANSWER_LIMITS):
                sent[name] = value
        stream, hides = bool(sent.get("stream")), False
        if stream and asks_usage:
            options = sent.get("stream_options")
            options = options if isinstance(options, Mapping) else {}
            if not options.get("include_usage"):
                sent["stream_options"] = {**options, "include_usage": True}
                hides = True
        return Prepared(_dumped(sent), stream, hides)

    def _too_busy(self) -> TargetConnectionError:
        if self._quota is not None and self._quota.full:
            return TargetConnectionError(
                f"{self._who} has had as many calls this minute as its configured limits allow. "
                "Raise 'requests_per_minute' or 'tokens_per_minute' if the server takes more.",
                retryable=True,
                retry_after_s=self._quota.free_in_s,
            )
        return TargetConnectionError(
            f"{self._who} has {self.in_flight} calls in flight, as many as it takes. Raise "
            "'max_concurrency' if the server takes more.",
            retryable=True,
            retry_after_s=1.0,
        )


def _dumped(body: Mapping[str, Json]) -> bytes:
    """Return JSON; the standard library writes what orjson cannot: huge integers, surrogates."""
    try:
        return orjson.dumps(body)
    except TypeError:
        return json.dumps(body, separators=(",", ":")).encode()
