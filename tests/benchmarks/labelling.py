"""How fast labelling asks, and that its memory does not grow with the samples.

    python tests/benchmarks/labelling.py [--rows 10000,100000] [--check] [--json]

Throughput: 500 samples x 4 models at a simulated provider whose every answer takes 200 ms, with 64
calls in flight and every answer durable, beside the rate that this limit allows and beside a loop
that asks one call after another. Of several rounds the one counts in which other processes had the
least of the machine; all are told. Memory: all steps of labelling at several sizes, with answers
made in the process. ``--rows 10000,100000,1000000`` shows it at a million; every thousand rows
take 4 MB of disk meanwhile. ``--check`` makes the exit status 1 if a target is missed. Linux only.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path

from labelling_parts import footprint, throughput
from labelling_parts.table import Row, print_table

ROWS = (10_000, 100_000)
PARTS = ("throughput", "memory")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; return 1 if ``--check`` is given and a target is missed."""
    options = _parser().parse_args(arguments)
    fresh = partial(tempfile.TemporaryDirectory, prefix="labelling-", dir=options.folder)
    rows: list[Row] = []
    notes: list[str] = []
    details: dict[str, object] = {}
    if options.only != "memory":
        load = throughput.Load(
            **{each.name: getattr(options, each.name) for each in fields(throughput.Load)}
        )
        with fresh() as folder:
            asked = throughput.measure(load, Path(folder))
        rows += asked.rows()
        notes += asked.notes()
        details["throughput"] = asked.to_json()
    if options.only != "throughput":
        sizes = footprint.footprints(options.rows, models=options.memory_models, fresh=fresh)
        rows += footprint.rows(sizes)
        notes += footprint.notes(sizes)
        details["memory"] = [asdict(size) for size in sizes]
    _present(rows, notes, details, as_json=options.json)
    return int(options.check and any(row.met is False for row in rows))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--only", choices=PARTS, help="one part; default: both")
    load = throughput.Load()
    add("--samples", type=int, default=load.samples, help="of the throughput part")
    add("--models", type=int, default=load.models, help="of the throughput part")
    add("--per-model", type=int, default=load.per_model, help="calls in flight at each")
    add("--latency-s", type=float, default=load.latency_s, help="of every answer")
    add("--rounds", type=int, default=load.rounds, help="times that all calls are made")
    add("--one-by-one", type=int, default=load.one_by_one, help="calls of the sequential loop")
    add(
        "--unpinned",
        dest="pinned",
        action="store_false",
        help="do not keep asker and provider on a core each",
    )
    add("--rows", type=_sizes, default=ROWS, help="sizes of the memory part, with commas")
    add("--memory-models", type=int, default=2, help="candidates of the memory part")
    add("--folder", type=Path, help="where temporary folders are made")
    add("--check", action="store_true", help="exit with 1 if a target is missed")
    add("--json", action="store_true", help="print JSON instead of a table")
    return parser


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(int(size.replace("_", "")) for size in text.split(","))


def _present(
    rows: Sequence[Row], notes: Sequence[str], details: dict[str, object], *, as_json: bool
) -> None:
    if as_json:
        lines = [asdict(row) | {"met": row.met} for row in rows]
        print(json.dumps({"rows": lines, "notes": notes, **details}, indent=2))
        return
    print_table(rows)
    for note in notes:
        print(note)


if __name__ == "__main__":
    sys.exit(main())
