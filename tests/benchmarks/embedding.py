"""Bulk embedding from picture files, as a share of what the encoder alone can do, in one run.

    python tests/benchmarks/embedding.py [--pictures 192] [--precision fp32] [--check] [--json]

The encoder alone is CLIP's picture half (ViT-B/32 exported to ONNX, random weights: speed does not
depend on them) on tensors that are ready. Against it stand the two halves of ``router-train embed``
on JPEG and PNG files of 1280 x 800 pixels: reading rows with their pictures, each decoded once to
prove that it does, and turning them into features on disk through the cache of vectors. All use
every processor, and the clock counts, in alternating blocks of which the median pair counts. What
is decoded takes processors from the encoder, so that the share is bounded by what a picture costs
to decode twice and to encode: the target is that of fp32, and int8, which encodes in a third of the
time, is told for comparison. Peak memory is compared between some pictures and four times as many,
each in a process of its own. ``--check`` makes the exit status 1 if a target is missed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
from embedding_parts.files import write_files
from embedding_parts.memory import peak_mb
from embedding_parts.work import Bench, embed, encode_alone, export, opened, read_files
from labelling_parts.table import Row, print_table

from router_runtime.prediction.encoders.pictures_ahead import processors

SHARE = 0.9
GROWTH_MB = 150.0  # of encoded files and what they are read with, 96 pictures against 384
BLOCKS = 3


def timed(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def shares(bench: Bench, pictures: Path, folder: Path, n: int) -> list[Row]:
    """Encoding alone, embedding from pictures in memory, and all from the files, by turns."""
    pixels = np.random.default_rng(0).normal(size=(32, 3, 224, 224)).astype(np.float32)
    queries = read_files(pictures)
    encode_alone(bench, pixels, 32)  # warm up
    alone, embedding, whole = [], [], []
    for block in range(BLOCKS):
        alone.append(timed(lambda: encode_alone(bench, pixels, n)))
        place = folder / f"embedding-{block}"
        embedding.append(timed(lambda place=place: embed(bench, queries, place)))
        place = folder / f"whole-{block}"
        whole.append(timed(lambda place=place: embed(bench, read_files(pictures), place)))
    rate = n / statistics.median(alone)
    rows = []
    must = SHARE if bench.precision == "fp32" else None
    for what, seconds, target in (
        ("decode, encode and write", embedding, None),
        ("the same with reading and checking the files", whole, must),
    ):
        share = statistics.median(a / b for a, b in zip(alone, seconds, strict=True))
        ours = f"{n / statistics.median(seconds):.1f}/s"
        rows.append(
            Row(
                f"{what}, {bench.precision}, of the encoder's", ours, f"{rate:.1f}/s", share, target
            )
        )
    return rows


def growth(bench: Bench, pictures: Path, n: int) -> Row:
    few, many = (peak_mb(bench, pictures, count) for count in (n // 4, n))
    what = f"memory, MB more for {n} pictures than for {n // 4}"
    return Row(what, f"{many:.0f} MB", f"{few:.0f} MB", many - few, GROWTH_MB, at_most=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pictures", type=int, default=192)
    parser.add_argument("--precision", choices=["fp32", "int8"], default="fp32")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a target is missed")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pictures = write_files(folder / "pictures", arguments.pictures)
        exported = export(folder, arguments.precision)
        bench = opened(exported, arguments.precision, threads=processors())
        rows = shares(bench, pictures, folder, arguments.pictures)
        rows.append(growth(bench, pictures, arguments.pictures))
    if arguments.json:
        print(json.dumps([asdict(row) | {"met": row.met} for row in rows], indent=2))
    else:
        print_table(rows)
    return int(arguments.check and any(row.met is False for row in rows))


if __name__ == "__main__":
    sys.exit(main())
