"""What many LoRA experts on one base model cost, and that no answer is another's.

    python tests/benchmarks/experts.py [--requests 10000] [--check] [--json]

On a tiny Llama, on one core: how long it takes to go from one adapter to another, tokens per second
and memory with 1, 8 and 64 adapters, beside PEFT's own ``set_adapter``; mixed batches beside one
batch per adapter; and how many of ``--requests`` concurrent requests from 16 threads got an answer
that was not their adapter's. Each adapter of that last part was trained to answer with its own
words. ``--check`` makes the exit status 1 if a target is missed.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from experts_parts import making, mixing, switching
from labelling_parts.table import Row, print_table

COUNTS = (1, 8, 64)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; return 1 if ``--check`` is given and a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--requests", type=int, default=10_000, help="of the mix-up test")
    parser.add_argument("--check", action="store_true", help="fail where a target is missed")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    options = parser.parse_args(arguments)
    making.torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="experts-") as folder:
        rows = _measured(Path(folder), options.requests)
    if options.json:
        print(json.dumps([asdict(row) | {"met": row.met} for row in rows], indent=2))
    else:
        print_table(rows)
    return int(options.check and any(row.met is False for row in rows))


def _measured(folder: Path, requests: int) -> list[Row]:
    base = making.make_llama(folder / "llama")
    adapter = making.random_adapter(base, folder / "adapter")
    rows: list[Row] = []
    for count in COUNTS:
        rows += switching.measure(base, adapter, count=count).rows()
    trained = {
        name: making.train_adapter(base, folder / name, answer=words)
        for name, words in making.WORDS.items()
    }
    return rows + mixing.measure(base, trained, making.WORDS, requests=requests).rows()


if __name__ == "__main__":
    sys.exit(main())
