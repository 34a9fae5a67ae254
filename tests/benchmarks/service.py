"""What the service costs, what it withstands: beside LiteLLM's proxy and a bare pass-through.

    python tests/benchmarks/service.py --litellm ENV/bin/litellm [--only compare] [--check]

``compare``: requests/s, streams/s and added latency, every gateway alone on one core, the load and
the upstream on the other; ours routes every request (embedded encoder, no cache) with keys, spend
and store on. ``decision``: a decision in process, and what LiteLLM's proxy adds to a request.
``memory``: resident memory over 20,000 requests. ``overload``: five times what it can do. ``soak``:
minutes at 70 % of that with faults upstream; the spend in the store against the provider's own
ledger. ``faults``: what is answered, refused and lost when parts are killed.

LiteLLM is installed by ``python -m venv ENV && ENV/bin/pip install 'litellm[proxy]==1.106.2'``;
without ``--litellm`` its lines are left out, and a note says so. Linux only; needs two cores and
the artifact of ``make quickstart``.
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
from dataclasses import asdict
from pathlib import Path

from labelling_parts.table import Row, print_table
from service_parts import compare, decision, faults, memory, soak
from service_parts.site import default_artifact

PARTS = ("compare", "decision", "memory", "overload", "soak", "faults")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; return 1 if ``--check`` is given and a target is missed."""
    options = _parser().parse_args(arguments)
    rows: list[Row] = []
    notes: list[str] = []
    for part in PARTS if options.only is None else [options.only]:
        with tempfile.TemporaryDirectory(prefix=f"service-{part}-") as folder:
            found, told = _run(part, options, Path(folder))
        rows += found
        notes += told
    if options.json:
        print(json.dumps({"rows": [asdict(r) | {"met": r.met} for r in rows], "notes": notes}))
    else:
        print_table(rows)
        print(*notes, sep="\n")
    return int(options.check and any(row.met is False for row in rows))


def _run(part: str, options: argparse.Namespace, folder: Path) -> tuple[list[Row], list[str]]:
    if part == "memory":
        return memory.measure(options.artifact, folder, requests=options.memory_requests).rows(), []
    if part == "overload":
        return soak.overload(options.artifact, folder).rows(), []
    if part == "soak":
        soaked = soak.soak(options.artifact, folder, seconds=options.soak_seconds)
        return soaked.rows(), soaked.notes()
    if part == "faults":
        found = faults.run(options.artifact, folder)
        return faults.rows(found), faults.notes(found)
    notes = [] if options.litellm else ["LiteLLM is left out: give its command with --litellm."]
    if part == "decision":
        return decision.measure(folder, litellm=options.litellm), notes
    settings = compare.Comparison(
        artifact=options.artifact,
        rounds=options.rounds,
        requests=options.requests,
        litellm=options.litellm,
    )
    return compare.compare(settings, folder).rows(), notes


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--only", choices=PARTS, help="one part; default: all")
    add("--artifact", type=Path, default=default_artifact(), help="of the simulated workload")
    add("--litellm", type=Path, help="LiteLLM's command")
    add("--rounds", type=int, default=3, help="of the comparison")
    add("--requests", type=int, default=2000, help="per measurement")
    add("--memory-requests", type=int, default=20_000, help="of the memory part")
    add("--soak-seconds", type=float, default=600.0, help="of the soak")
    add("--check", action="store_true", help="exit with 1 if a target is missed")
    add("--json", action="store_true", help="print JSON instead of a table")
    return parser


if __name__ == "__main__":
    sys.exit(main())
