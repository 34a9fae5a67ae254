"""A whole decision in process, beside what LiteLLM's proxy adds to a request that it passes on.

python -m service_parts.decision {"calls": 2000, "core": 0}
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from labelling_parts.machine import cores
from labelling_parts.table import Row

from service_parts.compare import MASTER_KEY, litellm_proxy
from service_parts.servers import environment, module, run_load
from service_parts.servers import upstream as serve_upstream

P50_MS, P99_MS = 2.0, 5.0
WORDS, CALLS = 200, 3000
_WIDTHS = (512, 256, 128)
_ROUNDS = 3


def measure(folder: Path, *, litellm: Path | None) -> list[Row]:
    """Decide, then ask LiteLLM, by turns; each alone on one core, and its load on the other."""
    own_core, load_core = cores()
    decided, added = [], []
    with serve_upstream(core=load_core) as url:
        load = {"host": "127.0.0.1", "model": "fixed", "warm_up": 30, "connections": 1}
        load |= {"stream": False, "core": load_core, "timeout_s": 600}
        for number in range(_ROUNDS):
            decided.append(_decided(own_core))
            if litellm is None:
                continue
            straight = {"port": int(url.rpartition(":")[2]), "key": None, "requests": 1000}
            place = folder / str(number)
            place.mkdir()
            with litellm_proxy(litellm, url, place, core=own_core) as server:
                through = {"port": server.port, "key": MASTER_KEY, "requests": 200}
                seconds = [run_load(load | how)["p50_s"] for how in (through, straight)]
            added.append(seconds[0] - seconds[1])
    p50_ms, p99_ms = (1e3 * value for value in np.median(decided, axis=0))
    other = f"{1e3 * np.median(added):.1f} ms" if added else ""
    what = f"decision, embedded, {WORDS} words"
    return [
        Row(
            f"{what}, p50 (ms), beside LiteLLM's overhead",
            f"{p50_ms:.2f} ms", other, p50_ms, P50_MS, at_most=True,
        ),
        Row(f"{what}, p99 (ms)", f"{p99_ms:.2f} ms", "", p99_ms, P99_MS, at_most=True),
    ]  # fmt: skip


def _decided(core: int | None) -> tuple[float, float]:
    """Return seconds at the median and at 99 %, of decisions in a process of its own."""
    done = subprocess.run(  # noqa: S603 - our own module
        module("decision", {"calls": CALLS, "core": core}),
        env=environment(), stdout=subprocess.PIPE, check=True, text=True,
    )  # fmt: skip
    found = json.loads(done.stdout)
    return found["p50_s"], found["p99_s"]


def main() -> None:
    settings = json.loads(sys.argv[1])
    if settings["core"] is not None:
        os.sched_setaffinity(0, {settings["core"]})
    from speed import routed_artifact  # PyTorch, for random weights alone

    with tempfile.TemporaryDirectory() as folder:
        router, queries = routed_artifact(Path(folder) / "artifact", _WIDTHS)
    words = sorted({word for query in queries for word in query.text.split()})
    rng = np.random.default_rng(0)
    times = []
    for number in range(settings["calls"] + 100):
        text = " ".join(words[i] for i in rng.integers(0, len(words), WORDS))
        started = time.perf_counter()
        router.decide(text)
        if number >= 100:  # the first warm up
            times.append(time.perf_counter() - started)
    p50, p99 = np.quantile(times, [0.5, 0.99])
    print(json.dumps({"p50_s": p50, "p99_s": p99}))


if __name__ == "__main__":
    main()
