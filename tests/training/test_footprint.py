from __future__ import annotations

import shutil
from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.numpy
import xgboost

from router_runtime.artifacts import load_artifact
from router_runtime.model_router import ModelRouter
from router_runtime.prediction.features import EmbeddingGenerator, FeatureSpec
from router_runtime.prediction.heads.prior import PriorHead
from router_runtime.prediction.predictor import FeaturePredictor
from router_runtime.types import Image, Query, WeightsSize
from router_training.footprint import count_parameters, footprint, machine, timed

PICTURE = Image(b"bytes", "image/png")


def test_numbers_of_tensors_are_counted_and_counters_are_not():
    tensors = {
        "weight": np.zeros((3, 4), np.float32),
        "half": np.zeros(5, np.float16),
        "fitted_on": np.zeros(2, np.int64),
    }
    files = {"head.safetensors": safetensors.numpy.save(tensors), "tokenizer.json": b"{}"}
    assert count_parameters(files) == 17
    assert count_parameters({}) == 0


def test_a_tree_has_two_numbers_a_split_and_one_a_leaf():
    X = np.array([[0.0], [1.0]] * 20, dtype=np.float32)
    data = xgboost.DMatrix(X, label=X[:, 0])
    booster = xgboost.train({"max_depth": 1, "objective": "binary:logistic"}, data, 3)
    files = {"head-0.ubj": bytes(booster.save_raw("ubj"))}
    assert count_parameters(files) == 3 * (2 + 1 + 1)


def test_an_artifact_tells_its_size_and_how_long_it_was_trained(trained):
    folder = trained[0].output
    found = footprint(ModelRouter(folder), folder)
    told = trained[1].artifact.training["seconds"]
    assert (found.embed_s, found.fit_s) == (told["embed"], told["fit"])
    state = trained[1].artifact.encoder_states[0]
    fitted = sum(array.size for array in state.values() if array.dtype.kind == "f")
    head = count_parameters(trained[1].artifact.head.to_files("head"))
    assert found.trained_parameters == fitted + head > 0
    assert (found.frozen_parameters, found.frozen_bytes) == (0, 0)
    assert found.artifact_bytes == sum(file.stat().st_size for file in folder.iterdir())
    assert found.latency is None


@pytest.mark.parametrize("told", [{}, {"seconds": None}, {"seconds": {"embed": "1", "fit": -1}}])
def test_an_artifact_without_times_has_none(trained, tmp_path, told):
    folder = shutil.copytree(trained[0].output, tmp_path / "artifact")
    router = ModelRouter(folder)
    training = {k: v for k, v in router.artifact.training.items() if k != "seconds"} | told
    router.artifact = replace(load_artifact(folder), training=training)
    found = footprint(router, folder)
    assert found.embed_s is found.fit_s is None


class Loaded:
    """An encoder that rests on so many numbers."""

    kind, text_dim, image_dim = "embedded", 1, 1

    def __init__(self, frozen) -> None:
        self.frozen = frozen


@pytest.mark.parametrize(
    ("sizes", "total"),
    [
        ([WeightsSize(10, 40), WeightsSize(3, 6)], WeightsSize(13, 46)),
        ([WeightsSize(10, 40), None], None),
    ],
)
def test_the_encoders_of_a_router_add_up_and_an_unknown_one_makes_all_unknown(sizes, total):
    encoders = [Loaded(size) for size in sizes]
    spec = FeatureSpec(encoders=({"kind": "embedded"},) * 2, extra_columns=())
    generator = EmbeddingGenerator(spec, encoders)
    head = PriorHead(np.zeros(2), n_features=4)
    predictor = FeaturePredictor(("a", "b"), generator, head, calibrator=None)
    assert predictor.frozen == total


@dataclass
class FakeRouter:
    """Serves queries with a text; deciding takes as many milliseconds as the clock says."""

    frozen: WeightsSize | None
    calls: list = field(default_factory=list)

    @property
    def predictor(self):
        return SimpleNamespace(frozen=self.frozen)

    def eligible(self, queries):
        return SimpleNamespace(mask=np.array([[bool(query.text)] for query in queries]))

    def decide_batch(self, queries):
        assert not any("sha256" in vars(image) for query in queries for image in query.images)
        self.calls.append(len(queries))
        for query in queries:
            for image in query.images:
                _ = image.sha256


@pytest.fixture
def clock(monkeypatch):
    """Each measured call takes one millisecond more than the one before, from 1."""
    now, calls = [0.0], [0]

    def tick():
        calls[0] += 1
        if calls[0] % 2 == 0:
            now[0] += calls[0] / 2000
        return now[0]

    monkeypatch.setattr("router_training.footprint.time.perf_counter", tick)


def queries(n):
    return [Query(f"query {at}", (Image(PICTURE.data, PICTURE.media_type),)) for at in range(n)]


def test_decisions_are_timed_warm_alone_and_in_batches(clock):
    router = FakeRouter(WeightsSize())
    found = timed(router, queries(70), most=64)
    assert router.calls[0] == 64  # not measured
    assert router.calls[1:] == ([1] * 64 + [32, 32]) * 5
    assert (found.n_queries, found.rounds, found.batch_size) == (64, 5, 32)
    measured = [np.arange(66 * at + 1, 66 * at + 65) for at in range(5)]
    assert found.median_ms == pytest.approx(np.median(measured))
    assert found.p95_ms == pytest.approx(np.percentile(measured, 95))
    assert found.batch_ms == pytest.approx((66 * 2 + 65.5) / 32, abs=1e-3)


def test_a_router_that_asks_a_server_is_timed_once(clock):
    router = FakeRouter(None)
    found = timed(router, queries(5), most=64)
    assert router.calls == [1, *[1] * 5, 5]
    assert (found.n_queries, found.rounds, found.batch_size) == (5, 1, 5)


def test_queries_that_nobody_may_serve_are_not_timed():
    router = FakeRouter(WeightsSize())
    assert timed(router, [Query(""), Query("x"), Query("")], most=64).n_queries == 1
    assert timed(router, [Query("")], most=64) is None
    assert timed(router, [], most=64) is None
    assert timed(router, queries(3), most=0) is None


def test_the_machine_tells_its_cores_and_threads(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert "cores, OMP_NUM_THREADS 3" in machine()
