"""Minutes at 70 % of what the service can do, with faults upstream; and five times too much.

The soak's provider is the simulator, of whose calls 5 % meet one of 20 faults. Every answer must
be whole or an error as OpenAI words it, and what the store says was spent, where the provider
reported usage, must be what the provider's ledger says, to the last digit.
"""

from __future__ import annotations

import json
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from labelling_parts.machine import cores
from labelling_parts.table import Row

from service_parts.servers import Server, free_port, run_load, running, upstream
from service_parts.site import PRICES, Site, make_site, program

FAULTS = (
    *("reset", "reset_midway", "closed", "short_body", "chunked_cut_off", "bad_chunk", "not_http"),
    *("truncated_json", "invalid_utf8", "wrong_content_type", "bad_gzip", "html_page"),
    *("html_error_page", "empty_body", "json_list", "error_body_200"),
    *("status_429", "status_500", "status_503", "empty_choices"),
)
_FAULT_RATE = 0.05
_LOAD = 0.7


@dataclass(frozen=True)
class Soaked:
    """What the clients got and what the two books say.

    Parameters
    ----------
    capacity, rate : float
        Requests per second of a closed loop, and sent.
    answers : mapping
        ``whole``, ``error``, ``broken`` answers, and connections ``cut``.
    codes : mapping
        Of the errors.
    ledger_usd, stored_usd, estimated_usd : Decimal
        By the provider; in the store where usage was reported; and where it was not.
    """

    capacity: float
    rate: float
    answers: Counter[str]
    codes: dict[str, int]
    ledger_usd: Decimal
    stored_usd: Decimal
    estimated_usd: Decimal

    def rows(self) -> list[Row]:
        """Return the table's lines."""
        bad = self.answers["broken"] + self.answers["cut"]
        total = sum(self.answers.values())
        apart = abs(self.ledger_usd - self.stored_usd)
        share = f"{self.answers['whole'] / total:.2%} whole"
        return [
            Row(f"answers neither whole nor errors, of {total:,}", str(bad), share, bad, 0, True),
            Row(
                "USD stored apart from the provider's ledger",
                f"{self.stored_usd:.6f}",
                f"{self.ledger_usd:.6f}",
                float(apart),
                0.005,
                True,
            ),
        ]

    def notes(self) -> list[str]:
        """Return what the table does not say."""
        return [
            f"capacity {self.capacity:.0f}/s, sent {self.rate:.0f}/s; answers {dict(self.answers)},"
            f" errors {self.codes};"
            f" estimated beside: {self.estimated_usd:.6f} USD"
        ]


def soak(artifact: Path, folder: Path, *, seconds: float, connections: int = 64) -> Soaked:
    """Measure the capacity, then send 70 % of it for so long."""
    ours_core, load_core = cores()
    with _provider(folder, core=load_core) as provider:
        site = make_site(
            folder,
            artifact=artifact,
            base_url=f"http://127.0.0.1:{provider.port}/v1",
            model=None,
            target={"timeout_s": 10},
        )
        with site.serving(core=ours_core):
            load = _load(site, connections=connections, core=load_core)
            capacity = run_load({**load, "requests": 3000})["rate"]
            rate = _LOAD * capacity
            found = run_load(
                {
                    **load,
                    "requests": 10**9,
                    "seconds": seconds,
                    "rate": rate,
                    "timeout_s": seconds + 120,
                }
            )
            settled = _settle(provider)
        stored, estimated = _spent(site)
    answers = Counter(found["kinds"])
    answers["cut"] = found["cut"]
    return Soaked(capacity, found["rate"], answers, found["codes"], settled, stored, estimated)


@dataclass(frozen=True)
class Overloaded:
    """What became of five times too many requests, and how soon it was over."""

    capacity: float
    statuses: dict[str, int]
    broken: int
    p99_s: float
    recovered_s: float

    def rows(self) -> list[Row]:
        """Return the table's lines."""
        shed = sum(n for status, n in self.statuses.items() if status in ("429", "503"))
        other = sum(self.statuses.values()) - shed - self.statuses.get("200", 0) + self.broken
        told = f"{self.statuses.get('200', 0)} ok, {shed} shed"
        return [
            Row("answers at 5x that are neither served nor shed", str(other), told, other, 0, True),
            Row("p99 of those served, seconds", "", "", self.p99_s, 2.0, True),
            Row("seconds until served as before", "", "", self.recovered_s, 5.0, True),
        ]


def overload(artifact: Path, folder: Path, *, seconds: float = 15.0) -> Overloaded:
    """Measure the capacity, send five times that many at once, then wait for normal service."""
    ours_core, load_core = cores()
    with upstream(core=load_core, delay_s=0.05) as url:
        site = make_site(
            folder,
            artifact=artifact,
            base_url=f"{url}/v1",
            model="fixed",
            service={"requests": {"max_in_flight": 256}},
        )
        with site.serving(core=ours_core):
            load = _load(site, connections=64, core=load_core)
            calm = run_load({**load, "requests": 3000})
            found = run_load(
                {
                    **load,
                    "connections": 2000,
                    "requests": 10**9,
                    "seconds": seconds,
                    "rate": 5 * calm["rate"],
                    "warm_up": 0,
                    "nice": 10,  # the upstream on the same core goes first
                    "timeout_s": seconds + 60,
                }
            )
            ended = time.monotonic()
            while time.monotonic() < ended + 30:
                now = run_load({**load, "connections": 8, "requests": 100, "warm_up": 0})
                if set(now["statuses"]) == {"200"}:
                    break
            recovered = time.monotonic() - ended
    broken = found["kinds"].get("broken", 0) + found["cut"]
    return Overloaded(calm["rate"], found["statuses"], broken, found["p99_ok_s"], recovered)


def _load(site: Site, *, connections: int, core: int | None) -> dict[str, Any]:
    return {
        "host": "127.0.0.1",
        "port": site.port,
        "key": site.key,
        "model": "auto",
        "connections": connections,
        "mixed": True,
        "core": core,
        "timeout_s": 300,
    }


@contextmanager
def _provider(folder: Path, *, core: int | None) -> Iterator[Server]:
    model = {
        "latency": {"median_s": 0.02, "sigma": 0.3},
        "skills": {"default": [0.9, 0.5]},
        "errors": {"rate": _FAULT_RATE, "kinds": list(FAULTS)},
    }
    models = {
        name: {
            **model,
            "price": price,
            "modalities": ["text", "image"] if name.endswith("-vl") else ["text"],
        }
        for name, price in PRICES.items()
    }
    config = folder / "simulator.yml"
    config.write_text(json.dumps({"seed": 0, "models": models}), encoding="utf-8")  # YAML too
    port = free_port()
    command = [*program(), "simulate", str(config), "--port", str(port)]
    log = folder / "simulator.log"
    with running("simulator", command, port=port, ready="/v1/models", core=core, log=log) as server:
        yield server


def _settle(provider: Server) -> Decimal:
    """Return what the ledger says once no call is in flight."""
    while True:
        url = f"http://127.0.0.1:{provider.port}/simulator/ledger"
        with urllib.request.urlopen(url, timeout=10) as answer:
            ledger = json.load(answer)
        if not any(model["in_flight"] for model in ledger["models"].values()):
            return Decimal(ledger["cost_usd"])
        time.sleep(0.2)


def _spent(site: Site) -> tuple[Decimal, Decimal]:
    total = json.loads(site.ask("spend", "--json"))["total"]
    estimated = Decimal(total["estimated_usd"])
    return Decimal(total["cost_usd"]) - estimated, estimated
