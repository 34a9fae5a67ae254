from __future__ import annotations

import json
import resource

import numpy as np
import pytest

from router_runtime.errors import DataError
from router_runtime.prediction.encoders.cache import CachedEncoder
from router_runtime.prediction.encoders.specs import EmbeddedSpec, EncoderRuntime
from router_runtime.prediction.features import EmbeddingGenerator, FeatureSpec
from router_runtime.types import Query
from router_training.embed import local_weights, prepare_encoders, read_features, write_features
from router_training.simulated import simulate_workload

SPEC = FeatureSpec(encoders=(EmbeddedSpec(text_components=8, thumbnail_components=4),))


@pytest.fixture(scope="module")
def queries() -> tuple[Query, ...]:
    return simulate_workload(60, seed=2).queries


@pytest.fixture(scope="module")
def generator(queries) -> EmbeddingGenerator:
    encoders = prepare_encoders(SPEC, queries[:40], runtime=EncoderRuntime(), seed=0)
    return EmbeddingGenerator(SPEC, encoders)


def test_what_is_written_is_what_the_generator_gives(tmp_path, generator, queries):
    write_features(tmp_path, generator, queries)
    files = read_features(tmp_path)
    assert isinstance(files.X, np.memmap)
    np.testing.assert_array_equal(files.X, generator.encode(queries))
    assert files.fingerprints == (generator.encoders[0].fingerprint,)
    assert set(files.states[0]) == set(generator.encoders[0].state)


def test_features_that_do_not_fit_on_the_disk_are_an_error(tmp_path, generator, queries):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError, match="large"):
            write_features(tmp_path, generator, queries)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_changed_file_of_weights_shows_in_their_digest(tmp_path):
    path = tmp_path / "weights.pt"
    path.write_bytes(b"one")
    spec = FeatureSpec(encoders=({"kind": "clip", "pretrained": str(path)},))
    before = local_weights(spec)
    assert list(before) == [str(path)]
    path.write_bytes(b"two")
    assert local_weights(spec) != before
    assert local_weights(SPEC) == {}


def test_the_metadata_has_llm_router_v2s_dimensions(tmp_path, generator, queries):
    write_features(tmp_path, generator, queries)
    content = json.loads((tmp_path / "metadata.json").read_text())
    assert content["samples"] == 60
    assert content["combined_dim"] == content["text_dim"] + content["image_dim"]
    assert content["embedding_dim"] == content["combined_dim"] + len(content["extra_columns"])
    assert content["embedding_structure"].startswith("embedded text(")
    assert content["fingerprint"] == generator.fingerprint


def test_encoders_are_fitted_on_the_training_queries_alone(generator, queries):
    again = prepare_encoders(SPEC, queries[:40], runtime=EncoderRuntime(), seed=0)[0]
    other = prepare_encoders(SPEC, queries[20:], runtime=EncoderRuntime(), seed=0)[0]
    assert again.fingerprint == generator.encoders[0].fingerprint
    assert other.fingerprint != again.fingerprint


def test_pretrained_encoders_are_cached_and_report_progress(tmp_path, queries):
    pytest.importorskip("sentence_transformers")
    spec = FeatureSpec(encoders=({"kind": "sentence"},), extra_columns=())
    runtime = EncoderRuntime(device="cpu")
    (encoder,) = prepare_encoders(spec, [], runtime=runtime, seed=0, cache_folder=tmp_path / "c")
    assert isinstance(encoder, CachedEncoder)
    seen = []
    folder = tmp_path / "features"
    folder.mkdir()
    write_features(
        folder,
        EmbeddingGenerator(spec, [encoder]),
        queries[:5],
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(5, 5)]
    assert read_features(folder).X.shape == (5, 384)


def test_without_any_text_there_is_nothing_to_fit_on():
    with pytest.raises(DataError):
        prepare_encoders(SPEC, [], runtime=EncoderRuntime(), seed=0)
