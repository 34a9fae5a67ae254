from __future__ import annotations

import sys

import numpy as np
import pytest
from typer.testing import CliRunner

from router_runtime.errors import ConfigError, MissingDependencyError, QueryError
from router_runtime.prediction.encoders.specs import EmbeddedSpec, EncoderRuntime
from router_runtime.prediction.features import EmbeddingGenerator, FeatureSpec
from router_runtime.types import Image, Query
from router_training import embed, ray_cluster
from router_training.cli import app
from router_training.embed import FEATURES_FILE, METADATA_FILE, prepare_encoders, write_features
from router_training.embed_ray import encode_on_ray
from router_training.simulated import simulate_workload, write_workload

SPEC = FeatureSpec(encoders=(EmbeddedSpec(text_components=8, thumbnail_components=4),))
CONFIG = """
data: {path: records.jsonl}
features: {encoders: [{kind: embedded, text_components: 8, thumbnail_components: 4}]}
output: artifact
"""
N_ROWS = 90


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(embed, "CHUNK", 16)


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "train.yml"
    write_workload(tmp_path, rows=N_ROWS, seed=0).rename(tmp_path / "records.jsonl")
    path.write_text(CONFIG)
    return path


def embedded(config, folder, *options):
    """Run the command with a work folder of its own; return the folder of its stage."""
    config.write_text(CONFIG + f"work_dir: {folder}\n")
    result = CliRunner().invoke(app, ["embed", str(config), *options], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    [stage] = folder.glob("embed-*")
    return stage


def test_features_from_two_workers_are_the_same_bytes(
    tmp_path, config, connected_ray, small_chunks
):
    there = embedded(config, tmp_path / "ray", "--engine", "ray")
    here = embedded(config, tmp_path / "local")
    assert there.name == here.name  # it depends on nothing that the engine changes
    for file in (FEATURES_FILE, METADATA_FILE, "encoder-0.safetensors"):
        assert (there / file).read_bytes() == (here / file).read_bytes()
    assert np.load(there / FEATURES_FILE).shape[0] == N_ROWS


def test_what_fails_in_a_worker_is_told_as_here(connected_ray, small_chunks):
    queries = [
        *simulate_workload(20, seed=2).queries,
        Query("x", images=(Image(b"", "image/png"),)),
    ]
    encoders = prepare_encoders(SPEC, queries[:20], runtime=EncoderRuntime(), seed=0)
    generator = EmbeddingGenerator(SPEC, encoders)
    with pytest.raises(QueryError, match="A picture's"):
        list(encode_on_ray(generator, queries, runtime=EncoderRuntime()))


def test_an_address_without_the_engine_is_refused(config):
    command = ["embed", str(config), "--ray-address", "auto"]
    with pytest.raises(ConfigError, match="--engine ray"):
        CliRunner().invoke(app, command, catch_exceptions=False)


def test_nothing_to_encode_needs_no_cluster(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    encoders = prepare_encoders(SPEC, [Query("x")], runtime=EncoderRuntime(), seed=0)
    generator = EmbeddingGenerator(SPEC, encoders)

    def encode(generator, queries):
        return encode_on_ray(generator, queries, runtime=EncoderRuntime())

    write_features(tmp_path, generator, [], encode=encode)
    assert np.load(tmp_path / FEATURES_FILE).shape == (0, generator.n_features)


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingDependencyError, match=r"model-router\[ray\]"):
        ray_cluster.ray_module()


def test_an_address_of_ray_client_is_refused():
    pytest.importorskip("ray")
    with pytest.raises(ConfigError, match="ray_address: auto"):
        with ray_cluster.connected("ray://head:10001"):
            pass
