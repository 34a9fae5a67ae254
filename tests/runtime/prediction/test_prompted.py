from __future__ import annotations

import asyncio
import json
import math
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from router_runtime.artifacts import Artifact, load_artifact, read_manifest, save_artifact
from router_runtime.config import EncoderRuntime, RuntimeConfig
from router_runtime.errors import (
    ArtifactIntegrityError,
    ConfigError,
    TargetConnectionError,
    TargetError,
    TargetProtocolError,
    TargetStatusError,
)
from router_runtime.model_router import ModelRouter
from router_runtime.prediction.calibration import Calibrator, SigmoidMap
from router_runtime.prediction.parts import predictor_facts
from router_runtime.prediction.prompted import PromptedConfig, PromptedParts
from router_runtime.prediction.prompting import (
    logprob_parameters,
    question,
    rotation,
    sample_parameters,
)
from router_runtime.simulator.config import SimulatedModelConfig, SimulatorConfig
from router_runtime.simulator.known import KnownAnswer, answer_line
from router_runtime.simulator.serve import SimulatorServer
from router_runtime.targets.base import Completion
from router_runtime.targets.fake import FakeTarget
from router_runtime.types import Image, Query, Reason

pytest.importorskip("openai")

MODELS = ("calendar", "claim-window", "provider-select")
DESCRIPTIONS = {
    "calendar": "finding a date in a calendar",
    "claim-window": "editing the fields of a claim",
    "provider-select": "choosing from a list of providers",
}
PNG = (
    b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00\x00\x01\x00\x00\x00\x01\x08\x06\x00\x00\x00"
    b"\x1f\x15\xc4\x89\x00\x00\x00\rIDATx\x9cc\xf8\xcf\xc0\xf0\x1f\x00\x05\x00\x01\xff\x89\x99"
    b"=\x1d\x00\x00\x00\x00IEND\xaeB`\x82"
)


def config(**changes):
    target = {"kind": "compatible", "base_url": "http://127.0.0.1:9/v1", "model": "asked"}
    content = {"target": target, "descriptions": DESCRIPTIONS, **changes}
    return PromptedConfig.model_validate(content)


def parts(*, fake=None, **changes):
    made = PromptedParts.of(config(**changes), base_rates=[0.5, 0.3, 0.2])
    return replace(made, target=fake)


def predictor(answer, *, calibrator=None, **changes):
    target = FakeTarget("asked", answer)
    built = parts(fake=target, **changes).build(
        MODELS,
        calibrator=calibrator or Calibrator.identity(3),
        novelty=None,
        runtime=EncoderRuntime(),
    )
    return built, target


def with_logprobs(letter, **probabilities):
    tops = [{"token": key, "logprob": math.log(p)} for key, p in probabilities.items()]
    token = {"token": letter, "logprob": tops[0]["logprob"], "top_logprobs": tops}
    raw = {"choices": [{"logprobs": {"content": [token]}}]}
    return Completion("asked", letter, usage=None, finish_reason="stop", seconds=0.0, raw=raw)


def kinds_of(call):
    """Return the description behind each letter of a question."""
    text = call.messages[1]["content"][0]["text"]
    lines = text.split("\n")[1:4]
    return {line[1]: line[4:] for line in lines}


def honest(kind):
    """A target that finds the letter of one kind wherever it stands."""

    def answer(call):
        return next(letter for letter, told in kinds_of(call).items() if told == kind)

    return answer


# --------------------------------------------------------------------------- log-probabilities


def test_log_probabilities_become_p_in_one_call():
    asked, target = predictor(lambda call: with_logprobs("B", B=0.6, A=0.3, C=0.1))
    np.testing.assert_allclose(asked.probabilities([Query("x")]), [[0.3, 0.6, 0.1]])
    assert target.calls == 1
    asked.close()
    assert target.closed


def test_the_artifacts_calibration_comes_after():
    maps = Calibrator((SigmoidMap(slope=2.0, intercept=0.0),) * 3)
    asked, _ = predictor(lambda call: with_logprobs("A", A=0.5, B=0.5), calibrator=maps)
    np.testing.assert_allclose(asked.probabilities([Query("x")])[0, :2], [0.5, 0.5])


def test_without_log_probabilities_replies_are_counted_and_that_is_remembered():
    asked, target = predictor(honest(DESCRIPTIONS["claim-window"]))
    P = asked.probabilities([Query("x")])
    np.testing.assert_allclose(P, [[1 / 18, 16 / 18, 1 / 18]])
    assert target.calls == 1 + 5
    asked.probabilities([Query("y")])
    assert target.calls == 1 + 5 + 5


def test_a_server_that_refuses_the_parameter_is_asked_for_replies():
    def answer(call):
        if "logprobs" in call.parameters:
            return TargetStatusError("no logprobs", status=400, retryable=False)
        return honest(DESCRIPTIONS["calendar"])(call)

    asked, _ = predictor(answer, samples=3)
    assert asked.probabilities([Query("x")]).argmax() == 0


def test_where_log_probabilities_are_insisted_on_their_absence_is_an_error():
    asked, _ = predictor(lambda call: "B", method="logprobs")
    with pytest.raises(TargetProtocolError, match="Use method 'samples' or 'auto'"):
        asked.predict([Query("x")])


def test_a_target_that_prefers_what_stands_first_gets_no_say():
    """Always A: over three orders each candidate stood there once."""
    asked, target = predictor(lambda call: "A", method="samples", samples=3)
    np.testing.assert_allclose(asked.probabilities([Query("x")]), [[1 / 3] * 3])
    assert target.calls == 3


def test_pictures_are_sent_unless_switched_off():
    seen = []

    def answer(call):
        seen.append(sum(part["type"] == "image_url" for part in call.messages[1]["content"]))
        return with_logprobs("A", A=1.0)

    query = Query("x", (Image(PNG, "image/png"),))
    predictor(answer)[0].predict([query])
    predictor(answer, pictures=False)[0].predict([query])
    assert seen == [1, 0]


# --------------------------------------------------------------------------- unclear replies


def test_a_reply_that_names_no_candidate_is_an_error_and_not_a_guess():
    asked, _ = predictor(lambda call: "It could be anything.", method="samples")
    with pytest.raises(TargetProtocolError, match=r"named no kind of request 1 of 1.*'fallback'"):
        asked.predict([Query("a secret prompt")])


def test_the_error_does_not_repeat_prompt_or_reply():
    asked, _ = predictor(lambda call: "confidential reply", method="samples")
    with pytest.raises(TargetProtocolError) as caught:
        asked.predict([Query("confidential prompt")])
    assert "confidential" not in str(caught.value)


def test_with_a_fallback_such_a_query_has_base_rates_and_novelty_1():
    def answer(call):
        return "no idea" if "strange" in str(call.messages) else "A"

    asked, _ = predictor(answer, method="samples", samples=1, fallback="provider-select")
    found = asked.predict([Query("strange"), Query("plain")])
    np.testing.assert_array_equal(found.P[0], [0.5, 0.3, 0.2])
    np.testing.assert_array_equal(found.novelty, [1.0, 0.0])


def test_errors_of_the_target_are_what_they_are():
    error = TargetConnectionError("gone", retryable=True)
    asked, _ = predictor(lambda call: error, fallback="calendar")
    with pytest.raises(TargetConnectionError, match="gone"):
        asked.predict([Query("x"), Query("y")])


# --------------------------------------------------------------------------- threads and loops


def test_it_predicts_within_a_running_event_loop():
    asked, _ = predictor(lambda call: with_logprobs("C", C=1.0))

    async def ask():
        return asked.predict([Query("x")])

    assert asyncio.run(ask()).P.argmax() == 2


def test_many_threads_share_one_target_within_its_limit():
    def answer(call):
        assert threading.current_thread().name == "prompted-router"
        return with_logprobs("A", A=1.0)

    target = FakeTarget("asked", answer, seconds=0.005)
    made = parts(fake=target, target={**config().target.model_dump(), "max_concurrency": 3})
    built = made.build(
        MODELS, calibrator=Calibrator.identity(3), novelty=None, runtime=EncoderRuntime()
    )
    queries = [Query(f"x{at}") for at in range(9)]
    with ThreadPoolExecutor(1) as pool:
        found = list(pool.map(built.predict, [queries]))
    assert found[0].P.shape == (9, 3)
    assert target.most_in_flight == 3


def test_no_query_is_no_call():
    asked, target = predictor(lambda call: "A")
    assert asked.predict([]).P.shape == (0, 3)
    assert target.calls == 0


# --------------------------------------------------------------------------- the artifact


def artifact(made, **changes):
    identity = Calibrator.identity(3)
    return Artifact(model_ids=MODELS, parts=made, calibrator=identity, **changes)


def saved(made, folder):
    return save_artifact(made, folder, created_by="test", card="# card\n")


def test_an_artifact_has_no_weights_and_no_name_of_a_key(tmp_path):
    target = {"kind": "openai", "model": "gpt-vision", "api_key_env": "CLOUD_SECRET"}
    saved(artifact(parts(target=target)), tmp_path / "a")
    assert list(read_manifest(tmp_path / "a").files) == ["README.md"]
    assert "CLOUD_SECRET" not in (tmp_path / "a" / "manifest.json").read_text()
    facts = predictor_facts(read_manifest(tmp_path / "a").predictor)
    assert facts["asks"] == "gpt-vision at api.openai.com"
    loaded = load_artifact(tmp_path / "a")
    assert loaded.parts.tells_novelty is False
    with pytest.raises(ConfigError, match=r"needs a key.*api_key_env: NAME"):
        loaded.predictor()


def test_a_key_is_only_sent_because_the_config_names_it(tmp_path, monkeypatch):
    target = {"kind": "openai", "model": "m", "base_url": "http://127.0.0.1:9/v1"}
    saved(artifact(parts(target=target)), tmp_path / "a")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-default")
    loaded = load_artifact(tmp_path / "a")
    with pytest.raises(ConfigError, match="MY_KEY"):
        built = loaded.predictor(EncoderRuntime(api_key_env="MY_KEY"))
        built.predict([Query("x")])


@pytest.mark.parametrize(
    "change",
    [
        lambda asks: asks["descriptions"].update(calendar="everything"),
        lambda asks: asks["target"].update(model="another"),
        lambda asks: asks.update(samples=7),
    ],
)
def test_what_is_asked_cannot_be_changed_unnoticed(change):
    told = json.loads(json.dumps(parts().describe()))
    change(told["asks"])
    with pytest.raises(ArtifactIntegrityError, match="was changed after it was made"):
        PromptedParts.from_files(told, {})


def test_where_it_is_asked_may_change():
    told = json.loads(json.dumps(parts().describe()))
    told["asks"]["target"]["base_url"] = "http://127.0.0.1:10/v1"
    assert PromptedParts.from_files(told, {}).description.asks.target.base_url.endswith("10/v1")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"descriptions": {"a": "x"}}, "2 to 26 models"),
        ({"descriptions": {f"m{at}": "x" for at in range(27)}}, "2 to 26 models"),
        ({"fallback": "nobody"}, "'nobody' is not among"),
        ({"target": {"kind": "compatible", "base_url": "http://h/v1"}}, "name the model"),
        ({"samples": 0}, "samples"),
        ({"method": "guess"}, "method"),
    ],
)
def test_a_config_that_cannot_work_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        config(**changes)


# --------------------------------------------------------------------------- a real server


def simulated(tmp_path, queries, *, logprobs, skill=1.0):
    """A server whose model knows the right letter of each query in every order."""
    letters = "ABC"
    texts = [DESCRIPTIONS[model] for model in MODELS]
    with (tmp_path / "answers.jsonl").open("w") as file:
        for query, model in queries:
            for sample in range(3):
                order = rotation(3, sample)
                call = question(query, texts, order=order, max_chars=8000, parameters={})
                parts = call.messages[1]["content"]
                prompt = "".join(part["text"] for part in parts if part["type"] == "text")
                right = letters[order.index(MODELS.index(model))]
                digests = [image.sha256 for image in query.images]
                known = KnownAnswer(right, "screens", 0.0, 1)
                file.write(answer_line(prompt, known, images_sha256=digests))
    model = SimulatedModelConfig(
        skills={"screens": (skill, skill)}, modalities={"text", "image"}, logprobs=logprobs
    )
    return SimulatorConfig(models={"sim-vl": model}, answers=tmp_path / "answers.jsonl")


def screens():
    rng = np.random.default_rng(0)
    models = rng.choice(MODELS, 12)
    return [
        (Query(f"Select entry {at}", (Image(PNG + bytes([at]), "image/png"),)), str(model))
        for at, model in enumerate(models)
    ]


@pytest.mark.parametrize("logprobs", [True, False])
def test_a_served_router_finds_the_kind_by_text_and_picture(tmp_path, logprobs):
    queries = screens()
    with SimulatorServer(simulated(tmp_path, queries, logprobs=logprobs)) as server:
        target = {"kind": "compatible", "base_url": f"{server.url}/v1", "model": "sim-vl"}
        made = parts(target=target, samples=3, fallback="calendar")
        policy = {
            "kind": "highest_probability",
            "fallback": {"model": "calendar", "novelty_above": 0.99},
        }
        saved(
            artifact(
                made,
                recommended_policy=policy,
                scored_modalities=dict.fromkeys(MODELS, ("image", "text")),
            ),
            tmp_path / "a",
        )
        router = ModelRouter.from_config(RuntimeConfig(artifact=tmp_path / "a"))
        decisions = router.decide_batch([query for query, _ in queries])
        said = [decision.model_id for decision in decisions]
        assert said == [model for _, model in queries]
        assert {decision.reason for decision in decisions} == {Reason.HIGHEST_PROBABILITY}
        assert all(decision.novelty == 0.0 for decision in decisions)
        # a prompt that the model knows nothing of is answered with something else than a letter
        strange = router.decide("something else entirely")
        assert (strange.model_id, strange.reason) == ("calendar", Reason.NOVEL_QUERY)
        router.predictor.close()


def test_another_url_is_asked_where_the_config_says_so(tmp_path):
    queries = screens()[:2]
    target = {**config().target.model_dump(), "model": "sim-vl"}
    saved(artifact(parts(target=target)), tmp_path / "a")
    with SimulatorServer(simulated(tmp_path, queries, logprobs=True)) as server:
        loaded = load_artifact(tmp_path / "a")
        built = loaded.predictor(EncoderRuntime(url=f"{server.url}/v1", timeout_s=20.0))
        assert built.probabilities([queries[0][0]]).shape == (1, 3)
        built.close()
    with pytest.raises(TargetError):
        load_artifact(tmp_path / "a").predictor().predict([queries[0][0]])


def test_the_parameters_are_those_that_openai_knows():
    assert logprob_parameters(3)["top_logprobs"] == 8
    assert logprob_parameters(26)["top_logprobs"] == 20
    assert "seed" not in sample_parameters()
