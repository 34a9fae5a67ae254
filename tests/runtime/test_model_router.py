from __future__ import annotations

import base64
import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from router_runtime import ModelRouter
from router_runtime.config import RuntimeConfig
from router_runtime.errors import ConfigError, NoEligibleModelError, QueryError
from router_runtime.types import Query, Reason, Requirements
from router_runtime.yaml_config import validate

SMALL, LARGE = "sim-small-text", "sim-large-vl"


@pytest.fixture(scope="module")
def folder(trained):
    return trained[0].output


@pytest.fixture(scope="module")
def router(folder):
    return ModelRouter(folder)


def configured(folder, **content) -> ModelRouter:
    return ModelRouter.from_config(
        validate(RuntimeConfig, {"artifact": folder, **content}, source="test")
    )


def png() -> bytes:
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (40, 30), "red").save(buffer, "PNG")
    return buffer.getvalue()


def test_route_returns_a_model_name(router):
    assert router.route("What is 17 + 25?") in router.model_ids


def test_probabilities_come_on_request(router):
    model, probabilities = router.route("What is 17 + 25?", return_probabilities=True)
    assert model in probabilities
    assert tuple(probabilities) == router.model_ids
    assert all(0 <= p <= 1 for p in probabilities.values())


def test_all_info_has_the_keys_of_llm_router_v2_and_the_decision(router):
    info = router.route("What is 17 + 25?", return_all_info=True)
    assert {
        "chosen_model",
        "probabilities",
        "original_choice",
        "threshold_applied",
        "thresholds",
        "threshold_config",
        "has_images",
    } <= set(info)
    assert info["has_images"] is False
    assert info["ranking"][0] == info["chosen_model"]


def test_every_form_of_a_picture_gives_the_same_decision(router, tmp_path):
    data = png()
    (tmp_path / "red.png").write_bytes(data)
    text = base64.b64encode(data).decode()
    forms = [
        data,
        text,
        f"data:image/png;base64,{text}",
        tmp_path / "red.png",
        str(tmp_path / "red.png"),
        PIL.Image.open(tmp_path / "red.png"),
    ]
    decisions = [router.decide("What colour?", [form]) for form in forms]
    assert len({decision.model_id for decision in decisions}) == 1
    assert len({tuple(d.probabilities.values()) for d in decisions}) == 1


def test_a_prompt_that_looks_like_a_file_stays_text(router):
    assert router.query("cat.png") == Query("cat.png", prompt_chars=7)


def test_a_single_picture_must_stand_in_a_list(router):
    with pytest.raises(QueryError, match="list"):
        router.decide("What colour?", "abc")


def test_a_batch_equals_one_by_one(router, trained):
    queries = trained[1].evaluations.queries[:60]
    together = router.decide_batch(queries)
    alone = [router.decide(query) for query in queries]
    assert [d.model_id for d in together] == [d.model_id for d in alone]
    for a, b in zip(together, alone, strict=True):
        assert list(a.probabilities.values()) == pytest.approx(
            list(b.probabilities.values()), abs=1e-6
        )
    texts = [query.text for query in queries]
    pictures = [query.images or None for query in queries]
    assert router.route_batch(texts, pictures) == [d.model_id for d in together]


def test_what_is_no_text_and_no_query_is_refused(router):
    for wrong in (None, 3, b"text"):
        with pytest.raises(QueryError, match="give text"):
            router.decide(wrong)
    with pytest.raises(QueryError, match=r"Query\.images"):
        router.decide(Query("What colour?"), [png()])
    with pytest.raises(QueryError, match="list of prompts"):
        router.route_batch("one prompt")


def test_features_computed_before_give_the_same_decisions(router, trained):
    queries = trained[1].evaluations.queries[:40]
    X = router.predictor.features.encode(queries)
    assert router.decide_batch(queries, X=X) == router.decide_batch(queries)


def test_an_empty_batch_is_empty(router):
    assert router.decide_batch([]) == []
    assert router.route_batch([]) == []


def test_lists_of_different_length_are_refused(router):
    with pytest.raises(ConfigError, match="2 entries for 1 texts"):
        router.route_batch(["a"], [None, None])


def test_a_model_that_was_never_scored_on_pictures_is_not_given_one(router):
    decision = router.decide("What colour?", [png()])
    assert SMALL in decision.ineligible
    assert SMALL not in decision.ranking
    assert SMALL in decision.probabilities


def test_thresholds_choose_the_cheapest_qualified(folder):
    costs = {model: 1.0 for model in ModelRouter(folder).model_ids} | {SMALL: 0.1}
    everyone = ModelRouter(folder, model_thresholds={LARGE: 0.0}, model_costs=costs)
    decision = everyone.decide("What is 2 + 3?")
    assert (decision.model_id, decision.reason) == (SMALL, Reason.CHEAPEST_QUALIFIED)
    assert (decision.cost_unit, decision.expected_cost[SMALL]) == ("relative", 0.1)
    bar = dict.fromkeys(everyone.model_ids, 1.0)
    nobody = ModelRouter(folder, model_thresholds=bar, model_costs=costs).decide("What is 2 + 3?")
    assert nobody.reason == Reason.NONE_QUALIFIED
    assert nobody.model_id == max(nobody.probabilities, key=nobody.probabilities.get)


def test_presets_apply_to_every_model_and_thresholds_refine_them(folder):
    preset = ModelRouter(folder, threshold_config="conservative")
    assert set(preset.get_model_info()["thresholds"].values()) == {0.8}
    refined = ModelRouter(
        folder, threshold_config="conservative", model_thresholds={LARGE: 0.1}
    ).get_model_info()
    assert refined["thresholds"][LARGE] == 0.1
    assert refined["thresholds"][SMALL] == 0.8


def test_the_artifacts_recommendation_is_the_default(router, trained):
    assert router.default_policy == "recommended"
    assert router.decide("hello").policy == "recommended"
    assert trained[1].artifact.recommended_policy["kind"] in ("utility", "cheapest_qualified")


def test_a_recommendation_in_another_unit_is_left_out_and_said(folder, caplog):
    costs = dict.fromkeys(ModelRouter(folder).model_ids, 1.0)
    router = ModelRouter(folder, model_costs=costs)
    assert (router.default_policy, router.cost_unit) == ("economy", "relative")
    assert "tuned with costs in unit 'usd'" in caplog.text


def test_a_policy_is_chosen_by_name(router):
    decision = router.decide("What is 2 + 3?", policy="quality")
    assert decision.policy == "quality"
    assert decision.reason == Reason.HIGHEST_PROBABILITY


def test_a_larger_lambda_is_cheaper(folder, trained):
    queries = trained[1].evaluations.queries[:100]

    def spent(weight: float) -> float:
        policy = {"kind": "utility", "lambda_per_usd": weight}
        made = configured(folder, policies={"p": policy}, policy="p")
        return sum(d.expected_cost[d.model_id] for d in made.decide_batch(queries))

    assert spent(0) > spent(100) > spent(1e6)


def test_configured_prices_replace_learned_costs(folder):
    price = {"input_mtok": 1000, "output_mtok": 0}
    candidates = [{"id": SMALL, "price": price}, {"id": LARGE, "price": price}]
    made = configured(folder, candidates=candidates, policy="quality")
    cost = made.decide("x" * 4000).expected_cost
    assert cost[SMALL] > 0.5
    assert cost[SMALL] != ModelRouter(folder).decide("x" * 4000).expected_cost[SMALL]


def test_only_configured_candidates_are_chosen(folder):
    made = configured(folder, candidates=[{"id": SMALL}], policy="quality")
    decision = made.decide("Explain the theory of relativity.")
    assert decision.ranking == (SMALL,)
    assert set(decision.ineligible.values()) == {"not_configured"}


def test_excluded_models_keep_their_reason(router):
    decision = router.decide("What is 2 + 3?", excluded={LARGE: "unhealthy"})
    assert decision.ineligible[LARGE] == "unhealthy"


def test_no_eligible_candidate_is_an_error_with_every_reason(folder):
    made = configured(
        folder, candidates=[{"id": SMALL, "modalities": ["text"], "tools": False}], policy="quality"
    )
    with pytest.raises(NoEligibleModelError, match="does_not_accept_image"):
        made.decide("What colour?", [png()])
    with pytest.raises(NoEligibleModelError, match="does_not_support_tools"):
        made.decide(Query("a", requirements=Requirements(tools=True)))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"model_thresholds": {"gpt-9": 0.5}}, "gpt-9"),
        ({"model_costs": {"gpt-9": 1.0}}, "gpt-9"),
        ({"model_thresholds": {LARGE: 1.5}}, "less than or equal to 1"),
        ({"model_costs": {LARGE: -1.0}}, "greater than or equal to 0"),
        ({"clip_server": "http://127.0.0.1:9"}, "no remote encoder"),
        ({"threshold_config": "balancd"}, "Unknown threshold_config 'balancd'"),
        (
            {"threshold_config": "none", "model_thresholds": {LARGE: 0.5}},
            "'none' has no thresholds",
        ),
        ({"model_thresholds": [0.5]}, "thresholds: give a mapping"),
        ({"model_costs": [0.5]}, "model_costs: give a mapping"),
        ({"device": "potato"}, "encoder.device"),
    ],
)
def test_a_wrong_argument_is_refused_by_name(folder, options, expected):
    with pytest.raises(ConfigError, match=expected):
        ModelRouter(folder, **options)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"candidates": [{"id": "gpt-9"}]}, "'gpt-9' in candidates is not in artifact"),
        ({"policy": "nicest"}, "Unknown policy 'nicest'"),
        (
            {
                "policies": {
                    "a": {"kind": "fixed", "model": LARGE},
                    "b": {"kind": "fixed", "model": SMALL},
                }
            },
            "Several policies",
        ),
        ({"policies": {"a": {"kind": "fixed", "model": "gpt-9"}}}, "gpt-9"),
        (
            {
                "candidates": [{"id": SMALL}],
                "policies": {"a": {"kind": "fixed", "model": LARGE}},
            },
            f"fixes '{LARGE}', which is not among the candidates",
        ),
        (
            {
                "candidates": [{"id": SMALL, "cost": 1}, {"id": LARGE}],
                "policies": {"a": {"kind": "utility", "lambda_per_usd": 1}},
            },
            f"none is known for '{LARGE}'",
        ),
    ],
)
def test_a_wrong_config_is_refused_by_name(folder, content, expected):
    with pytest.raises(ConfigError, match=expected):
        configured(folder, **content)


def test_one_router_serves_many_threads(router, trained):
    queries = trained[1].evaluations.queries[:80]
    expected = [router.decide(query) for query in queries]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            assert list(pool.map(router.decide, queries)) == expected


def test_model_info_is_plain_and_complete(router):
    info = router.get_model_info()
    assert info["available_models"] == list(router.model_ids)
    assert info["cost_unit"] == "usd"
    assert {"quality", "economy", "recommended"} <= set(info["available_threshold_configs"])


def test_expected_costs_grow_with_the_prompt(router):
    short, long = router.decide_batch([Query("hi"), Query("word " * 3000)])
    assert long.expected_cost[LARGE] > short.expected_cost[LARGE]
    assert np.isfinite(list(short.expected_cost.values())).all()


# --------------------------------------------------------------------------- novelty

STRANGE = "Ωμέγα ξύλο ποταμός; 東京の天気は? " * 40
FALLING_BACK = {
    "policies": {
        "careful": {
            "kind": "highest_probability",
            "fallback": {"model": SMALL, "novelty_above": 0.99},
        }
    }
}


def test_every_way_to_decide_tells_the_same_novelty(router):
    query = router.query(STRANGE)
    novelty = router.decide(query).novelty
    assert novelty == 1.0
    X = router.predictor.features.encode([query])
    assert router.decide_batch([query], X=X)[0].novelty == novelty
    assert router.predict([query]).novelty.tolist() == [novelty]
    assert router.route(STRANGE, return_all_info=True)["novelty"] == novelty


def test_a_familiar_query_is_less_novel(router, workload):
    import json

    record = json.loads((workload / "records.jsonl").read_text().splitlines()[0])
    assert router.decide(router.query(record["prompt"])).novelty < 0.99


def test_the_probabilities_of_a_wholly_novel_query_are_the_base_rates(router):
    first, second = router.decide(STRANGE), router.decide("?" * 3000)
    assert first.novelty == second.novelty == 1.0
    assert first.probabilities == second.probabilities


def test_queries_are_encoded_once_for_probabilities_and_novelty(folder, monkeypatch):
    router = ModelRouter(folder)
    features, calls = router.predictor.features, []
    encode = features.encode
    monkeypatch.setattr(
        type(features), "encode", lambda self, q, **k: calls.append(len(q)) or encode(q, **k)
    )
    router.decide("What is 17 + 25?")
    assert calls == [1]


def test_a_configured_fallback_takes_novel_queries_and_says_so(folder):
    router = configured(folder, **FALLING_BACK)
    decision = router.decide(STRANGE)
    assert (decision.model_id, decision.reason) == (SMALL, Reason.NOVEL_QUERY)
    X = router.predictor.features.encode([router.query(STRANGE)])
    assert router.decide_batch([router.query(STRANGE)], X=X)[0] == decision
    assert router.decide(STRANGE, excluded={SMALL: "busy"}).model_id != SMALL


def test_the_recommended_policy_falls_back_and_own_thresholds_do_not(folder):
    assert ModelRouter(folder).decide(STRANGE).reason is Reason.NOVEL_QUERY
    plain = ModelRouter(folder, model_thresholds={SMALL: 0.9})
    assert plain.decide(STRANGE).reason is not Reason.NOVEL_QUERY
    preset = ModelRouter(folder, threshold_config="balanced")
    assert preset.decide(STRANGE).reason is not Reason.NOVEL_QUERY


def test_a_fallback_on_an_artifact_without_novelty_is_refused():
    old = Path(__file__).resolve().parents[1] / "data" / "artifact-v1"
    with pytest.raises(ConfigError, match="'careful' has a fallback for novel queries"):
        configured(old, **FALLING_BACK)


def test_a_fallback_to_an_unknown_model_is_refused(folder):
    policy = {"kind": "highest_probability", "fallback": {"model": "nobody"}}
    with pytest.raises(ConfigError, match="falls back to 'nobody'"):
        configured(folder, policies={"p": policy})


def test_a_fallback_that_is_no_candidate_is_refused(folder):
    candidates = [{"id": LARGE, "modalities": ["text", "image"]}]
    with pytest.raises(ConfigError, match=f"falls back to '{SMALL}', which is not among"):
        configured(folder, candidates=candidates, **FALLING_BACK)


def test_choosing_from_what_was_predicted_is_what_decide_does(router):
    queries = [Query("What is 17 + 25?"), Query("Name a colour.")]
    found = router.predict(queries)
    eligibility = router.eligible(queries, excluded={LARGE: "down"})
    policy = router.policy("economy")
    chosen = router.choose(found, router.expected_cost(queries), eligibility, policy=policy)
    assert chosen == router.decide_batch(queries, policy="economy", excluded={LARGE: "down"})


def test_thresholds_of_one_call_refine_a_policy_or_are_one(router):
    policy, numbers = router.policy_with_thresholds({SMALL: 0.9}, name="conservative")
    assert policy.name == "conservative"
    assert (numbers.thresholds, numbers.default_threshold) == ({SMALL: 0.9}, 0.8)
    policy, numbers = router.policy_with_thresholds({SMALL: 0.9})
    assert (policy.name, numbers.default_threshold) == ("custom", 0.0)
    with pytest.raises(ConfigError, match="has no thresholds"):
        router.policy_with_thresholds({SMALL: 0.9}, name="quality")
    with pytest.raises(ConfigError, match="nobody"):
        router.policy_with_thresholds({"nobody": 0.9}, name="economy")
    assert "economy" in router.policy_names
