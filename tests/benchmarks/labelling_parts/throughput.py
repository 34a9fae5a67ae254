"""How many calls a second: beside the concurrency limit's ideal rate, and one call after another.

Both sides ask the same simulated provider over HTTP with the same ``openai`` package on the same
core. Ours is all of collecting, from opening the store until the last answer is durable in it:
samples read from their stage, calls made, paced, priced, sent and kept, once per round with an
empty store. The other side is what users have otherwise: a loop that sends a call, waits for the
answer and keeps it in a list. The loop is timed on some of the calls, half of them before and half
after the rounds; its rate does not depend on how many there are.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from decimal import Decimal
from itertools import chain, islice
from pathlib import Path
from typing import Any

import openai

from labelling_parts.machine import Busyness, cores, cpu_seconds, pin, provider, run_part
from labelling_parts.table import Row
from router_runtime.targets.registry import build_target
from router_training.labelling.answer_store import AnswerStore
from router_training.labelling.config import LabelConfig, load_label_config
from router_training.labelling.responses import collect, live_asker
from router_training.labelling.samples import LabelSample, chat_messages
from router_training.labelling.samples_stage import iter_samples, keep_samples
from router_training.simulated import write_unlabelled

SHARE_OF_IDEAL = 0.8
OVER_ONE_BY_ONE = 40.0
_WARM_UP = 2  # samples, asked of every model on both sides before anything is timed


@dataclass(frozen=True)
class Load:
    """What is asked.

    Parameters
    ----------
    samples, models : int
        Every model is asked about every sample.
    per_model : int
        Calls in flight at each model.
    latency_s : float
        Of every answer, without spread.
    rounds : int
        How often all calls are made anew; the one that others disturbed least counts.
    one_by_one : int
        Calls of the sequential loop.
    pinned : bool
        Whether the asking process and the provider are kept on a core each.
    """

    samples: int = 500
    models: int = 4
    per_model: int = 16
    latency_s: float = 0.2
    rounds: int = 3
    one_by_one: int = 40
    pinned: bool = True

    @property
    def calls(self) -> int:
        return self.samples * self.models

    @property
    def ideal_rate(self) -> float:
        """Calls per second where every place in flight is always taken and nothing else counts."""
        return self.models * self.per_model / self.latency_s


@dataclass(frozen=True)
class Round:
    """One time that all calls were made.

    Parameters
    ----------
    seconds : float
    cpu_s, provider_cpu_s : float
        Of the asking process and of the simulated provider.
    others : float
        Share of the machine that other processes had meanwhile.
    """

    seconds: float
    cpu_s: float
    provider_cpu_s: float
    others: float


@dataclass(frozen=True)
class Throughput:
    """What was measured."""

    load: Load
    rounds: tuple[Round, ...]
    one_by_one_s: float
    one_by_one_cpu_s: float

    @property
    def rates(self) -> list[float]:
        return [self.load.calls / each.seconds for each in self.rounds]

    @property
    def rate(self) -> float:
        """Calls per second of the round in which other processes had the least."""
        return self.load.calls / min(self.rounds, key=lambda each: each.others).seconds

    @property
    def one_by_one_rate(self) -> float:
        return self.load.one_by_one / self.one_by_one_s

    def rows(self) -> list[Row]:
        load, ours = self.load, f"{self.rate:.0f}/s"
        what = f"{load.samples} x {load.models} calls of {load.latency_s * 1000:g} ms"
        in_flight = load.models * load.per_model
        one = f"{what} over one by one ({load.one_by_one} timed)"
        return [
            Row(
                f"{what}, share of ideal with {in_flight} in flight",
                ours,
                f"{load.ideal_rate:.0f}/s",
                self.rate / load.ideal_rate,
                SHARE_OF_IDEAL,
            ),
            Row(
                one,
                ours,
                f"{self.one_by_one_rate:.1f}/s",
                self.rate / self.one_by_one_rate,
                OVER_ONE_BY_ONE,
            ),
        ]

    def notes(self) -> list[str]:
        """Sentences on where the time went, and on how far the figures can be believed."""
        calls = self.load.calls
        ours = statistics.median(each.cpu_s for each in self.rounds) / calls
        theirs = statistics.median(each.provider_cpu_s for each in self.rounds) / calls
        other = self.one_by_one_cpu_s / self.load.one_by_one
        enough = SHARE_OF_IDEAL * self.load.ideal_rate  # calls per second
        busy = ", ".join(f"{each.others:.0%}" for each in self.rounds)
        shares = ", ".join(f"{rate / self.load.ideal_rate:.0%}" for rate in self.rates)
        return [
            f"CPU per call: {ours * 1e3:.1f} ms here, {other * 1e3:.1f} ms in the sequential loop, "
            f"{theirs * 1e3:.1f} ms in the simulated provider",
            f"{SHARE_OF_IDEAL:.0%} of ideal takes {ours * enough:.0%} of a core here",
            f"rounds: {shares} of ideal; other processes had {busy} of the machine meanwhile",
        ]

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"rates": self.rates}


def measure(load: Load, folder: Path) -> Throughput:
    """Start the provider, measure in a process of its own, and return what it found."""
    config = _prepare(load, folder)
    cache = folder / "hf"
    ours, others = cores() if load.pinned else (None, None)
    with provider(folder / "provider.yml", core=others, cache=cache) as upstream:
        _write_config(config, load, folder, upstream.base_url)
        settings = {
            "config": str(config),
            "base_url": upstream.base_url,
            "pid": upstream.pid,
            "core": ours,
            "load": asdict(load),
        }
        found = run_part("throughput", settings, cache=cache)
    rounds = tuple(Round(**each) for each in found.pop("rounds"))
    return Throughput(load, rounds, **found)


def _prepare(load: Load, folder: Path) -> Path:
    """Write the samples and the provider's config; return where the labelling config goes."""
    write_unlabelled(folder / "drawn", rows=load.samples + load.samples // 2 + 10, seed=0)
    _write_distinct(folder / "drawn", folder / "data", load.samples)
    model = {"modalities": ["text", "image"], "latency": {"median_s": load.latency_s}}
    content = {"answers": "data/answers.jsonl", "models": dict.fromkeys(_models(load), model)}
    (folder / "provider.yml").write_text(json.dumps(content), encoding="utf-8")
    return folder / "label.yml"


def _write_distinct(drawn: Path, folder: Path, samples: int) -> None:
    """Keep samples whose prompts differ: equal calls would be asked only once."""
    folder.mkdir()
    lines = (drawn / "samples.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    distinct = {json.loads(line)["prompt"]: line for line in lines}
    if len(distinct) < samples:
        raise RuntimeError(f"only {len(distinct):,} of {samples:,} prompts differ; draw more")
    (folder / "samples.jsonl").write_text("".join(list(distinct.values())[:samples]), "utf-8")
    (drawn / "answers.jsonl").rename(folder / "answers.jsonl")


def _write_config(path: Path, load: Load, folder: Path, base_url: str) -> None:
    target = {"kind": "compatible", "base_url": base_url, "max_concurrency": load.per_model}
    content = {
        "data": {"path": "data/samples.jsonl"},
        "candidates": [
            {
                "id": name,
                "modalities": ["text", "image"],
                "target": target,
                "price": {"input_mtok": 0.2, "output_mtok": 0.6},
            }
            for name in _models(load)
        ],
        "scoring": {"scorers": {"same": "exact"}, "default": ["same"]},
        "work_dir": "work",
    }
    path.write_text(json.dumps(content), encoding="utf-8")


def _models(load: Load) -> list[str]:
    return [f"model-{at}" for at in range(load.models)]


# ---------------------------------------------------------------------- in its own process


def main() -> None:
    settings = json.loads(sys.argv[1])
    pin(settings["core"])
    load = Load(**settings["load"])
    config = load_label_config(settings["config"])
    folder = keep_samples(config, progress=None)
    samples = list(islice(iter_samples(folder), load.samples))
    loop = _OneByOne(settings["base_url"], config, samples)
    asyncio.run(_ask_all(config, samples[:_WARM_UP], config.work_dir / "warm-up"))
    loop.run(1)
    loop.clear()
    half = load.one_by_one // 2
    loop.run(half)
    rounds = [
        _round(config, folder, number, load=load, provider_pid=settings["pid"])
        for number in range(load.rounds)
    ]
    loop.run(load.one_by_one - half)
    found = {
        "rounds": [asdict(each) for each in rounds],
        "one_by_one_s": loop.seconds,
        "one_by_one_cpu_s": loop.cpu_s,
    }
    print(json.dumps(found))


def _round(
    config: LabelConfig, folder: Path, number: int, *, load: Load, provider_pid: int
) -> Round:
    busyness, provider_cpu = Busyness.now(), cpu_seconds(provider_pid)
    started, cpu = time.perf_counter(), time.process_time()
    answered = asyncio.run(_ask_all(config, folder, config.work_dir / f"round-{number}"))
    seconds, cpu_s = time.perf_counter() - started, time.process_time() - cpu
    provider_cpu_s = cpu_seconds(provider_pid) - provider_cpu
    if answered != load.calls:
        raise RuntimeError(f"{answered:,} of {load.calls:,} calls were answered")
    return Round(seconds, cpu_s, provider_cpu_s, busyness.others(cpu_s + provider_cpu_s))


async def _ask_all(
    config: LabelConfig, samples: Path | Sequence[LabelSample], store_folder: Path
) -> int:
    """Ask every model about every sample, with an empty store; return how many answers it has."""
    targets = {c.id: build_target(c.id, c.target) for c in config.candidates if c.target}
    with AnswerStore.open(store_folder, holder="benchmark") as store:
        async with live_asker(config, targets, store) as asker:
            summary = await collect(
                lambda: iter_samples(samples) if isinstance(samples, Path) else samples,
                config,
                asker,
            )
        assert store.spent() == summary.cost_usd > Decimal(0)
        return sum(model.answered for model in store.observed().values())


class _OneByOne:
    """The sequential loop: the synchronous client, one call after another, model by model."""

    def __init__(self, base_url: str, config: LabelConfig, samples: Sequence[LabelSample]) -> None:
        self._client = openai.OpenAI(base_url=base_url, api_key="none", max_retries=0)
        self._calls = chain.from_iterable(
            ((candidate.id, sample) for candidate in config.candidates) for sample in samples
        )
        self.clear()

    def clear(self) -> None:
        self.seconds = self.cpu_s = 0.0
        self.answers: list[str] = []

    def run(self, calls: int) -> None:
        started, cpu = time.perf_counter(), time.process_time()
        for model, sample in islice(self._calls, calls):
            messages: Any = list(chat_messages(sample.sample))
            answer = self._client.chat.completions.create(model=model, messages=messages)
            self.answers.append(answer.choices[0].message.content or "")
        self.seconds += time.perf_counter() - started
        self.cpu_s += time.process_time() - cpu


if __name__ == "__main__":
    main()
