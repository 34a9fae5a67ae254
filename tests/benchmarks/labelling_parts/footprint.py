"""How much memory labelling takes as the number of samples grows: it should not grow with it.

Sharded Parquet is read into the samples stage, every candidate is asked about every sample with all
answers kept, and the records are scored by rules and written as sharded Parquet. Each size runs in
a process and a folder of its own. What counts is the anonymous memory, which a process cannot do
without; mapped files and the system's file cache are dropped when the room is needed. The targets
answer in the process: no network, and 64 calls in flight at each.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from memory import Watch

from labelling_parts.machine import run_part
from labelling_parts.table import Row
from router_runtime.pricing import Usage
from router_runtime.targets.base import ChatCall, Completion
from router_runtime.targets.fake import FakeTarget
from router_training.labelling.answer_store import AnswerStore
from router_training.labelling.config import LabelConfig, load_label_config
from router_training.labelling.responses import collect, live_asker
from router_training.labelling.samples_stage import iter_samples, keep_samples, n_samples
from router_training.labelling.tabulate import tabulate
from router_training.sharded import ShardWriter

AT_MOST = 1.25
"""The largest size's peak over the smallest's."""

STEPS = ("keep", "collect", "tabulate")
_IN_FLIGHT = 64
_ROWS_PER_SHARD = 10_000
_WORDS = "amber basil cedar delta ember fjord grove heron iris jade kelp lotus maple north".split()
_WORDS_PER_PROMPT = 80
_MIB = 2**20


@dataclass(frozen=True)
class Step:
    """One step of labelling: the most anonymous memory meanwhile, in bytes, and how long."""

    peak: int
    seconds: float
    cpu_s: float


@dataclass(frozen=True)
class Footprint:
    """One size.

    Parameters
    ----------
    samples, models : int
    before : int
        Anonymous bytes when all was imported and nothing read.
    steps : mapping of str to Step
    """

    samples: int
    models: int
    before: int
    steps: dict[str, Step]

    @property
    def peak(self) -> int:
        return max(step.peak for step in self.steps.values())


def footprints(sizes: Sequence[int], *, models: int, fresh: Callable[[], Any]) -> list[Footprint]:
    """Measure each size, smallest first.

    Parameters
    ----------
    sizes : sequence of int
        Samples.
    models : int
        Candidates.
    fresh : callable
        Returns a context manager of a new folder that is removed afterwards.
    """
    found = []
    for samples in sorted(sizes):
        with fresh() as name:
            found.append(_measured(samples, models, Path(name)))
    return found


def rows(found: Sequence[Footprint]) -> list[Row]:
    """Compare every size with the smallest; the largest is what has a target."""
    first, last = found[0], found[-1]
    lines = []
    for each in found[1:]:
        what = f"peak memory, {each.samples:,} over {first.samples:,} samples"
        target = AT_MOST if each is last else None
        ratio = each.peak / first.peak
        lines.append(Row(what, _mib(each.peak), _mib(first.peak), ratio, target, at_most=True))
    return lines


def notes(found: Sequence[Footprint]) -> list[str]:
    """Say for each size what every step needed."""
    lines = []
    for each in found:
        steps = "; ".join(
            f"{name} {_mib(step.peak)} in {step.seconds:,.0f} s ({step.cpu_s:,.0f} s CPU)"
            for name, step in each.steps.items()
        )
        lines.append(
            f"{each.samples:,} samples x {each.models}: {_mib(each.before)} before, then {steps}"
        )
    return lines


def _mib(size: int) -> str:
    return f"{size / _MIB:.0f} MiB"


def _measured(samples: int, models: int, folder: Path) -> Footprint:
    _write_source(folder / "source", samples)
    _write_config(folder / "label.yml", models)
    settings = {"config": str(folder / "label.yml"), "samples": samples}
    found = run_part("footprint", settings, cache=folder / "hf")
    steps = {name: Step(**step) for name, step in found["steps"].items()}
    return Footprint(samples, models, found["before"], steps)


def _write_source(folder: Path, samples: int) -> None:
    """Write small sums in much text, in shards of Parquet."""
    columns = {"idx": "string", "prompt": "string", "answer": "string", "dataset": "string"}
    rng = np.random.default_rng(0)
    with ShardWriter(folder, columns, rows_per_shard=_ROWS_PER_SHARD) as shards:
        for at in range(samples):
            words = " ".join(
                _WORDS[word] for word in rng.integers(len(_WORDS), size=_WORDS_PER_PROMPT)
            )
            a, b = (int(number) for number in rng.integers(1000, size=2))
            prompt = f"{words}\n\n{at}. What is {a} + {b}?"
            row = {"idx": str(at), "prompt": prompt, "answer": str(a + b), "dataset": "sums"}
            shards.write(row)


def _write_config(path: Path, models: int) -> None:
    target = {
        "kind": "compatible",
        "base_url": "http://127.0.0.1:9/v1",
        "max_concurrency": _IN_FLIGHT,
    }
    content = {
        "data": {"path": "source"},
        "candidates": [
            {
                "id": f"model-{at}",
                "target": target,  # of its limits only; asked is a target in the process
                "price": {"input_mtok": 0.2, "output_mtok": 0.6},
            }
            for at in range(models)
        ],
        "scoring": {"scorers": {"same": "exact"}, "default": ["same"]},
        "output": "records",
        "rows_per_shard": _ROWS_PER_SHARD,
        "work_dir": "work",
    }
    path.write_text(json.dumps(content), encoding="utf-8")


# ---------------------------------------------------------------------- in its own process


def main() -> None:
    settings = json.loads(sys.argv[1])
    config, samples = load_label_config(settings["config"]), int(settings["samples"])
    watch = Watch()
    before = watch.sample()["RssAnon"]
    watch.start()
    steps: dict[str, Step] = {}
    with _step("keep", steps, watch):
        folder = keep_samples(config)
    with _step("collect", steps, watch):
        asyncio.run(_collect(config, folder))
    with _step("tabulate", steps, watch), AnswerStore.read(config.work_dir / "answers") as store:
        tabulated = tabulate(config, folder, store)
    watch.stop()
    if tabulated.rows != samples or tabulated.pending:
        raise RuntimeError(f"{tabulated.rows:,} of {samples:,} records were written")
    found = {name: asdict(step) for name, step in steps.items()}
    print(json.dumps({"before": before, "steps": found}))


@contextmanager
def _step(name: str, steps: dict[str, Step], watch: Watch) -> Iterator[None]:
    watch.peak["RssAnon"] = 0
    started, cpu = time.perf_counter(), time.process_time()
    yield
    watch.sample()
    seconds, cpu_s = time.perf_counter() - started, time.process_time() - cpu
    steps[name] = Step(watch.peak["RssAnon"], seconds, cpu_s)


async def _collect(config: LabelConfig, folder: Path) -> None:
    targets = {each.id: FakeTarget(each.id, _Answers(each.id)) for each in config.candidates}
    with AnswerStore.open(config.work_dir / "answers", holder="benchmark") as store:
        async with live_asker(config, targets, store) as asker:
            await collect(lambda: iter_samples(folder), config, asker, n_samples=n_samples(folder))


class _Answers:
    """What a model answers: every third sum wrongly."""

    def __init__(self, model_id: str) -> None:
        self._model_id = model_id

    def __call__(self, call: ChatCall) -> Completion:
        prompt = str(call.messages[-1]["content"])
        a, b = map(int, re.findall(r"\d+", prompt)[-2:])
        text = f"{a + b + (a % 3 == 0)}"
        usage = Usage(input_tokens=len(prompt) // 4, output_tokens=len(text))
        return Completion(self._model_id, text, usage, "stop", seconds=0.2)


if __name__ == "__main__":
    main()
