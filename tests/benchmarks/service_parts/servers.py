"""Start and stop the gateways that are compared, each in a process of its own on one core."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_BENCHMARKS = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Server:
    """A process that answers at ``127.0.0.1:port``."""

    name: str
    port: int
    process: subprocess.Popen[str]
    key: str | None = None

    @property
    def pid(self) -> int:
        return self.process.pid

    def resident_bytes(self) -> int:
        """Return the resident memory of the process and its children."""
        return sum(_resident(pid) for pid in _family(self.pid))


def _family(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    return [pid, *(each for child in children for each in _family(int(child)))]


def _resident(pid: int) -> int:
    fields = Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")


def free_port() -> int:
    """Return a port that was free a moment ago."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def environment(**extra: str) -> dict[str, str]:
    """Return this process's environment with one thread of linear algebra and our path."""
    paths = [str(_BENCHMARKS), *filter(None, [os.environ.get("PYTHONPATH")])]
    one = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **one, **extra}


@contextmanager
def running(
    name: str,
    command: list[str],
    *,
    port: int,
    ready: str,
    core: int | None,
    log: Path,
    key: str | None = None,
    env: dict[str, str] | None = None,
    wait_s: float = 120.0,
) -> Iterator[Server]:
    """Run a server while the block runs, kept on one core; it is ready when ``ready`` answers."""
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(  # noqa: S603 - our own commands
            command, env=env or environment(), stdout=output, stderr=output, text=True
        )
    if core is not None:
        os.sched_setaffinity(process.pid, {core})
    server = Server(name, port, process, key)
    try:
        _wait(f"http://127.0.0.1:{port}{ready}", process, name=name, log=log, wait_s=wait_s)
        yield server
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)


def _wait(url: str, process: subprocess.Popen[str], *, name: str, log: Path, wait_s: float) -> None:
    end = time.monotonic() + wait_s
    while time.monotonic() < end and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=2):  # noqa: S310 - loopback
                return
        except urllib.error.HTTPError:
            return
        except OSError:
            time.sleep(0.1)
    raise RuntimeError(f"{name} did not start:\n{log.read_text(encoding='utf-8')[-2000:]}")


@contextmanager
def upstream(*, core: int | None, chunks: int = 20, delay_s: float = 0.0) -> Iterator[str]:
    """Serve fixed answers while the block runs; yields the base URL without ``/v1``."""
    settings = {"core": core, "chunks": chunks, "delay_s": delay_s}
    with subprocess.Popen(  # noqa: S603 - our own module
        module("upstream", settings),
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.stdin.close()


def module(name: str, settings: dict[str, Any]) -> list[str]:
    """Return the command that runs ``service_parts.NAME`` with JSON settings."""
    return [sys.executable, "-m", f"service_parts.{name}", json.dumps(settings)]


def run_load(settings: dict[str, Any]) -> dict[str, Any]:
    """Send a load and return what it measured."""
    done = subprocess.run(  # noqa: S603 - our own module
        module("load", settings), env=environment(), stdout=subprocess.PIPE, check=True, text=True
    )
    return dict(json.loads(done.stdout))
