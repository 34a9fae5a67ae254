from __future__ import annotations

import json

import numpy as np
import pytest

from router_runtime.artifacts import read_manifest
from router_runtime.config import RuntimeConfig
from router_runtime.errors import ConfigError
from router_runtime.model_router import ModelRouter

pytest.importorskip("router_training.adapter.learner", exc_type=ImportError)

from router_training.config import load_training_config
from router_training.pipeline import run

from .conftest import NAMES, QUICK, SYSTEM, request_of


def write_config(folder, base, data, name="adapter", **changes):
    asked = {"system": SYSTEM, "question": "Which one?"}
    content = {
        "data": {"path": str(data)},
        "encoder": {"device": "cpu", "batch_size": 16},
        "predictor": {"kind": "adapter", "base": str(base)} | QUICK | asked | changes,
        "output": f"{name}-artifact",
        "work_dir": f"{name}-work",
    }
    (folder / f"{name}.yml").write_text(json.dumps(content))
    return folder / f"{name}.yml"


def records(path, n, *, several):
    """Records in which two names are good in some rows, and some scores are missing."""
    rng = np.random.default_rng(0)
    with path.open("w") as file:
        for at in range(n):
            name = NAMES[at % 3]
            scores = {other: float(other == name) for other in NAMES}
            if several and name == NAMES[0]:
                scores[NAMES[1]] = 1.0
            if several and at % 7 == 0:
                del scores[NAMES[2]]
            row = {"prompt": request_of(name, rng) + f" {at}", "scores": scores}
            file.write(json.dumps(row) + "\n")
    return path


@pytest.fixture(scope="module")
def finished(llama, tmp_path_factory):
    """A run on 180 records: (config, result)."""
    folder = tmp_path_factory.mktemp("records")
    data = records(folder / "records.jsonl", 180, several=False)
    config = load_training_config(write_config(folder, llama, data))
    return config, run(config)


def test_a_run_learns_calibrates_evaluates_and_keeps_like_any_other(finished):
    config, result = finished
    assert result.report.strategy("router").outcome.quality > 0.9  # the best single has a third
    manifest = read_manifest(config.output)
    assert manifest.predictor["kind"] == "adapter"
    assert manifest.predictor["prompt"]["text_question"] == "Which one?"
    assert manifest.training["predictor"]["left_out"] == {"train": 0, "validation": 0}
    assert manifest.training["calibration"]
    assert "predictor adapter; base" in (config.output / "README.md").read_text()


def test_serving_gives_a_test_row_the_p_that_training_saw(finished):
    config, result = finished
    walk = result.walk
    queries = walk.data.take(walk.split.test).queries
    router = ModelRouter.from_config(
        RuntimeConfig(artifact=config.output, encoder={"device": "cpu", "batch_size": 16})
    )
    np.testing.assert_array_equal(router.predict(queries).P, walk.P(walk.split.test))


def test_several_good_models_and_gaps_are_learned(llama, tmp_path):
    data = records(tmp_path / "records.jsonl", 180, several=True)
    config = load_training_config(write_config(tmp_path, llama, data))
    walk = run(config).walk
    told = walk.learning.tell(walk.split.test)
    np.testing.assert_allclose(told.P.sum(axis=1), 1.0, rtol=1e-12)
    P, Y = walk.P(walk.split.test), walk.data.labels.Y[walk.split.test]
    for column in range(3):
        good, bad = Y[:, column] == 1, Y[:, column] == 0
        assert P[good, column].mean() > P[bad, column].mean() + 0.3
    both = (Y[:, 0] == 1) & (Y[:, 1] == 1)
    assert P[both][:, :2].min() > P[both][:, 2].max() - 0.2


def test_a_predictor_without_a_base_is_refused(tmp_path):
    (tmp_path / "c.yml").write_text("predictor: adapter\noutput: a\n")
    with pytest.raises(ConfigError, match=r"predictor\.adapter\.base|base"):
        load_training_config(tmp_path / "c.yml")
