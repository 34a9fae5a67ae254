"""One pool with a number of adapters: going from one to another, tokens per second, memory."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from labelling_parts.table import Row

from experts_parts import making
from router_runtime.experts.base_model import load_base
from router_runtime.experts.batches import Row as Request
from router_runtime.experts.batches import answer
from router_runtime.experts.config import BaseConfig
from router_runtime.experts.pool import AdapterPool
from router_runtime.experts.prompts import PromptMaker
from router_runtime.experts.sampling import Sampling

ROUNDS = 30
TOKENS = 32
BATCH = 8


@dataclass(frozen=True)
class Switching:
    """What was measured with ``count`` adapters.

    Parameters
    ----------
    add_ms : float
        Reading, checking and taking one adapter, the median.
    switch_us, peft_us : float
        From one adapter to another: here, and with PEFT's ``set_adapter``; medians.
    mixed, apart : float
        Tokens per second of 8 rows on up to 8 adapters: in one batch, and in one per adapter.
    base : float
        Tokens per second of 8 rows without any adapter.
    adapter_kb, counted_kb : float
        Memory of all adapters: of the tensors in the model, and as the pool tells it.
    """

    count: int
    add_ms: float
    switch_us: float
    peft_us: float
    mixed: float
    apart: float
    base: float
    adapter_kb: float
    counted_kb: float

    def rows(self) -> list[Row]:
        n = f"{self.count} adapter" + ("s" if self.count > 1 else "")
        mixed, apart, base = (f"{rate:.0f}/s" for rate in (self.mixed, self.apart, self.base))
        took, peft = f"{self.switch_us:.0f} us", f"{self.peft_us:.0f} us"
        kept, told = f"{self.adapter_kb:.0f} kB", f"{self.counted_kb:.0f} kB"
        faster, share = self.mixed / self.apart, self.mixed / self.base
        switched, memory = self.switch_us / self.peft_us, self.adapter_kb / self.counted_kb
        return [
            Row(f"{n}: read, check and add one, ms", f"{self.add_ms:.1f} ms", "", self.add_ms),
            Row(f"{n}: switch, beside set_adapter", took, peft, switched, 1.0, at_most=True),
            Row(f"{n}: tokens/s of 8 rows, mixed beside apart", mixed, apart, faster, 0.9),
            Row(f"{n}: tokens/s of 8 rows, beside the base's", mixed, base, share),
            Row(f"{n}: memory beside what is told", kept, told, memory, 1.0, at_most=True),
        ]


def measure(base: Path, adapter: Path, *, count: int) -> Switching:
    """Measure a pool with ``count`` copies of one adapter."""
    pool = AdapterPool(load_base(BaseConfig(model=str(base))))
    plain = [None] * BATCH
    without = _tokens_per_s(pool, [plain])
    took = []
    for at in range(count):
        began = time.perf_counter()
        pool.add(pool.read(f"a{at}", adapter))
        took.append(time.perf_counter() - began)
    names = [f"a{at % count}" for at in range(BATCH)]
    groups = [[name] * names.count(name) for name in dict.fromkeys(names)]
    held = [p for name, p in pool.base.model.named_parameters() if ".lora_" in name]
    return Switching(
        count=count,
        add_ms=1e3 * statistics.median(took),
        switch_us=1e6 * _median(lambda at: _switch(pool, f"a{at % count}")),
        peft_us=1e6
        * _median(lambda at: pool.base.attached.tuner.set_adapter(pool.cards[at % count].inner)),
        mixed=_tokens_per_s(pool, [names]),
        apart=_tokens_per_s(pool, groups),
        base=without,
        adapter_kb=sum(p.numel() * p.element_size() for p in held) / 1024,
        counted_kb=pool.n_bytes / 1024,
    )


def _switch(pool: AdapterPool, name: str) -> None:
    with pool.using([name]):
        pass


def _median(step: Callable[[int], object]) -> float:
    times = []
    for at in range(ROUNDS):
        began = time.perf_counter()
        step(at)
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def _tokens_per_s(pool: AdapterPool, groups: list[list[str | None]]) -> float:
    """Return the tokens per second of the best of three runs of these batches, one by one."""
    prompt = PromptMaker(pool.base).make([{"role": "user", "content": "which day is free?"}])
    sampling = Sampling(max_tokens=TOKENS, temperature=0.0)
    ends = pool.base.end_tokens
    object.__setattr__(pool.base, "end_tokens", (making.TEXT["vocab_size"] - 1,))  # all go on
    best = 0.0
    for _ in range(3):
        made: list[Request] = []
        began = time.perf_counter()
        for group in groups:
            rows = [
                Request(
                    pool.base, prompt=prompt, adapter=n, sampling=sampling, sink=lambda event: None
                )
                for n in group
            ]
            answer(pool, rows)
            made += rows
        took = time.perf_counter() - began
        best = max(best, sum(row.n_made for row in made) / took)
    object.__setattr__(pool.base, "end_tokens", ends)
    return best
