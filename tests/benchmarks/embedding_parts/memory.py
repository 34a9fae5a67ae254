"""Peak resident memory of embedding some pictures, in a process of its own.

python -m embedding_parts.memory MODEL WEIGHTS ENCODERS PRECISION ROWS N
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from embedding_parts.work import Bench, embed, opened, read_files
from router_runtime.prediction.encoders.specs import ClipSpec


def peak_mb(bench: Bench, rows: Path, n: int) -> float:
    """Embed the first ``n`` pictures elsewhere; return the most megabytes held at a time."""
    arguments = [bench.spec.model, bench.spec.pretrained, bench.exported, bench.precision, rows, n]
    done = subprocess.run(  # noqa: S603 - our own interpreter on this file
        [sys.executable, "-m", "embedding_parts.memory", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[1],
    )
    return float(done.stdout)


def main() -> None:
    model, weights, exported, precision, rows, n = sys.argv[1:]
    bench = opened(
        (ClipSpec(model=model, pretrained=weights), Path(exported)), precision, threads=1
    )
    some = Path(rows).with_name(f"first-{n}.jsonl")  # the others are not even read
    lines = Path(rows).read_text(encoding="utf-8").splitlines(keepends=True)
    some.write_text("".join(lines[: int(n)]), encoding="utf-8")
    queries = read_files(some)
    with tempfile.TemporaryDirectory() as folder:
        embed(bench, queries, Path(folder) / "features")
    # Not ru_maxrss: a child begins with its parent's.
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    print(next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")))


if __name__ == "__main__":
    main()
