from __future__ import annotations

import json

import numpy as np
import pytest

from router_runtime.artifacts import load_artifact
from router_runtime.config import EncoderRuntime
from router_runtime.errors import ConfigError, TargetError
from router_runtime.model_router import ModelRouter
from router_runtime.prediction.prompted import PromptedConfig
from router_runtime.prediction.prompting import question
from router_runtime.simulator.config import SimulatedModelConfig, SimulatorConfig
from router_runtime.simulator.known import KnownAnswer, answer_line
from router_runtime.simulator.serve import SimulatorServer
from router_runtime.types import Query, Reason
from router_training.config import load_training_config
from router_training.learners import base_rates, runtime_of
from router_training.make_prompted import make_prompted
from router_training.pipeline import Walk, run

pytest.importorskip("openai")

KINDS = {"math": "sums and equations", "prose": "letters and stories"}


def rows(n=60):
    rng = np.random.default_rng(0)
    for at in range(n):
        kind = "math" if rng.uniform() < 0.6 else "prose"
        yield {"query": f"request {at} of {kind}", "category": kind}


def predictor(url, **changes):
    return {
        "kind": "prompted",
        "target": {"kind": "compatible", "base_url": f"{url}/v1", "model": "asked"},
        "descriptions": KINDS,
        "fallback": "prose",
        **changes,
    }


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A simulated model that tells the kind of nine of ten requests, and knows no others."""
    folder = tmp_path_factory.mktemp("server")
    with (folder / "answers.jsonl").open("w") as file:
        for row in rows():
            call = question(
                Query(row["query"]),
                list(KINDS.values()),
                order=(0, 1),
                max_chars=8000,
                parameters={},
            )
            prompt = "".join(part["text"] for part in call.messages[1]["content"])
            letter = "AB"[list(KINDS).index(row["category"])]
            file.write(answer_line(prompt, KnownAnswer(letter, "kinds", 0.5, 1)))
    model = SimulatedModelConfig(skills={"kinds": (0.9, 0.9)})
    config = SimulatorConfig(models={"asked": model}, answers=folder / "answers.jsonl")
    with SimulatorServer(config) as running:
        yield running


@pytest.fixture(scope="module")
def finished(server, tmp_path_factory):
    folder = tmp_path_factory.mktemp("prompted")
    lines = (json.dumps(row) for row in rows())
    (folder / "records.jsonl").write_text("\n".join(lines) + "\n")
    content = {
        "data": {"path": "records.jsonl"},
        "split": {"train": 0.2, "validation": 0.1, "calibration": 0.4, "test": 0.3},
        "predictor": predictor(server.url),
        "output": "artifact",
        "work_dir": "work",
    }
    (folder / "train.yml").write_text(json.dumps(content))
    config = load_training_config(folder / "train.yml")
    return config, run(config)


def test_what_a_target_says_is_calibrated_on_records_and_evaluated(finished):
    config, result = finished
    artifact = load_artifact(config.output)
    assert artifact.parts.kind == "prompted"
    assert artifact.recommended_policy["fallback"]["model"] == "prose"
    assert sum(artifact.parts.description.base_rates) == pytest.approx(1.0)
    assert result.report.strategy("router").outcome.quality > 0.7
    assert any(entry for entry in artifact.training["calibration"])


def test_the_target_is_asked_once_per_row_however_often_the_run_is_repeated(finished, server):
    config, result = finished
    asked = server_requests(server)
    again = Walk(config)
    np.testing.assert_array_equal(again.P(again.split.test), result.walk.P(again.split.test))
    assert again.report.to_json() == result.report.to_json()
    assert server_requests(server) == asked


def server_requests(server):
    import urllib.request

    with urllib.request.urlopen(f"{server.url}/simulator/ledger") as answer:  # noqa: S310
        return json.load(answer)["models"]["asked"]["requests"]


def test_serving_asks_and_gives_the_p_that_training_saw(finished):
    config, result = finished
    walk = result.walk
    queries = walk.data.take(walk.split.test).queries
    router = ModelRouter(config.output)
    found, seen = router.predict(queries), walk.predict(walk.split.test)
    np.testing.assert_array_equal(found.P, seen.P)
    np.testing.assert_array_equal(found.novelty, seen.novelty)
    strange = router.decide("a request of no kind")
    assert (strange.model_id, strange.reason) == ("prose", Reason.NOVEL_QUERY)
    router.predictor.close()


def test_base_rates_are_mean_scores_and_a_half_where_there_are_none():
    nan = float("nan")
    Y = np.array([[1.0, nan, nan], [0.0, 0.25, nan]])
    assert base_rates(Y) == (0.5, 0.25, 0.5)


def test_descriptions_and_records_must_name_the_same_models(finished, tmp_path):
    config, _ = finished
    for kinds, message in (
        ({"math": "x", "art": "y", "prose": "z"}, "'art', which has no scores"),
        ({"math": "x", "art": "y"}, "lacks model 'prose'"),
    ):
        changed = PromptedConfig.model_validate(
            predictor("http://127.0.0.1:9", descriptions=kinds, fallback=None)
        )
        other = config.model_copy(update={"predictor": changed, "work_dir": tmp_path})
        with pytest.raises(ConfigError, match=message):
            _ = Walk(other).parts


def test_the_key_is_that_of_the_config_one_has_written_oneself():
    target = {"kind": "openai", "model": "m", "api_key_env": "MINE"}
    config = PromptedConfig.model_validate({"target": target, "descriptions": KINDS})
    assert runtime_of(config, EncoderRuntime()).api_key_env == "MINE"
    assert runtime_of(config, EncoderRuntime(api_key_env="OTHER")).api_key_env == "OTHER"


# --------------------------------------------------------------------------- without records


def test_a_router_is_made_of_descriptions_alone(server, tmp_path):
    content = {"predictor": predictor(server.url), "output": "made"}
    (tmp_path / "prompted.yml").write_text(json.dumps(content))
    artifact, folder = make_prompted(tmp_path / "prompted.yml")
    assert folder == tmp_path / "made"
    assert artifact.model_ids == ("math", "prose")
    router = ModelRouter(folder)
    asked = [row for row in rows()][:20]
    said = router.route_batch([row["query"] for row in asked])
    right = [one == row["category"] for one, row in zip(said, asked, strict=True)]
    assert sum(right) >= 14
    assert router.decide("a request of no kind").reason is Reason.NOVEL_QUERY
    router.predictor.close()
    card = (folder / "README.md").read_text()
    assert "not calibrated" in card and "sums and equations" in card


def test_without_a_fallback_an_unclear_reply_is_an_error(server, tmp_path):
    content = {"predictor": predictor(server.url, fallback=None), "output": "made"}
    (tmp_path / "prompted.yml").write_text(json.dumps(content))
    make_prompted(tmp_path / "prompted.yml", output=tmp_path / "elsewhere")
    with pytest.raises(TargetError, match="named no kind"):
        ModelRouter(tmp_path / "elsewhere").decide("a request of no kind")


def test_a_config_of_something_else_is_refused(tmp_path):
    (tmp_path / "c.yml").write_text("output: a\npredictor: {kind: sequence}\n")
    with pytest.raises(ConfigError, match=r"c\.yml"):
        make_prompted(tmp_path / "c.yml")
