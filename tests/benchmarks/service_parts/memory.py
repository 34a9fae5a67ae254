"""Resident memory of the service over many requests, and its slope."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from labelling_parts.machine import cores
from labelling_parts.table import Row

from service_parts.servers import run_load, upstream
from service_parts.site import make_site

MOST_MIB = 250.0
MOST_GROWTH = 2.0  # MiB per 10,000 requests, once everything is warm


@dataclass(frozen=True)
class Memory:
    """Resident MiB after so many requests each."""

    requests: tuple[int, ...]
    resident_mib: tuple[float, ...]

    @property
    def slope(self) -> float:
        """MiB per 10,000 requests, over the second half."""
        half = len(self.requests) // 2
        return float(np.polyfit(self.requests[half:], self.resident_mib[half:], 1)[0] * 10_000)

    def rows(self) -> list[Row]:
        """Return the table's lines."""
        last, n = self.resident_mib[-1], self.requests[-1]
        return [
            Row(f"MiB resident after {n:,} requests", f"{last:.0f}", "", last, MOST_MIB, True),
            Row("MiB more per 10,000 requests, second half", "", "", self.slope, MOST_GROWTH, True),
        ]


def measure(artifact: Path, folder: Path, *, requests: int, steps: int = 10) -> Memory:
    """Send requests in steps, half of them streamed, and read the memory after each."""
    ours_core, load_core = cores()
    counts, found = [], []
    with upstream(core=load_core) as url:
        site = make_site(folder, artifact=artifact, base_url=f"{url}/v1", model="fixed")
        with site.serving(core=ours_core) as server:
            for step in range(steps):
                for streamed in (False, True):
                    run_load(
                        {
                            "host": "127.0.0.1",
                            "port": site.port,
                            "key": site.key,
                            "model": "auto",
                            "requests": requests // steps // 2,
                            "warm_up": 0,
                            "connections": 16,
                            "stream": streamed,
                            "core": load_core,
                            "timeout_s": 600,
                        }
                    )
                counts.append(requests // steps * (step + 1))
                found.append(server.resident_bytes() / 2**20)
    return Memory(tuple(counts), tuple(found))
