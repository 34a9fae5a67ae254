"""A process that asks a server about many samples, forked anew for each line on standard input.

Arguments: server URL, work folder, file of acknowledged answers, number of samples, concurrency.
Each line on standard input starts one run, whose process id, and later exit status, is printed.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys

import router_runtime.targets.openai  # noqa: F401 - before forking, so that runs start at once
from router_runtime.targets.registry import build_target
from router_runtime.types import Query
from router_training.labelling.answer_store import AnswerStore
from router_training.labelling.config import LabelConfig
from router_training.labelling.responses import collect, live_asker
from router_training.labelling.samples import LabelSample
from router_training.samples import Sample

URL, FOLDER, ACKNOWLEDGED, N_SAMPLES, CONCURRENCY = sys.argv[1:]
CONFIG = LabelConfig.model_validate(
    {
        "data": {"path": "unused"},
        "candidates": [
            {
                "id": "m",
                "target": {
                    "kind": "compatible",
                    "base_url": URL,
                    "max_concurrency": int(CONCURRENCY),
                },
                "price": {"input_mtok": 1, "output_mtok": 1},
            }
        ],
        "scoring": {"scorers": {"e": "exact"}, "default": ["e"]},
    }
)


class Acknowledging:
    """Writes down each answer once it was returned, as a caller that relies on it would."""

    def __init__(self, asker):
        self.asker = asker
        self.file = os.open(ACKNOWLEDGED, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    async def ask(self, model_id, call, *, repeat=0):
        outcome = await self.asker.ask(model_id, call, repeat=repeat)
        os.write(self.file, f"{outcome.key} {outcome.text}\n".encode())
        return outcome


def samples():
    for number in range(int(N_SAMPLES)):
        text = f"question {number}"
        yield LabelSample(Sample(str(number), Query(text), None, text, None, text))


async def main():
    """Ask everything that was not asked yet."""
    with AnswerStore.open(FOLDER, holder="asking_process") as store:
        targets = {"m": build_target("m", CONFIG.candidates[0].target)}
        async with live_asker(CONFIG, targets, store) as asker:
            summary = await collect(samples, CONFIG, Acknowledging(asker))
            assert summary.pending == 0


for _ in sys.stdin:
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        status = 1
        try:
            asyncio.run(main())
            status = 0
        except KeyboardInterrupt:
            status = 130
        finally:
            os._exit(status)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
