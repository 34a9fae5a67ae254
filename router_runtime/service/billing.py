"""What calls used and cost: as reported, else estimated and marked so; and what one may cost.

Spend is exact where the provider tells its usage. Where it does not (a stream that broke, a client
that left, a server that never tells) tokens are estimated from characters. A reservation is made
before a call and errs upwards, so that a budget is not overdrawn by what was reserved too low.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Final

from router_runtime.pricing import Price, Usage, estimate_tokens
from router_runtime.service.values import Attempt, Routed
from router_runtime.targets.answers import read_usage
from router_runtime.targets.replies import Path
from router_runtime.targets.streams import Tried
from router_runtime.types import Json

TYPICAL_OUTPUT_TOKENS: Final = 2048
"""Reserved for an answer where the request sets no limit."""

IMAGE_TOKENS: Final = 800
"""Input tokens of a picture in estimates; of a large one up to twice as many."""

_RESERVED_CHARS_PER_TOKEN: Final = 2.0
_RESERVED_IMAGE_TOKENS: Final = 2 * IMAGE_TOKENS
_UNBILLED: Final = ("breaker_open", "budget", "busy", "connection")
_MEASURED: Final = ("text", "content", "input", "prompt", "arguments", "refusal")


@dataclass(frozen=True, slots=True)
class Size:
    """How large a request is.

    Parameters
    ----------
    chars : int
        Characters of all texts.
    images : int
    max_output_tokens : int or None
        The request's own limit.
    n : int
        Answers asked for.
    """

    chars: int
    images: int = 0
    max_output_tokens: int | None = None
    n: int = 1


def size_of(body: Mapping[str, Json]) -> Size:
    """Return the size of a chat, completion or embedding request.

    Tools and JSON schemas count as they are written; token ids count as one token each.
    """
    chars, images = _measured(body.get("messages"))
    for name in ("prompt", "input"):
        chars += _measured(body.get(name))[0]
    for name in ("tools", "functions", "response_format"):
        chars += _written(body.get(name))
    limits = (body.get("max_completion_tokens"), body.get("max_tokens"))
    limit = next((value for value in limits if _is_count(value)), None)
    n = body.get("n")
    return Size(chars, images, limit, n if _is_count(n) and n else 1)


def reserve_usd(
    price: Price | None,
    size: Size,
    *,
    answers: bool = True,
    typical_output_tokens: int = TYPICAL_OUTPUT_TOKENS,
) -> Decimal:
    """Return what a call may cost; 0 where the candidate has no price.

    Parameters
    ----------
    price : Price or None
    size : Size
    answers : bool
        Text is answered; embeddings are not billed by it.
    typical_output_tokens : int
        For an answer where the request sets no limit.
    """
    if price is None:
        return Decimal(0)
    given = math.ceil(size.chars / _RESERVED_CHARS_PER_TOKEN)
    given += size.images * _RESERVED_IMAGE_TOKENS
    limit = typical_output_tokens if size.max_output_tokens is None else size.max_output_tokens
    return price.cost(Usage(given, limit * size.n if answers else 0, images=size.images))


def estimate_total_tokens(size: Size) -> int:
    """Return the tokens that a request is counted as before it is answered."""
    limit = TYPICAL_OUTPUT_TOKENS if size.max_output_tokens is None else size.max_output_tokens
    return _input_tokens(size) + min(limit, TYPICAL_OUTPUT_TOKENS) * size.n


def attempt_of(tried: Tried, *, price: Price | None, size: Callable[[], Size]) -> Attempt:
    """Return a try as it is accounted for.

    Usage that the server told counts, of a failed answer too. Else a call that may have been billed
    is estimated: its input, and as much output as came. A call that was not made, found no
    connection or was refused by a status cannot have cost anything.

    Parameters
    ----------
    tried : Tried
    price : Price or None
        Of the candidate.
    size : callable
        Returns the size of the request; called where it matters.
    """
    usage = usage_of(tried.usage, images=size().images if price and price.image else 0)
    estimated = usage is None and _may_be_billed(tried.error)
    if estimated:
        asked = size()
        produced = math.ceil(estimate_tokens(tried.text_bytes))
        usage = Usage(_input_tokens(asked), produced, images=asked.images)
    return Attempt(
        tried.model_id,
        tried.error,
        tried.seconds,
        first_byte_s=tried.first_byte_s,
        usage=usage,
        estimated=estimated,
        cost_usd=_cost_usd(usage, price),
    )


def _cost_usd(usage: Usage | None, price: Price | None) -> Decimal | None:
    if usage is None:  # of a call that cannot have been billed
        return Decimal(0)
    return None if price is None else price.cost(usage)


class Bill:
    """What one request costs, while it is served.

    Parameters
    ----------
    path : Path
    body : mapping
        As the client sent it.
    prices : mapping of model to Price
        Models without a price are missing or None.
    typical_output_tokens : int
        Reserved for an answer where the request sets no limit.
    """

    def __init__(
        self,
        path: Path,
        body: Mapping[str, Json],
        *,
        prices: Mapping[str, Price | None],
        typical_output_tokens: int = TYPICAL_OUTPUT_TOKENS,
    ) -> None:
        self._path = path
        self._body = body
        self._prices = prices
        self._typical = typical_output_tokens
        self._size: Size | None = None
        self._attempts: list[Attempt] = []

    @property
    def size(self) -> Size:
        """How large the request is; measured when first asked for."""
        if self._size is None:
            self._size = size_of(self._body)
        return self._size

    def attempts(self, tried: Sequence[Tried]) -> list[Attempt]:
        """Return tries as they are accounted for; those that were here before are not redone."""
        for one in tried[len(self._attempts) :]:
            price = self._prices.get(one.model_id)
            self._attempts.append(attempt_of(one, price=price, size=lambda: self.size))
        return list(self._attempts)

    def most_usd(self, model_id: str) -> Decimal | None:
        """Return what a call to a candidate may cost; None where it has no price."""
        price = self._prices.get(model_id)
        if price is None:
            return None
        answers = self._path != "embeddings"
        return reserve_usd(price, self.size, answers=answers, typical_output_tokens=self._typical)

    @staticmethod
    def expected_usd(model_id: str, routed: Routed | None) -> Decimal | None:
        """Return what the decision expects a call to cost; None where it expects nothing."""
        expected = None if routed is None else routed.expected_cost.get(model_id)
        return None if expected is None else Decimal(repr(expected))


def usage_of(usage: Json, *, images: int = 0) -> Usage | None:
    """Return the ``usage`` of any answer; embeddings tell no completion tokens.

    None where there is none, or nonsense.
    """
    if isinstance(usage, Mapping) and usage.get("completion_tokens") is None:
        usage = {**usage, "completion_tokens": 0}
    return read_usage(usage, images=images)


def _may_be_billed(error: str | None) -> bool:
    if error is None:
        return True
    return error not in _UNBILLED and not error.startswith("status_")


def _input_tokens(size: Size) -> int:
    return math.ceil(estimate_tokens(size.chars)) + size.images * IMAGE_TOKENS


def _is_count(value: Json) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _measured(value: Json) -> tuple[int, int]:
    """Return characters and pictures of messages, parts, choices, or texts in lists."""
    if isinstance(value, str):
        return len(value), 0
    if isinstance(value, int | float):  # a token id
        return 4, 0
    if isinstance(value, Mapping):
        if value.get("type") == "image_url":
            return 0, 1
        entries = [value.get(name) for name in _MEASURED]
        entries += [value.get(name) for name in ("message", "tool_calls", "function")]
        entries = [entry for entry in entries if isinstance(entry, str | Mapping | Sequence)]
    elif isinstance(value, Sequence):
        entries = list(value)
    else:
        return 0, 0
    chars, images = 0, 0
    for entry in entries:
        more = _measured(entry)
        chars, images = chars + more[0], images + more[1]
    return chars, images


def _written(value: Json) -> int:
    """Return roughly how long JSON is when written."""
    if isinstance(value, Mapping):
        return sum(len(name) + 4 + _written(entry) for name, entry in value.items())
    if isinstance(value, str):
        return len(value) + 2
    if isinstance(value, Sequence):
        return sum(1 + _written(entry) for entry in value)
    return 0 if value is None else 4
