"""Requests, streams and added latency: ours, LiteLLM's proxy and a bare pass-through, in one run.

Each gateway runs alone on one core; the load and the upstream share the other. Rounds alternate, so
that whatever else the machine does meets all alike; medians over the rounds are told.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from labelling_parts.machine import cores
from labelling_parts.table import Row

from service_parts.servers import Server, environment, free_port, module, run_load, running
from service_parts.servers import upstream as serve_upstream
from service_parts.site import DIRECT, make_site

LITELLM_VERSION = "1.106.2"
MORE_REQUESTS, MORE_STREAMS = 5.0, 10.0
ADDED_LATENCY = 0.25
OF_BARE = 0.4
MASTER_KEY = "sk-benchmark"


@dataclass(frozen=True)
class Comparison:
    """How much is sent.

    Parameters
    ----------
    rounds : int
    requests : int
        Per measurement of a fast gateway; LiteLLM gets a tenth.
    concurrencies : tuple of int
    chunks : int
        Events of a stream with text.
    litellm : Path or None
        LiteLLM's command in an environment of its own; None: left out.
    """

    artifact: Path
    rounds: int = 3
    requests: int = 2000
    concurrencies: tuple[int, ...] = (1, 8, 32)
    chunks: int = 20
    litellm: Path | None = None


@dataclass(frozen=True)
class Figures:
    """Medians by (gateway, concurrency, streamed): rate in 1/s and median seconds."""

    rate: dict[tuple[str, int, bool], float]
    p50_s: dict[tuple[str, int, bool], float]
    settings: Comparison

    def rows(self) -> list[Row]:
        """Return the table; without LiteLLM its lines are absent."""
        most = max(self.settings.concurrencies)
        found = [self._share_of_bare(most)]
        if self.settings.litellm is None:
            return found
        found.insert(0, self._faster(most, streamed=False, target=MORE_REQUESTS))
        found.insert(1, self._faster(most, streamed=True, target=MORE_STREAMS))
        found += [self._added(concurrency) for concurrency in self.settings.concurrencies]
        return found

    def _faster(self, concurrency: int, *, streamed: bool, target: float) -> Row:
        ours = self.rate["ours", concurrency, streamed]
        other = self.rate["litellm", concurrency, streamed]
        what = "streams" if streamed else "requests"
        return Row(
            f"{what}/s routed, {concurrency} connections, over LiteLLM",
            f"{ours:.0f}",
            f"{other:.0f}",
            ours / other,
            target,
        )

    def _added(self, concurrency: int) -> Row:
        straight = self.p50_s["upstream", concurrency, False]
        ours = self.p50_s["ours", concurrency, False] - straight
        other = self.p50_s["litellm", concurrency, False] - straight
        return Row(
            f"added p50, {concurrency} connections, of LiteLLM's",
            f"{1e3 * ours:.2f} ms",
            f"{1e3 * other:.1f} ms",
            ours / other,
            ADDED_LATENCY,
            at_most=True,
        )

    def _share_of_bare(self, concurrency: int) -> Row:
        ours = self.rate["ours, by name", concurrency, False]
        bare = self.rate["bare", concurrency, False]
        return Row(
            f"pass-through requests/s, {concurrency} connections, of the bare one",
            f"{ours:.0f}",
            f"{bare:.0f}",
            ours / bare,
            OF_BARE,
        )


def compare(settings: Comparison, folder: Path) -> Figures:
    """Measure all contestants in alternating rounds."""
    rate: dict[tuple[str, int, bool], list[float]] = defaultdict(list)
    p50_s: dict[tuple[str, int, bool], list[float]] = defaultdict(list)
    ours_core, load_core = cores()
    with serve_upstream(core=load_core, chunks=settings.chunks) as url:
        for number in range(settings.rounds):
            for name, model, slow in _contestants(settings):
                place = folder / f"{number}-{name.replace(', ', '-').replace(' ', '-')}"
                place.mkdir()
                with _running(name, url, settings, place, core=ours_core) as (port, key):
                    for concurrency in settings.concurrencies:
                        for streamed in (False, True):
                            found = run_load(
                                {
                                    "host": "127.0.0.1",
                                    "port": port,
                                    "key": key,
                                    "model": model,
                                    "requests": settings.requests // (10 if slow else 1),
                                    "warm_up": 30,
                                    "connections": concurrency,
                                    "stream": streamed,
                                    "core": load_core,
                                    "timeout_s": 600,
                                }
                            )
                            _check(name, found)
                            rate[name, concurrency, streamed].append(found["rate"])
                            p50_s[name, concurrency, streamed].append(found["p50_s"])
    return Figures(_medians(rate), _medians(p50_s), settings)


def _contestants(settings: Comparison) -> Iterator[tuple[str, str, bool]]:
    yield "upstream", "fixed", False
    yield "ours", "auto", False
    yield "ours, by name", DIRECT, False
    yield "bare", "fixed", False
    if settings.litellm is not None:
        yield "litellm", "fixed", True


@contextmanager
def _running(
    name: str, url: str, settings: Comparison, folder: Path, *, core: int | None
) -> Iterator[tuple[int, str | None]]:
    if name == "upstream":
        yield int(url.rpartition(":")[2]), None
    elif name == "bare":
        port = free_port()
        command = module("bare", {"upstream": url, "port": port, "core": core})
        log = folder / "log"
        with running(name, command, port=port, ready="/", core=core, log=log):
            yield port, None
    elif name == "litellm":
        assert settings.litellm is not None
        with litellm_proxy(settings.litellm, url, folder, core=core) as server:
            yield server.port, MASTER_KEY
    else:
        site = make_site(
            folder,
            artifact=settings.artifact,
            base_url=f"{url}/v1",
            model="fixed",
            service={"batching": {"cache_entries": 0}},
        )
        with site.serving(core=core):
            yield site.port, site.key


@contextmanager
def litellm_proxy(program: Path, url: str, folder: Path, *, core: int | None) -> Iterator[Server]:
    """Run LiteLLM's proxy in front of the upstream at ``url`` while the block runs."""
    port = free_port()
    config = folder / "litellm.yml"
    params = {"model": "openai/fixed", "api_base": f"{url}/v1", "api_key": "none"}
    content = {
        "model_list": [{"model_name": "fixed", "litellm_params": params}],
        "general_settings": {"master_key": MASTER_KEY},
        "litellm_settings": {"telemetry": False},
    }
    config.write_text(yaml.safe_dump(content), encoding="utf-8")
    command = [str(program), "--config", str(config), "--port", str(port), "--num_workers", "1"]
    with running(
        "litellm",
        [*command, "--host", "127.0.0.1"],
        port=port,
        ready="/health/liveliness",
        core=core,
        log=folder / "log",
        env=environment(LITELLM_LOCAL_MODEL_COST_MAP="True"),
        wait_s=240,
    ) as server:
        yield server


def _check(name: str, found: dict[str, Any]) -> None:
    if set(found["statuses"]) != {"200"} or found["cut"]:
        raise RuntimeError(f"{name} did not answer all requests: {found}")


def _medians(
    values: dict[tuple[str, int, bool], list[float]],
) -> dict[tuple[str, int, bool], float]:
    return {key: statistics.median(found) for key, found in values.items()}
