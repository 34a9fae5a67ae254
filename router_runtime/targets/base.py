"""What is asked of a target and what comes back: values and the protocol, no I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from router_runtime.pricing import Usage
from router_runtime.types import Json


@dataclass(frozen=True)
class ChatCall:
    """One request to a chat model.

    Parameters
    ----------
    messages : tuple of mapping
        OpenAI chat messages; pictures are ``image_url`` parts with data URIs.
    parameters : mapping
        Fields of the request body for this call; they go before the target's own ``parameters``.
        Nothing else is sent.
    """

    messages: tuple[Mapping[str, Json], ...] = field(repr=False)
    parameters: Mapping[str, Json] = field(default_factory=dict)


@dataclass(frozen=True)
class Completion:
    """What a target answered.

    Parameters
    ----------
    model_id : str
        The candidate that was asked.
    text : str
        The answer's text; empty where there is none (a tool call, a filter).
    usage : Usage or None
        As the provider reports it; None where it reports nothing that can be read.
    finish_reason : str or None
        ``stop``, ``length``, ``tool_calls``, ``content_filter`` ..., as the provider says.
    seconds : float
        From sending the request to the last byte of the answer.
    raw : mapping
        The response body.
    """

    model_id: str
    text: str = field(repr=False)
    usage: Usage | None
    finish_reason: str | None
    seconds: float
    raw: Mapping[str, Json] = field(default_factory=dict, repr=False)


class Target(Protocol):
    """Where a candidate is called."""

    @property
    def model_id(self) -> str:
        """The candidate's id."""
        ...

    @property
    def model(self) -> str:
        """The ``model`` field that the server knows it by."""
        ...

    async def acomplete(self, call: ChatCall) -> Completion:
        """Answer one call.

        Raises
        ------
        TargetError
            The call failed; one of its subclasses, with ``retryable``, ``whole_target`` and
            ``retry_after_s`` set. Nothing is retried here.
        """
        ...

    async def aclose(self) -> None:
        """Close connections; the target cannot be used afterwards."""
        ...
