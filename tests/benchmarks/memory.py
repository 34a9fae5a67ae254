"""How much memory fitting and predicting take when the features are larger than memory should be.

    python tests/benchmarks/memory.py [--rows 1000000] [--features 1024] [--folder FOLDER]

Writes a synthetic feature file (4 GB by default; deleted afterwards), fits one epoch of a network
on 60 % of it in a process of its own, and predicts every row. What counts is the anonymous memory,
which the process cannot do without; pages of the mapped file are also part of its resident set, but
the system drops them when it needs the room. Linux only.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

MODELS = ("a", "b", "c")
_CHUNK = 4096


def write(path: Path, rows: int, features: int) -> None:
    """Write standard normal features, chunk by chunk."""
    header = {"descr": "<f4", "fortran_order": False, "shape": (rows, features)}
    rng = np.random.default_rng(0)
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for start in range(0, rows, _CHUNK):
            n = min(_CHUNK, rows - start)
            file.write(rng.standard_normal((n, features), dtype=np.float32).data)


class Watch(threading.Thread):
    """Samples the process's resident memory until stopped, in bytes by kind."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak = {"RssAnon": 0, "RssFile": 0}
        self._stopped = threading.Event()

    def run(self) -> None:
        while not self._stopped.wait(0.01):
            self.sample()

    def sample(self) -> dict[str, int]:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        now = {name: int(value.split()[0]) * 1024 for name, value in _fields(lines)}
        for name in self.peak:
            self.peak[name] = max(self.peak[name], now[name])
        return now

    def stop(self) -> None:
        self._stopped.set()
        self.join()


def _fields(lines: list[str]) -> list[tuple[str, str]]:
    parts = [line.partition(":\t") for line in lines]
    return [(name, value) for name, _, value in parts if name in ("RssAnon", "RssFile")]


def measure(path: Path) -> dict[str, float]:
    """Fit and predict in this process; return seconds and peak bytes."""
    from router_training.fit_mlp import fit
    from router_training.fitting import FitData, MlpConfig
    from router_training.rows import Rows, predict

    X = np.load(path, mmap_mode="r")
    rng = np.random.default_rng(1)
    part = rng.choice(3, size=len(X), p=(0.6, 0.1, 0.3))
    Y = (rng.random((len(X), len(MODELS))) < 0.6).astype(np.float64)
    train, validation = np.flatnonzero(part == 0), np.flatnonzero(part == 1)
    data = FitData(Rows(X, train), Y[train], Rows(X, validation), Y[validation], MODELS)
    config = MlpConfig(hidden_dims=(64,), batch_size=128, epochs=1, device="cpu")
    watch = Watch()
    before = watch.sample()["RssAnon"]
    watch.start()
    started = time.perf_counter()
    head = fit(data, config, seed=0).head
    fitted = time.perf_counter()
    P = predict(head, Rows(X, np.arange(len(X))))
    done = time.perf_counter()
    watch.stop()
    assert np.isfinite(P).all()
    return {
        "x_bytes": X.nbytes,
        "anonymous_before": before,
        "anonymous_peak": watch.peak["RssAnon"],
        "file_peak": watch.peak["RssFile"],
        "fit_seconds": fitted - started,
        "predict_seconds": done - fitted,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--features", type=int, default=1024)
    parser.add_argument("--folder", type=Path, help="where the file is written; default: temporary")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure)))
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        path = Path(folder) / "features.npy"
        write(path, arguments.rows, arguments.features)
        done = subprocess.run(  # noqa: S603 - our own interpreter on this file
            [sys.executable, __file__, "--measure", str(path)],
            capture_output=True,
            text=True,
            check=True,
        )
    found = json.loads(done.stdout)
    mb = {name: value / 2**20 for name, value in found.items()}
    grown = mb["anonymous_peak"] - mb["anonymous_before"]
    print(f"features: {arguments.rows:,} x {arguments.features:,}, {mb['x_bytes']:,.0f} MiB")
    print(
        f"anonymous memory: {mb['anonymous_peak']:,.0f} MiB at its peak, {grown:,.0f} more than "
        f"before fitting = {grown / mb['x_bytes']:.1%} of the features"
    )
    print(f"mapped file pages resident: up to {mb['file_peak']:,.0f} MiB, reclaimable")
    print(f"fit {found['fit_seconds']:.0f} s, predict {found['predict_seconds']:.0f} s")


if __name__ == "__main__":
    main()
