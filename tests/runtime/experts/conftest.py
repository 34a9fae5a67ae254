"""Tiny models of real classes, and adapters that were really trained, made once for all tests."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def llama(making, tmp_path_factory) -> Path:
    return making.make_llama(tmp_path_factory.mktemp("bases") / "llama")


@pytest.fixture(scope="session")
def adapters(making, llama, tmp_path_factory) -> dict[str, Path]:
    """Three adapters on the Llama; each answers anything with its own words."""
    folder = tmp_path_factory.mktemp("adapters")
    return {
        name: making.train_adapter(llama, folder / name, answer=words)
        for name, words in making.WORDS.items()
    }


@pytest.fixture
def changed(adapters, tmp_path):
    """Copies an adapter, changing keys of its config."""

    def change(name: str = "calendar", **config: object) -> Path:
        folder = tmp_path / f"changed-{len(list(tmp_path.iterdir()))}"
        shutil.copytree(adapters[name], folder)
        file = folder / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | config))
        return folder

    return change


@pytest.fixture
def serving(llama, adapters):
    """Loads experts on the Llama, all three adapters unless told otherwise, and closes them."""
    from router_runtime.experts.config import ExpertsConfig
    from router_runtime.experts.service import Experts

    loaded = []

    def load(**settings) -> Experts:
        settings = {"base": {"model": str(llama)}, "name": "base", "adapters": adapters} | settings
        loaded.append(Experts.load(ExpertsConfig(**settings)))
        return loaded[-1]

    yield load
    for experts in loaded:
        experts.close()
