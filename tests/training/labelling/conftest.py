"""A simulated provider over HTTP, samples that it knows the answers to, and a labelling config."""

from __future__ import annotations

import json
import urllib.request
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from router_runtime.simulator.config import load_simulator_config
from router_runtime.simulator.serve import SimulatorServer
from router_training.labelling.config import load_label_config
from router_training.simulated import write_unlabelled

PRICES = {
    "sees": {"input_mtok": 3.0, "output_mtok": 12.0},
    "reads": {"input_mtok": 0.1, "output_mtok": 0.3},
    "judge": {"input_mtok": 1.0, "output_mtok": 4.0},
}


@dataclass
class Site:
    """Samples and a provider in one folder."""

    folder: Path
    base_url: str
    url: str

    def ledger(self):
        """What the provider served: (requests by model, USD)."""
        with urllib.request.urlopen(f"{self.url}/simulator/ledger") as answer:  # noqa: S310 - ours
            content = json.load(answer)
        return (
            {name: model["requests"] for name, model in content["models"].items()},
            content["cost_usd"],
        )

    def target(self, **more):
        return {"kind": "compatible", "base_url": self.base_url, **more}

    def content(self):
        """A labelling config as plain values."""
        return {
            "data": {"path": "data/samples.jsonl"},
            "candidates": [
                {
                    "id": "sees",
                    "modalities": ["text", "image"],
                    "target": self.target(),
                    "price": PRICES["sees"],
                },
                {
                    "id": "reads",
                    "modalities": ["text"],
                    "target": self.target(),
                    "price": PRICES["reads"],
                },
            ],
            "ask": {"parameters": {"max_tokens": 200}, "attempts": 2, "max_wait_s": 0.2},
            "judge": {
                "models": [{"id": "judge", "target": self.target(), "price": PRICES["judge"]}]
            },
            "scoring": {"scorers": {"same": "exact"}, "default": ["same", "judge"]},
            "output": "records.jsonl",
            "work_dir": "work",
        }

    def write(self, content=None, name="label.yml"):
        path = self.folder / name
        path.write_text(json.dumps(content or self.content()))  # which is YAML, without aliases
        return path

    def config(self, content=None, **overrides):
        return load_label_config(self.write(content), overrides=overrides)


def simulator(folder, models):
    """Return a server of the models, which knows the folder's answers."""
    path = folder / "simulator.yml"
    path.write_text(json.dumps({"answers": "data/answers.jsonl", "models": models}))
    return SimulatorServer(load_simulator_config(path))


def usual_models(**judge):
    return {
        "sees": {"modalities": ["text", "image"], "price": PRICES["sees"]},
        "reads": {"price": PRICES["reads"]},
        "judge": {
            "role": "judge",
            "modalities": ["text", "image"],
            "price": PRICES["judge"],
            **judge,
        },
    }


@pytest.fixture
def open_site(tmp_path):
    """Returns a function that opens a site, by default of 30 samples and faultless models."""
    with ExitStack() as stack:

        def opened(*, rows=30, models=None):
            write_unlabelled(tmp_path / "data", rows=rows, seed=3)
            server = stack.enter_context(simulator(tmp_path, models or usual_models()))
            return Site(tmp_path, server.base_url, server.url)

        yield opened


@pytest.fixture
def site(open_site):
    return open_site()


def records_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(name="records_of")
def _records_of():
    return records_of
