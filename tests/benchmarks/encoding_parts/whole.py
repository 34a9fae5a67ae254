"""Whole decisions on texts: ours, or as LLM Router v2 makes them.

    python -m encoding_parts.whole routed CONFIG
    python -m encoding_parts.whole ancestor CHECKPOINT

Reads a line ``CONCURRENCY SECONDS``, decides for so long with so many asking at a time, and answers
with a line of JSON: ``rate`` (decisions per second) and ``p50_s``. No HTTP on either side.

Ours is what ``POST /v1/route`` does between body and answer: a query is made of the messages and
``Decider.decide`` walks its steps over the micro-batcher and the int8 encoder; nothing is
remembered from one request to the next. The other is LLM Router v2's path: open_clip's tokenizer,
the whole padded window through the text tower in PyTorch, its network, one text at a time under a
lock.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any, Final, TypeAlias

from labelling_parts.table import Row

NAME: Final = "ViT-B-32-quickgelu"
FASTER_ALONE, MORE_TOGETHER = 10.0, 12.0
TOGETHER: Final = 16
Ask: TypeAlias = Callable[[int, float], dict[str, float]]
_ROUNDS, _SECONDS = 3, 4.0
_WARM_UP_S: Final = 1.0
_WORDS: Final = (
    "compare explain chart picture table numbers second answer invoice total claim provider window "
    "date river harbour winter letter order reason"
).split()


def rows(single: Path, config: Path, checkpoint: Path) -> Iterator[Row]:
    """Both sides by turns, each alone on the machine while it is asked.

    Parameters
    ----------
    single, config : Path
        Runtime configs that encode with one thread, and with one per processor.
    checkpoint : Path
        The ancestor's weights.
    """
    with _asked("routed", single, 1) as ours, _asked("ancestor", checkpoint, 1) as other:
        yield _one_at_a_time(ours, other, "one thread each")
    with _asked("routed", config) as ours, _asked("ancestor", checkpoint) as other:
        yield _one_at_a_time(ours, other, "all cores")
        rates = [[ask(TOGETHER, _SECONDS)["rate"] for ask in (ours, other)] for _ in range(_ROUNDS)]
    mine, theirs = (statistics.median(one) for one in zip(*rates, strict=True))
    what = f"whole decisions/s (text), {TOGETHER} at a time, all cores"
    yield Row(what, f"{mine:.0f}", f"{theirs:.1f}", mine / theirs, MORE_TOGETHER)


def _one_at_a_time(ours: Ask, other: Ask, said: str) -> Row:
    for ask in (ours, other):
        ask(TOGETHER, _WARM_UP_S)
    seen = [[ask(1, _SECONDS)["p50_s"] for ask in (ours, other)] for _ in range(_ROUNDS)]
    mine, theirs = (statistics.median(one) for one in zip(*seen, strict=True))
    what = f"whole decision (text), p50, one at a time, {said}"
    return Row(what, f"{mine * 1e3:.2f} ms", f"{theirs * 1e3:.1f} ms", theirs / mine, FASTER_ALONE)


@contextmanager
def _asked(side: str, place: Path, threads: int | None = None) -> Iterator[Ask]:
    """Run one side while the block runs; what is given asks it. None: as many as libraries take."""
    limits = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    environ = {key: value for key, value in os.environ.items() if key not in limits}
    if threads is not None:
        environ |= dict.fromkeys(limits, str(threads))
    with subprocess.Popen(  # noqa: S603  our own program
        [sys.executable, "-m", "encoding_parts.whole", side, str(place)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[1],
        env=environ,
    ) as process:

        def ask(concurrency: int, seconds: float) -> dict[str, float]:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(f"{concurrency} {seconds}\n")
            process.stdin.flush()
            found: dict[str, float] = json.loads(process.stdout.readline())
            return found

        yield ask


def text_of(number: int) -> str:
    """Return a text of about 20 tokens that no other number has."""
    chosen = [_WORDS[(number * step + step) % len(_WORDS)] for step in range(1, 13)]
    return f"Please {' '.join(chosen)} number {number}."


# ---------------------------------------------------------------------- in the process


def routed(config: str) -> Callable[[int, float], dict[str, float]]:
    """Return what decides as the service does."""
    from router_runtime import ModelRouter
    from router_runtime.config import load_config
    from router_runtime.messages import query_from_messages, request_requirements
    from router_runtime.service.deciding import Decider
    from router_runtime.service.sessions import Sessions
    from router_runtime.service.values import ANONYMOUS, Controls

    settled = load_config(config)
    router = ModelRouter.from_config(settled)
    numbers = count()

    async def asked(concurrency: int, seconds: float) -> dict[str, float]:
        decider = Decider(
            router,
            settled,
            resting=lambda _: False,
            sessions=Sessions(settled.service.stickiness, clock=time.monotonic),
            clock=time.monotonic,
        )
        end, times = time.perf_counter() + seconds, list[float]()

        async def one_after_the_other() -> None:
            while (started := time.perf_counter()) < end:
                body = {"messages": [{"role": "user", "content": text_of(next(numbers))}]}
                query = query_from_messages(
                    body["messages"],
                    rule=router.artifact.text,
                    limits=router.limits,
                    requirements=request_requirements(body),
                )
                decided = await decider.decide(query, Controls(), ANONYMOUS)
                if decided.cached or decided.decision is None:
                    raise RuntimeError("a decision was not made")
                times.append(time.perf_counter() - started)

        started = time.perf_counter()
        await asyncio.gather(*(one_after_the_other() for _ in range(concurrency)))
        elapsed = time.perf_counter() - started
        decider.close()
        return _told(times, elapsed)

    return lambda concurrency, seconds: asyncio.run(asked(concurrency, seconds))


def ancestor(checkpoint: str) -> Callable[[int, float], dict[str, float]]:
    """Return what decides as LLM Router v2 does, by threads that wait for one another."""
    import torch

    from router_runtime.prediction.heads.network import RouterNetwork
    from router_runtime.weights import torch_setup  # noqa: F401  makes torchvision importable

    # isort: split
    import open_clip

    model = open_clip.create_model(NAME, pretrained=checkpoint).eval()
    tokenize = open_clip.get_tokenizer(NAME)
    network = RouterNetwork(1024, 3, hidden_dims=(512, 256), dropout=0.4).eval()
    numbers, lock = count(), threading.Lock()

    def decide(text: str) -> int:
        with torch.no_grad():
            vector = model.encode_text(tokenize([text])).numpy()
            picture = torch.zeros(1, 512).numpy()
            x = torch.cat([torch.FloatTensor(vector), torch.FloatTensor(picture)], dim=1)
            network.eval()
            return int(network(x).numpy().argmax(axis=1)[0])

    def asked(concurrency: int, seconds: float) -> dict[str, float]:
        end, times = time.perf_counter() + seconds, list[float]()

        def one_after_the_other() -> None:
            while (started := time.perf_counter()) < end:
                with lock:
                    decide(text_of(next(numbers)))
                times.append(time.perf_counter() - started)

        started = time.perf_counter()
        threads = [threading.Thread(target=one_after_the_other) for _ in range(concurrency)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return _told(times, time.perf_counter() - started)

    return asked


def _told(times: Sequence[float], elapsed: float) -> dict[str, float]:
    return {"rate": len(times) / elapsed, "p50_s": statistics.median(times)}


def main() -> None:
    sides: dict[str, Any] = {"routed": routed, "ancestor": ancestor}
    ask = sides[sys.argv[1]](sys.argv[2])
    for line in sys.stdin:
        concurrency, seconds = line.split()
        print(json.dumps(ask(int(concurrency), float(seconds))), flush=True)


if __name__ == "__main__":
    main()
