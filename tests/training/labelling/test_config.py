from __future__ import annotations

import pytest
import yaml

from router_runtime.errors import ConfigError
from router_training.labelling.config import load_label_config

CONTENT = {
    "data": {"path": "../data/rows.jsonl"},
    "candidates": [{"id": "a", "target": {"kind": "compatible", "base_url": "http://x/v1"}}],
    "scoring": {"scorers": {"same": "exact"}, "default": ["same"]},
}


def load(folder, overrides=None, **content):
    (folder / "configs").mkdir(exist_ok=True)
    (folder / "configs" / "label.yml").write_text(yaml.safe_dump(CONTENT | content))
    return load_label_config(folder / "configs" / "label.yml", overrides=overrides)


def test_paths_start_at_the_config_and_are_told_without_detours(tmp_path):
    config = load(tmp_path, work_dir="../work")
    assert config.data.path == str(tmp_path / "data" / "rows.jsonl")
    assert (config.work_dir, config.output) == (
        tmp_path / "work",
        tmp_path / "configs" / "records.jsonl",
    )
    assert load(tmp_path, data={"path": "../d/*.json"}).data.path == str(tmp_path / "d" / "*.json")


def test_a_link_keeps_its_name_and_a_hub_id_stays_one(tmp_path):
    (tmp_path / "2026-01").mkdir()
    (tmp_path / "latest").symlink_to(tmp_path / "2026-01")
    assert load(tmp_path, data={"path": "../latest"}).data.path == str(tmp_path / "latest")
    assert load(tmp_path, data={"path": "org/name"}).data.path == "org/name"


def test_a_cluster_without_its_engine_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="ray_address"):
        load(tmp_path, ray_address="auto")
    assert load(tmp_path, ray_address="auto", engine="ray").ray_address == "auto"
