"""How large a call is, what it may cost at most, and a budget that is not exceeded.

Before a call is sent, the most that it may cost is reserved; when it has ended, the reservation
gives way to what it did cost. Spending can therefore pass the cap only where a provider bills more
than was reserved, and then by no more than the calls in flight.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Context, Decimal, localcontext
from math import ceil
from typing import Final, Protocol

from router_runtime.pricing import Price, Usage, estimate_tokens
from router_runtime.targets.base import ChatCall
from router_runtime.types import Json

IMAGE_TOKENS: Final = 1_600
"""Tokens that a picture counts as, where a provider counts it so: near the top of what they do."""

DEFAULT_OUTPUT_TOKENS: Final = 4_096
"""Tokens of an answer that a call does not limit, for reservations."""

_TURN_TOKENS: Final = 8  # a turn's role and delimiters
_EXACT: Final = Context(prec=100)


@dataclass(frozen=True, slots=True)
class CallSize:
    """How large a call is, before anybody has counted its tokens.

    Parameters
    ----------
    chars : int
        Characters of all turns.
    wide_chars : int
        Those of them outside ASCII: a token each, at worst.
    images, turns : int
    output_limit : int or None
        Tokens that the answer may have by the call's own parameters.
    """

    chars: int
    wide_chars: int
    images: int
    turns: int
    output_limit: int | None

    @property
    def input_tokens(self) -> float:
        """Tokens of the prompt as they are to be expected, as ``estimate_tokens`` says."""
        turns, images = self.turns * _TURN_TOKENS, self.images * IMAGE_TOKENS
        return estimate_tokens(self.chars) + turns + images

    def upper_cost_usd(self, price: Price | None) -> Decimal:
        """Return the most that the call may cost; 0 without a price.

        Two ASCII characters a token, one of any other script, and as much answer as is allowed.
        """
        if price is None:
            return Decimal(0)
        text = ceil((self.chars - self.wide_chars) / 2) + self.wide_chars
        sent = text + self.turns * _TURN_TOKENS + self.images * IMAGE_TOKENS
        made = DEFAULT_OUTPUT_TOKENS if self.output_limit is None else self.output_limit
        return price.cost(Usage(sent, made, images=self.images))


def size_of(call: ChatCall) -> CallSize:
    """Return how large a call is."""
    chars = wide = images = 0
    for message in call.messages:
        for name, value in message.items():
            if name == "role" or value is None:
                continue
            parts = value if name == "content" and not isinstance(value, str) else [value]
            for part in parts:
                if _is_image(part):
                    images += 1
                    continue
                text = _text(part)
                chars += len(text)
                wide += _n_wide(text)
    return CallSize(chars, wide, images, len(call.messages), output_limit(call.parameters))


def output_limit(parameters: Mapping[str, Json]) -> int | None:
    """Return the tokens that all answers to a call may have together; None where nothing says."""
    limits = [_count(parameters.get(name)) for name in ("max_completion_tokens", "max_tokens")]
    known = [limit for limit in limits if limit is not None]
    return max(known) * (_count(parameters.get("n")) or 1) if known else None


class Spending(Protocol):
    """Lets calls be sent while there is money; one for all targets."""

    async def reserve(self, amount_usd: Decimal) -> bool:
        """Set money aside for a call; False where the budget is reached, then and ever after."""
        ...

    async def settle(self, amount_usd: Decimal, cost_usd: Decimal) -> None:
        """Give a reservation back and book what the call did cost (or may have)."""
        ...


class Budget:
    """A cap on what all calls cost together, for one process.

    Parameters
    ----------
    max_cost_usd : Decimal or None
        None: no cap.
    spent : Decimal
        What earlier runs spent (or may have).
    """

    def __init__(self, max_cost_usd: Decimal | None, spent: Decimal = Decimal(0)) -> None:
        self.max_cost_usd = max_cost_usd
        self.spent = spent
        self.reserved = Decimal(0)
        self.reached = False
        self._waiting: list[asyncio.Future[None]] = []

    async def reserve(self, amount_usd: Decimal) -> bool:
        """Set money aside for a call.

        Where only reservations of calls in flight stand against it, it waits for them to end: most
        cost less than was reserved. The first call that does not fit ends the spending, so that no
        later, cheaper one is preferred to it.
        """
        with localcontext(_EXACT):
            while self.max_cost_usd is not None and not self.reached:
                free = self.max_cost_usd - self.spent
                if amount_usd <= free - self.reserved:
                    break
                if amount_usd > free or not self.reserved:
                    self.reached = True
                    self._wake()
                    break
                waiting = asyncio.get_running_loop().create_future()
                self._waiting.append(waiting)
                await waiting
            if not self.reached:
                self.reserved += amount_usd
        return not self.reached

    async def settle(self, amount_usd: Decimal, cost_usd: Decimal) -> None:
        with localcontext(_EXACT):
            self.reserved -= amount_usd
            self.spent += cost_usd
        self._wake()

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)


def _is_image(part: Json) -> bool:
    return isinstance(part, Mapping) and part.get("type") in ("image_url", "input_image", "image")


def _count(value: Json) -> int | None:
    is_count = isinstance(value, int) and not isinstance(value, bool) and value > 0
    return value if is_count else None


def _text(part: Json) -> str:
    if isinstance(part, str):
        return part
    text = part.get("text") if isinstance(part, Mapping) else None
    return text if isinstance(text, str) else json.dumps(part, ensure_ascii=False)


def _n_wide(text: str) -> int:
    return 0 if text.isascii() else len(text) - len(text.encode("ascii", "ignore"))


def total(costs: Sequence[Decimal | None]) -> Decimal:
    """Return the exact sum of the costs that are known."""
    with localcontext(_EXACT):
        return sum((cost for cost in costs if cost is not None), Decimal(0))
