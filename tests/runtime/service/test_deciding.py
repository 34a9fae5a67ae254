from __future__ import annotations

import asyncio
import io
import logging
import time
from contextlib import contextmanager
from decimal import Decimal

import PIL.Image
import pytest

from router_runtime import ModelRouter
from router_runtime.config import RuntimeConfig
from router_runtime.errors import (
    ConfigError,
    EncoderError,
    NoEligibleModelError,
    QueryError,
    RequestError,
)
from router_runtime.messages import query_from_messages
from router_runtime.prediction.features import EmbeddingGenerator
from router_runtime.service.deciding import Decider
from router_runtime.service.sessions import Sessions, identify
from router_runtime.service.values import ANONYMOUS, Caller, Controls
from router_runtime.types import Image, Query, Requirements
from router_runtime.yaml_config import validate

LARGE_VL, SMALL_VL = "sim-large-vl", "sim-small-vl"
LARGE, SMALL = "sim-large-text", "sim-small-text"
ALL = (LARGE_VL, SMALL_VL, LARGE, SMALL)
PRICES = {LARGE_VL: (3, 12), SMALL_VL: (0.2, 0.6), LARGE: (2, 8), SMALL: (0.1, 0.3)}
QUERY = Query("What is 17 + 25?")


def candidate(model, **more):
    inputs, outputs = PRICES[model]
    sees = ["text", "image"] if model.endswith("vl") else ["text"]
    price = {"input_mtok": inputs, "output_mtok": outputs}
    return {"id": model, "modalities": sees, "price": price, **more}


class Place:
    """A decider and what it is given."""

    def __init__(self, folder, *, candidates=ALL, service=None, **content):
        listed = [candidate(c) if isinstance(c, str) else c for c in candidates]
        whole = {"artifact": folder, "candidates": listed, "service": service or {}, **content}
        self.config = validate(RuntimeConfig, whole, source="test")
        self.router = ModelRouter.from_config(self.config)
        self.resting: set[str] = set()
        self.failures: list[str] = []
        self.sessions = Sessions(self.config.service.stickiness, clock=time.monotonic)
        self.decider = self.fresh()

    def fresh(self):
        return Decider(
            self.router,
            self.config,
            resting=self.resting.__contains__,
            sessions=self.sessions,
            clock=time.monotonic,
            on_failure=self.failures.append,
        )

    def decide(self, query=QUERY, controls=None, caller=ANONYMOUS, **more):
        async def walk():
            decider = self.fresh()
            try:
                return await decider.decide(query, controls or Controls(), caller, **more)
            finally:
                decider.close()

        return asyncio.run(walk())


@pytest.fixture(scope="module")
def folder(trained):
    return trained[0].output


@pytest.fixture(scope="module")
def shared_place(folder):
    return Place(folder, policy="quality")


@pytest.fixture
def place(shared_place):
    shared_place.resting.clear()
    shared_place.failures.clear()
    shared_place.sessions = Sessions(shared_place.config.service.stickiness, clock=time.monotonic)
    return shared_place


def picture() -> Image:
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (40, 30), "red").save(buffer, "PNG")
    return Image(buffer.getvalue(), "image/png")


def steps(routed):
    return {step.name: step for step in routed.steps}


def test_a_request_is_decided_as_the_router_decides_it(place):
    routed, decision = place.decide(), place.router.decide(QUERY)
    assert routed.decision == decision
    assert routed.ranking == decision.ranking
    assert routed.reason == str(decision.reason)
    assert routed.policy == "quality"
    assert routed.expected_cost == decision.expected_cost
    assert routed.artifact_id == place.router.artifact.artifact_id
    assert len(routed.features_sha256) == 64
    assert 0 < routed.encode_s <= routed.decide_s


def test_every_step_leaves_a_reason(place):
    routed = place.decide(QUERY, Controls(policy="economy"))
    names = ["normalise", "filter", "features", "predict", "policy", "sticky", "choose"]
    assert [step.name for step in routed.steps] == names
    assert [step.reason for step in routed.steps] == [
        "read",
        "all_eligible",
        "encoded",
        "predicted",
        routed.reason,
        "no_conversation",
        routed.reason,
    ]
    assert steps(routed)["normalise"].detail["chars"] == len(QUERY.text)
    assert steps(routed)["features"].detail == {"sha256": routed.features_sha256}
    assert steps(routed)["policy"].detail["thresholds"] == dict.fromkeys(ALL, 0.5)
    assert routed.thresholds == dict.fromkeys(ALL, 0.5)


def test_no_step_holds_what_was_asked(place):
    routed = place.decide(Query("a canary sentence"), session=identify([], user="canary-user"))
    assert "canary" not in repr(routed)


def test_equal_content_is_decided_from_what_was_predicted_before(place):
    async def walk():
        decider = place.fresh()
        first = await decider.decide(QUERY, Controls(), ANONYMOUS)
        second = await decider.decide(QUERY, Controls(policy="economy"), ANONYMOUS)
        decider.close()
        return first, second

    first, second = asyncio.run(walk())
    assert (first.cached, second.cached) == (False, True)
    assert steps(second)["features"].reason == "cached"
    assert first.features_sha256 == second.features_sha256
    assert first.policy != second.policy


# ---------------------------------------------------------------------- filters


def test_pictures_go_to_who_sees_them(place):
    routed = place.decide(Query("What is shown?", (picture(),)))
    assert set(routed.ranking) == {LARGE_VL, SMALL_VL}
    assert steps(routed)["filter"].reason == "some_ineligible"
    assert steps(routed)["filter"].detail == dict.fromkeys((LARGE, SMALL), "does_not_accept_image")


def test_the_answers_own_cap_counts_for_the_context_window(folder):
    place = Place(folder, candidates=(LARGE, candidate(SMALL, context_window=1000)))
    assert set(place.decide(QUERY).ranking) == {LARGE, SMALL}
    long = Query(QUERY.text, requirements=Requirements(max_output_tokens=999))
    assert place.decide(long).ranking == (LARGE,)
    assert place.decide(long).reason == "only_eligible"


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"caller": Caller("k", allowed_models=frozenset({LARGE, SMALL}))}, "not_allowed_for_key"),
        ({"controls": Controls(deny=frozenset({LARGE_VL, SMALL_VL}))}, "denied_by_request"),
        ({"controls": Controls(allow=frozenset({LARGE, SMALL}))}, "not_in_allow"),
        ({"clamped": {LARGE_VL: "clamped", SMALL_VL: "clamped"}}, "clamped"),
    ],
)
def test_what_takes_candidates_away_is_kept_as_their_reason(place, given, reason):
    routed = place.decide(**given)
    assert set(routed.ranking) == {LARGE, SMALL}
    assert routed.decision.ineligible == dict.fromkeys((LARGE_VL, SMALL_VL), reason)


def test_a_candidate_that_rests_is_left_out(place):
    place.resting.add(place.decide().model_id)
    assert not place.resting & set(place.decide().ranking)
    place.resting.update(ALL)
    with pytest.raises(RequestError) as caught:
        place.decide()
    assert (caught.value.status, caught.value.code) == (503, "no_healthy_candidate")


def test_dollars_take_away_what_is_dearer(place):
    costs = place.decide().expected_cost
    middle = Decimal(str(sorted(costs.values())[1]))
    routed = place.decide(QUERY, Controls(max_cost_usd=middle))
    assert all(costs[model] <= middle for model in routed.ranking)
    assert set(routed.decision.ineligible.values()) == {"max_cost_exceeded"}
    routed = place.decide(remaining_usd=middle)
    assert set(routed.decision.ineligible.values()) == {"budget_exceeded"}
    with pytest.raises(RequestError) as caught:
        place.decide(remaining_usd=Decimal("1e-12"))
    assert caught.value.code == "budget_exceeded"
    with pytest.raises(NoEligibleModelError, match="max_cost_exceeded"):
        place.decide(QUERY, Controls(max_cost_usd=Decimal(0)))


def test_a_least_probability_is_applied_after_predicting(place):
    P = place.decide().decision.probabilities
    least = sorted(P.values())[2]
    routed = place.decide(QUERY, Controls(min_probability=least))
    assert set(routed.ranking) == {model for model in ALL if P[model] >= least}
    assert set(steps(routed)["min_probability"].detail.values()) == {"below_min_probability"}
    with pytest.raises(NoEligibleModelError) as caught:
        place.decide(QUERY, Controls(min_probability=1.0, deny=frozenset({SMALL})))
    assert f"{SMALL}: denied_by_request" in str(caught.value)
    assert f"{LARGE}: below_min_probability" in str(caught.value)


# ---------------------------------------------------------------------- policies


def test_thresholds_of_a_request_replace_those_of_the_policy(place):
    none = dict.fromkeys(ALL, 0.0)
    cheapest = place.decide(QUERY, Controls(policy="economy", thresholds=none))
    assert cheapest.model_id == SMALL
    assert cheapest.policy == "economy"
    assert cheapest.thresholds == none
    strict = place.decide(QUERY, Controls(policy="economy", thresholds={SMALL: 1.0}))
    assert strict.model_id != SMALL
    assert strict.thresholds == {**dict.fromkeys(ALL, 0.5), SMALL: 1.0}


def test_thresholds_alone_are_a_policy_where_the_default_has_none(place):
    routed = place.decide(QUERY, Controls(thresholds={}))
    assert (routed.policy, routed.model_id) == ("custom", SMALL)


def test_relative_costs_are_not_told_as_dollars(folder):
    place = Place(
        folder,
        candidates=[
            {"id": LARGE, "modalities": ["text"], "cost": 1.0},
            {"id": SMALL, "modalities": ["text"], "cost": 0.1},
        ],
    )
    routed = place.decide(remaining_usd=Decimal("0.01"))
    assert set(routed.ranking) == {LARGE, SMALL}
    assert set(routed.expected_cost.values()) == {None}
    with pytest.raises(ConfigError, match="max_cost_usd"):
        Place(
            folder,
            candidates=[{"id": LARGE, "cost": 1.0}],
            service={"clamps": {"max_cost_usd": 1}},
        )


# ---------------------------------------------------------------------- conversations


class Talk:
    """One conversation, turn by turn, and a policy whose favourite is set from outside."""

    def __init__(self, place):
        self.place = place
        self.messages = [{"role": "user", "content": QUERY.text}]

    def turn(self, *, controls=None, caller=ANONYMOUS, **named):
        routed = self.place.decide(
            query_from_messages(self.messages),
            controls or Controls(),
            caller,
            session=identify(self.messages, **named),
        )
        self.messages += [
            {"role": "assistant", "content": "42"},
            {"role": "user", "content": "And 18 + 25?"},
        ]
        return routed


@pytest.fixture
def sticky(folder):
    """A place whose default policy is cheapest_qualified; P decides nothing with thresholds 0."""

    def make(margin):
        return Place(
            folder,
            policies={"default": {"kind": "cheapest_qualified"}},
            service={"stickiness": {"margin": margin}},
        )

    return make


ONLY = {model: Controls(allow=frozenset({model})) for model in ALL}


def test_a_conversation_stays_unless_the_gain_passes_the_margin(sticky):
    place = sticky(margin=1.0)  # more than the whole cost cannot be saved
    talk = Talk(place)
    assert talk.turn(controls=ONLY[LARGE]).model_id == LARGE
    routed = talk.turn()
    assert (routed.model_id, routed.reason) == (LARGE, "sticky")
    assert set(routed.ranking) == set(ALL)
    assert routed.decision.model_id == SMALL
    step = steps(routed)["sticky"]
    assert step.reason == "stayed"
    assert step.detail["current"] == LARGE
    assert 0 < step.detail["gain"] <= 1
    assert steps(routed)["choose"].reason == "sticky"


def test_a_gain_beyond_the_margin_moves_the_conversation(sticky):
    talk = Talk(sticky(margin=0.1))
    talk.turn(controls=ONLY[LARGE])
    routed = talk.turn()
    assert routed.model_id == SMALL
    assert steps(routed)["sticky"].reason == "left_for_gain"
    assert steps(talk.turn())["sticky"].reason == "same"


def test_a_margin_of_zero_switches_stickiness_off(sticky):
    talk = Talk(sticky(margin=0))
    talk.turn(controls=ONLY[LARGE])
    routed = talk.turn()
    assert routed.model_id == SMALL
    assert routed.session == ""
    assert len(talk.place.sessions) == 0


def test_a_conversation_leaves_a_model_that_cannot_serve_it(sticky):
    talk = Talk(sticky(margin=1.0))
    talk.turn(controls=ONLY[LARGE])
    talk.place.resting.add(LARGE)
    routed = talk.turn()
    assert routed.model_id == SMALL
    assert steps(routed)["sticky"].reason == "left_ineligible"


def test_equal_beginnings_are_decided_each_on_its_own(sticky):
    place = sticky(margin=1.0)
    assert Talk(place).turn(controls=ONLY[LARGE]).model_id == LARGE
    routed = Talk(place).turn()
    assert routed.model_id == SMALL
    assert steps(routed)["sticky"].reason == "new_conversation"


@pytest.mark.parametrize("named", [{"header": "s"}, {"user": "u"}])
def test_a_named_conversation_sticks_from_its_first_turn(sticky, named):
    place = sticky(margin=1.0)
    Talk(place).turn(controls=ONLY[LARGE], **named)
    assert Talk(place).turn(**named).model_id == LARGE


def test_no_key_and_no_policy_stays_with_anothers_model(sticky):
    place = sticky(margin=1.0)
    Talk(place).turn(controls=ONLY[LARGE], caller=Caller("one"), user="u")
    assert Talk(place).turn(caller=Caller("two"), user="u").model_id == SMALL
    economy = Controls(policy="economy", thresholds=dict.fromkeys(ALL, 0.0))
    assert Talk(place).turn(controls=economy, caller=Caller("one"), user="u").model_id == SMALL
    assert Talk(place).turn(caller=Caller("one"), user="u").model_id == LARGE


def test_a_dry_run_moves_no_conversation(sticky):
    place = sticky(margin=1.0)
    dry = Controls(allow=frozenset({LARGE}), dry_run=True)
    assert Talk(place).turn(controls=dry, user="u").model_id == LARGE
    assert Talk(place).turn(user="u").model_id == SMALL


def test_a_conversation_stays_with_who_really_answered(sticky):
    place = sticky(margin=1.0)
    talk = Talk(place)
    routed = talk.turn()
    assert routed.model_id == SMALL
    place.decider.served(routed, LARGE)
    assert talk.turn().model_id == LARGE


def test_a_query_unlike_the_training_data_goes_to_its_fallback_also_in_a_conversation(folder):
    fallback = {"model": LARGE_VL, "novelty_above": 0.0}
    place = Place(
        folder,
        policies={"default": {"kind": "cheapest_qualified", "fallback": fallback}},
        service={"stickiness": {"margin": 1.0}},
    )
    talk = Talk(place)
    talk.turn(controls=ONLY[SMALL])
    routed = talk.turn()
    assert (routed.model_id, routed.reason) == (LARGE_VL, "novel_query_fallback")
    assert steps(routed)["sticky"].reason == "left_novel_query"


# ---------------------------------------------------------------------- failures


@contextmanager
def broken(monkeypatch, error):
    def encode(self, queries, **more):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(EmbeddingGenerator, "encode", encode)
        yield


def test_a_failing_encoder_is_no_error_to_the_client(place, monkeypatch, caplog):
    with broken(monkeypatch, EncoderError("secret canary")), caplog.at_level(logging.ERROR):
        routed = place.decide()
    assert routed.reason == "router_failure"
    assert routed.ranking == ALL
    assert routed.decision is None
    assert routed.policy == "quality"
    assert place.failures == ["EncoderError"]
    assert "EncoderError" in caplog.text
    assert "canary" not in caplog.text
    assert place.decide().reason != "router_failure"


def test_a_failure_is_logged_once_and_counted_each_time(place, monkeypatch, caplog):
    async def walk():
        decider = place.fresh()
        for _ in range(3):
            await decider.decide(QUERY, Controls(), ANONYMOUS)
        decider.close()

    with broken(monkeypatch, RuntimeError("x")), caplog.at_level(logging.ERROR):
        asyncio.run(walk())
    assert place.failures == ["RuntimeError"] * 3
    assert len(caplog.records) == 1


def test_the_default_is_one_that_can_serve_the_request(folder, monkeypatch):
    place = Place(folder, service={"default_models": [SMALL, SMALL_VL]})
    with broken(monkeypatch, RuntimeError("x")):
        assert place.decide().ranking == (SMALL, SMALL_VL, LARGE_VL, LARGE)
        shown = Query("What is shown?", (picture(),))
        assert place.decide(shown).ranking == (SMALL_VL, LARGE_VL)
        place.resting.add(SMALL)
        assert place.decide(
            caller=Caller("k", allowed_models=frozenset({SMALL, LARGE}))
        ).ranking == (LARGE,)


def test_a_failure_of_prices_or_ranking_is_survived_too(place, monkeypatch):
    for name in ("expected_cost", "choose"):
        with monkeypatch.context() as patch:
            patch.setattr(ModelRouter, name, lambda *a, **k: 1 / 0)
            routed = place.decide(QUERY, Controls(deny=frozenset({LARGE_VL})))
        assert routed.reason == "router_failure"
        assert routed.ranking == (SMALL_VL, LARGE, SMALL)


def test_an_encoder_that_hangs_is_given_up(folder, monkeypatch):
    place = Place(folder, encoder={"timeout_s": 0.05})
    encode = EmbeddingGenerator.encode

    def slow(self, queries, **more):
        time.sleep(0.15)
        return encode(self, queries, **more)

    monkeypatch.setattr(EmbeddingGenerator, "encode", slow)
    assert place.decide().reason == "router_failure"
    assert place.failures == ["TimeoutError"]


def test_what_the_client_did_wrong_is_told_to_it(place, monkeypatch):
    with broken(monkeypatch, QueryError("a damaged picture")), pytest.raises(QueryError):
        place.decide()
    with pytest.raises(NoEligibleModelError):
        place.decide(QUERY, Controls(deny=frozenset(ALL)))
    assert place.failures == []


def test_a_request_without_anybody_left_is_refused_before_it_is_encoded(place, monkeypatch):
    with broken(monkeypatch, RuntimeError("x")), pytest.raises(NoEligibleModelError):
        place.decide(QUERY, Controls(deny=frozenset(ALL)))


def test_an_unknown_default_model_is_refused_at_start(folder):
    with pytest.raises(ConfigError, match="default_models"):
        Place(folder, candidates=(LARGE,), service={"default_models": [SMALL]})
