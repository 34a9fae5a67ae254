from __future__ import annotations

import json

import numpy as np
import pytest

from router_runtime.errors import ConfigError
from router_runtime.model_router import ModelRouter
from router_runtime.simulator.config import SimulatorConfig
from router_runtime.simulator.serve import SimulatorServer
from router_runtime.types import Reason
from router_training.make_prompted import make_prompted
from router_training.prompted_answers import write_prompted_answers
from router_training.simulated import simulate_workload

pytest.importorskip("openai")

KINDS = {"sim-small-vl": "easy", "sim-large-vl": "hard", "sim-small-text": "short"}


@pytest.fixture(scope="module")
def data():
    return simulate_workload(30, seed=2)


def test_a_prompted_router_is_told_the_cheapest_of_the_best(data, tmp_path):
    pytest.importorskip("starlette")
    answers = write_prompted_answers(tmp_path / "answers.jsonl", data, KINDS)
    model = {"skills": {"kind": (1, 1)}, "modalities": ["text", "image"]}
    with SimulatorServer(SimulatorConfig(models={"vlm": model}, answers=answers)) as server:
        target = {"kind": "compatible", "base_url": server.base_url, "model": "vlm"}
        asks = {"kind": "prompted", "target": target, "descriptions": KINDS}
        asks["fallback"] = "sim-large-vl"
        (tmp_path / "c.yml").write_text(json.dumps({"predictor": asks, "output": "made"}))
        router = ModelRouter(make_prompted(tmp_path / "c.yml")[1])
        decisions = router.decide_batch(data.queries)
        router.predictor.close()
    Y = data.labels.Y[:, [data.model_ids.index(name) for name in KINDS]]
    best = np.nanmax(Y, axis=1)
    prices = dict(zip(KINDS, (2, 3, 1), strict=True))
    for row, decision in enumerate(decisions):
        assert decision.reason is Reason.HIGHEST_PROBABILITY
        good = [name for name, score in zip(KINDS, Y[row], strict=True) if score == best[row]]
        assert decision.model_id == min(good, key=lambda name: prices[name])


def test_rows_without_a_score_are_left_out(data, tmp_path):
    pictures = sum(bool(query.images) for query in data.queries)
    texts = {"sim-small-text": "short", "sim-large-text": "long"}
    path = write_prompted_answers(tmp_path / "a.jsonl", data, texts)
    assert len(path.read_text().splitlines()) == len(data) - pictures < len(data)


def test_models_without_scores_are_refused(data, tmp_path):
    with pytest.raises(ConfigError, match="'gone'"):
        write_prompted_answers(tmp_path / "a.jsonl", data, {"gone": "x", "sim-small-vl": "y"})
