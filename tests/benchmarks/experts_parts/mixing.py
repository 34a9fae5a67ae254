"""Many requests at once for adapters whose answers are known: whose answer did each get?"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from labelling_parts.table import Row

from router_runtime.experts.config import ExpertsConfig
from router_runtime.experts.service import Experts

THREADS = 16


@dataclass(frozen=True)
class Mixing:
    """What became of the requests; ``alien`` got another adapter's words, ``odd`` nobody's."""

    requests: int
    alien: int
    odd: int
    seconds: float

    def rows(self) -> list[Row]:
        rate = self.requests / self.seconds
        asked = f"{self.requests:,}"
        return [
            _none("answers with another adapter's words, of", self.alien, asked),
            _none("answers with nobody's words, of", self.odd, asked),
            Row(
                f"requests/s of {THREADS} threads, 3 adapters and the base",
                f"{rate:.0f}/s",
                "",
                rate,
            ),
        ]


def _none(what: str, found: int, of: str) -> Row:
    return Row(what, str(found), of, found, 0, at_most=True)


def measure(
    base: Path, adapters: Mapping[str, Path], words: Mapping[str, str], *, requests: int
) -> Mixing:
    """Ask in 16 threads, 4 requests at a time in each; every fourth asks the base and is noise."""
    config = ExpertsConfig(
        base={"model": str(base)}, name="base", adapters=dict(adapters), max_waiting=1000
    )
    experts = Experts.load(config)
    names = [*words, "base"]

    async def one(number: int) -> tuple[str, str]:
        name = names[number % len(names)]
        body = {"model": name, "temperature": 0, "max_tokens": 10}
        asked = body | {"messages": [{"role": "user", "content": f"request {number}"}]}
        return name, (await experts.answer(experts.read(asked))).text

    async def some(numbers: range) -> list[tuple[str, str]]:
        places = asyncio.Semaphore(4)

        async def placed(number: int) -> tuple[str, str]:
            async with places:
                return await one(number)

        return await asyncio.gather(*(placed(number) for number in numbers))

    began = time.perf_counter()
    with ThreadPoolExecutor(THREADS) as threads:
        parts = [range(at, requests, THREADS) for at in range(THREADS)]
        answers = [
            got for part in threads.map(lambda p: asyncio.run(some(p)), parts) for got in part
        ]
    took = time.perf_counter() - began
    experts.close()
    wrong = [(n, text) for n, text in answers if n != "base" and text != words[n]]
    alien = sum(text in words.values() for _, text in wrong)
    alien += sum(n == "base" and text in words.values() for n, text in answers)
    odd = len(wrong) - sum(text in words.values() for _, text in wrong)
    return Mixing(len(answers), alien, odd, took)
