from __future__ import annotations

import numpy as np
import pytest

from router_runtime.prediction.encoders.cache import CachedEncoder
from router_runtime.types import Query, WeightsSize
from router_training import stages
from router_training.config import TrainingConfig
from router_training.store import StageStore


class Lengths:
    """An encoder of texts: their lengths."""

    kind, text_dim, image_dim, fingerprint = "embedded", 1, 0, "ab" * 32
    frozen = WeightsSize()

    def encode_texts(self, texts):
        return np.array([[len(text)] for text in texts], dtype=np.float32)

    def encode_images(self, images):
        return np.zeros((len(images), 0), dtype=np.float32)


@pytest.fixture
def embed(tmp_path, monkeypatch):
    """Embed as a run does, with encoders whose vectors are kept in a folder."""
    monkeypatch.setattr(
        "router_training.stages.prepare_encoders",
        lambda *given, cache_folder, **more: (CachedEncoder(Lengths(), cache_folder),),
    )
    config = TrainingConfig(output=tmp_path / "artifact", work_dir=tmp_path / "work")
    store = StageStore(config.work_dir)

    def run(*texts):
        queries = [Query(text) for text in texts]
        inputs = list(texts)
        found = stages.embed(
            store,
            inputs,
            config=config,
            queries=queries,
            training_queries=queries,
            watch=stages.unwatched,
        )
        return found.X[:, 0], store.seconds("embed", inputs)

    return run


def test_encoding_is_timed_where_all_of_it_was_done(embed):
    X, seconds = embed("a", "bb", "a")
    assert len(X) == 3
    assert seconds is not None
    assert embed("a", "bb", "a")[1] == seconds


def test_encoding_that_found_vectors_of_an_earlier_run_has_no_time(embed):
    embed("a", "bb")
    X, seconds = embed("a", "bb", "ccc")
    assert len(X) == 3
    assert seconds is None
