"""What a process used, and how busy the machine was besides it. Linux only."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_BENCHMARKS = Path(__file__).resolve().parents[1]
_TICKS = os.sysconf("SC_CLK_TCK")


def run_part(name: str, settings: dict[str, Any], *, cache: Path) -> dict[str, Any]:
    """Run ``labelling_parts.NAME`` in a process of its own and return what it prints, as JSON.

    Parameters
    ----------
    name : str
    settings : dict
        Its argument, as JSON.
    cache : Path
        Where Hugging Face libraries keep what they like.
    """
    done = subprocess.run(  # noqa: S603 - our own interpreter on our own module
        _command(name, settings), env=_environment(cache), stdout=subprocess.PIPE, check=True
    )
    return dict(json.loads(done.stdout))


@dataclass(frozen=True)
class Provider:
    """A simulated provider in a process of its own."""

    base_url: str
    pid: int


@contextmanager
def provider(config: Path, *, core: int | None, cache: Path) -> Iterator[Provider]:
    """Serve a simulator's config while the block runs; it also ends when this process dies."""
    settings = {"config": str(config), "core": core}
    with subprocess.Popen(  # noqa: S603 - our own interpreter on our own module
        _command("provider", settings),
        env=_environment(cache),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        try:
            base_url = process.stdout.readline().strip()
            if not base_url:
                raise RuntimeError("the simulator did not start; see its error above")
            yield Provider(base_url, process.pid)
        finally:
            process.stdin.close()


def _command(name: str, settings: dict[str, Any]) -> list[str]:
    return [sys.executable, "-m", f"labelling_parts.{name}", json.dumps(settings)]


def _environment(cache: Path) -> dict[str, str]:
    paths = [str(_BENCHMARKS), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "HF_HOME": str(cache),
        "HF_HUB_OFFLINE": "1",
    }


def cores() -> tuple[int | None, int | None]:
    """Return a core for the client and one for the provider; none where there is only one."""
    available = sorted(os.sched_getaffinity(0))
    return (available[0], available[1]) if len(available) > 1 else (None, None)


def pin(core: int | None) -> None:
    """Keep this process on one core."""
    if core is not None:
        os.sched_setaffinity(0, {core})


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


@dataclass(frozen=True)
class Busyness:
    """CPU seconds that all processes of the machine used so far, and that there were."""

    used: float
    available: float

    @classmethod
    def now(cls) -> Busyness:
        line = Path("/proc/stat").read_text(encoding="ascii").partition("\n")[0]
        user, nice, system, idle, iowait, *interrupts = (int(n) for n in line.split()[1:9])
        used = user + nice + system + sum(interrupts)
        return cls(used / _TICKS, (used + idle + iowait) / _TICKS)

    def others(self, own_seconds: float) -> float:
        """Return the share of the machine since then that was not ours, from 0 to 1."""
        now = Busyness.now()
        available = now.available - self.available
        return max(0.0, (now.used - self.used - own_seconds) / available) if available else 0.0
