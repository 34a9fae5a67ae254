"""A folder with a service config in front of one upstream, and its first key."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from service_parts.servers import Server, environment, free_port, running

PRICES = {
    "sim-large-vl": {"input_mtok": 3.00, "output_mtok": 12.00},
    "sim-small-vl": {"input_mtok": 0.20, "output_mtok": 0.60},
    "sim-large-text": {"input_mtok": 2.00, "output_mtok": 8.00},
    "sim-small-text": {"input_mtok": 0.10, "output_mtok": 0.30},
}
DIRECT = "sim-small-text"
SECRETS = {
    "MODEL_ROUTER_PEPPER": "benchmark-pepper-benchmark-pepper",
    "MODEL_ROUTER_ADMIN_KEY": "benchmark-admin-benchmark-admin",
}


@dataclass(frozen=True)
class Site:
    """Where the config is, and how to start the service on it."""

    folder: Path
    config: Path
    port: int
    admin_port: int
    key: str

    @contextmanager
    def serving(self, *, core: int | None, name: str = "ours") -> Iterator[Server]:
        """Run the service while the block runs."""
        with running(
            name,
            [*program(), "serve", "--config", str(self.config)],
            port=self.port,
            ready="/readyz",
            core=core,
            log=self.folder / f"{name}.log",
            key=self.key,
            env=self.environment(),
        ) as server:
            yield server

    def environment(self) -> dict[str, str]:
        """Return the environment of the service, with its secrets."""
        return environment(**SECRETS)

    def ask(self, *command: str) -> str:
        """Run a ``model-router`` command with this config and return what it prints."""
        return _ask(self.config, *command)


def make_site(
    folder: Path,
    *,
    artifact: Path,
    base_url: str,
    model: str | None,
    service: dict[str, Any] | None = None,
    target: dict[str, Any] | None = None,
) -> Site:
    """Write a config whose four candidates are all at ``base_url``, and make a key.

    Parameters
    ----------
    folder : Path
        Empty; the database and the spool go there as well.
    artifact : Path
        Trained on the simulated workload.
    base_url : str
        With ``/v1``.
    model : str or None
        What the upstream calls every candidate; None: by its own id.
    service, target : mapping
        Further settings of the service, and of every target.
    """
    if not (artifact / "manifest.json").is_file():
        raise SystemExit(f"There is no artifact in '{artifact}'; run `make quickstart` first.")
    port, admin_port = free_port(), free_port()
    to = {"kind": "compatible", "base_url": base_url, "api_key_env": None, **(target or {})}
    to |= {} if model is None else {"model": model}
    content = {
        "artifact": str(artifact.resolve()),
        "candidates": [
            {
                "id": name,
                "modalities": ["text", "image"] if name.endswith("-vl") else ["text"],
                "price": price,
                "target": {"max_concurrency": 512, **to},
            }
            for name, price in PRICES.items()
        ],
        "service": {
            "port": port,
            "admin": {"port": admin_port},
            **(service or {}),
            "store": {
                "url": f"sqlite:///{folder / 'service.db'}",
                "spool": str(folder / "spool"),
                **(service or {}).get("store", {}),
            },
        },
    }
    config = folder / "service.yml"
    config.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    key = _ask(config, "keys", "create", "--name", "benchmark").strip()
    return Site(folder, config, port, admin_port, key)


def _ask(config: Path, *command: str) -> str:
    first, *rest = command
    group = [first, rest.pop(0)] if first in ("keys", "db") else [first]
    done = subprocess.run(  # noqa: S603 - our own program
        [*program(), *group, "--config", str(config), *rest],
        env=environment(**SECRETS),
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    return done.stdout


def program() -> list[str]:
    """Return the ``model-router`` command of this environment."""
    return [str(Path(sys.executable).with_name("model-router"))]


def default_artifact() -> Path:
    """Return where ``make quickstart`` puts its artifact."""
    root = Path(__file__).resolve().parents[3]
    return Path(os.environ.get("QUICKSTART_ARTIFACT", root / "router_artifacts" / "quickstart"))
