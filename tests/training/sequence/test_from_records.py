from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from router_runtime.artifacts import load_artifact, read_manifest
from router_runtime.config import RuntimeConfig
from router_runtime.errors import ConfigError
from router_runtime.model_router import ModelRouter

pytest.importorskip("torch")
pytest.importorskip("transformers")

from router_training.config import load_training_config
from router_training.contestants import compare_files
from router_training.pipeline import Walk, run


def write_config(folder, base, data, name="seq", **changes):
    predictor = {
        "kind": "sequence",
        "base": str(base),
        "epochs": 8,
        "patience": 8,
        "batch_size": 4,
        "learning_rate": 2e-3,
        "max_tokens": 32,
    }
    content = {
        "data": {"path": str(data)},
        "encoder": {"device": "cpu"},
        "predictor": predictor | changes,
        "output": f"{name}-artifact",
        "work_dir": f"{name}-work",
    }
    (folder / f"{name}.yml").write_text(json.dumps(content))
    return folder / f"{name}.yml"


@pytest.fixture(scope="module")
def finished(base, files, tmp_path_factory):
    """A run on 300 category rows: (config, result)."""
    folder = tmp_path_factory.mktemp("records")
    data = folder / "records.jsonl"
    data.write_text((files / "train.jsonl").read_text() + (files / "test.jsonl").read_text())
    config = load_training_config(write_config(folder, base, data))
    return config, run(config)


def test_a_run_learns_evaluates_and_keeps_like_any_other(finished):
    config, result = finished
    assert result.report.strategy("router").outcome.quality > 0.9  # the best single has a third
    manifest = read_manifest(config.output)
    assert manifest.predictor["kind"] == "sequence"
    assert manifest.training["predictor"]["objective"] == "one"
    assert manifest.novelty is None
    assert manifest.recommended_policy["fallback"] is None
    card = (config.output / "README.md").read_text()
    assert "predictor sequence; base tiny-distilbert" in card
    assert manifest.training["calibration"]


def test_serving_gives_a_test_row_the_p_that_training_saw(finished):
    config, result = finished
    walk = result.walk
    queries = walk.data.take(walk.split.test).queries
    router = ModelRouter.from_config(
        RuntimeConfig(artifact=config.output, encoder={"device": "cpu"})
    )
    np.testing.assert_array_equal(router.predict(queries).P, walk.P(walk.split.test))


def test_what_was_learned_is_not_learned_twice(finished, monkeypatch):
    config, result = finished
    monkeypatch.setattr("router_training.sequence.from_records.learn", None)
    monkeypatch.setattr("router_training.learners.Learning._asked", None)
    again = Walk(config)
    test = again.split.test
    np.testing.assert_array_equal(again.P(test), result.walk.P(test))
    assert again.report.to_json() == result.report.to_json()


def test_the_time_of_learning_is_kept_unless_a_checkpoint_was_continued(finished):
    config, result = finished
    told = result.artifact.training["seconds"]
    assert told["embed"] == 0
    assert told["fit"] > 0
    for folder in config.work_dir.glob("learn-*"):
        shutil.rmtree(folder)
    (config.work_dir / "checkpoints").mkdir(exist_ok=True)
    again = Walk(config)
    again.learning._task(lambda done, total: None).checkpoints.mkdir(exist_ok=True)
    assert again.seconds == {"embed": 0.0, "fit": None}
    _ = again.parts
    assert again.seconds["fit"] is None


def test_stages_that_it_does_not_have_say_so(finished):
    with pytest.raises(ConfigError, match="no features and no head"):
        _ = Walk(finished[0]).features
    with pytest.raises(ConfigError, match="no features and no head"):
        Walk(finished[0]).keep(export_legacy=True)


def test_it_is_compared_with_a_head_on_features_on_the_same_rows(finished):
    config, _ = finished
    folder = config.output.parent
    content = {
        "data": {"path": str(config.data.path)},
        "features": {"encoders": [{"kind": "embedded", "text_components": 16}]},
        "head": "logistic",
        "output": "head-artifact",
        "work_dir": "head-work",
    }
    (folder / "head.yml").write_text(json.dumps(content))
    compared = compare_files([folder / "seq.yml", folder / "head.yml"]).comparison
    assert [standing.name for standing in compared.standings] == ["seq", "head"]
    assert all(standing.quality > 0.6 for standing in compared.standings)
    assert compared.n_queries == 60


def test_several_good_models_are_learned_from_scores_with_gaps(base, files, tmp_path):
    """Model a is good at math and code, b at science; a third of the scores are missing."""
    rng = np.random.default_rng(0)
    good = {"math": (1.0, 0.0, 1.0), "code": (1.0, 0.0, 1.0), "science": (0.0, 1.0, 1.0)}
    lines = []
    for line in (files / "train.jsonl").read_text().splitlines():
        row = json.loads(line)
        given = zip("abc", good[row["category"]], rng.uniform(size=3), strict=True)
        scores = {model: score for model, score, draw in given if draw > 0.33}
        if scores:
            lines.append(json.dumps({"prompt": row["query"], "scores": scores}))
    data = tmp_path / "records.jsonl"
    data.write_text("\n".join(lines) + "\n")
    config = load_training_config(write_config(tmp_path, base, data))
    result = run(config)
    parts = load_artifact(config.output).parts
    assert parts.description.objective == "several"
    assert parts.description.temperature == 1.0
    walk = result.walk
    P, Y = walk.P(walk.split.test), walk.data.labels.Y[walk.split.test]
    for column in (0, 1):
        scored = ~np.isnan(Y[:, column])
        good_rows, bad_rows = scored & (Y[:, column] == 1), scored & (Y[:, column] == 0)
        assert P[good_rows, column].mean() > P[bad_rows, column].mean() + 0.3


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("head", "head: logistic"),
        ("novelty", "novelty: {enabled: false}"),
        (r"features\.encoders", "features: {encoders: [embedded]}"),
    ],
)
def test_keys_that_would_change_nothing_are_refused(tmp_path, key, text):
    (tmp_path / "c.yml").write_text(f"predictor: sequence\noutput: a\n{text}\n")
    with pytest.raises(ConfigError, match=f"'{key}' would change nothing"):
        load_training_config(tmp_path / "c.yml")


def test_the_text_rule_counts(tmp_path):
    text = "predictor: sequence\noutput: a\nfeatures: {text: {system_chars: 7}}\n"
    (tmp_path / "c.yml").write_text(text)
    assert load_training_config(tmp_path / "c.yml").features.text.system_chars == 7
