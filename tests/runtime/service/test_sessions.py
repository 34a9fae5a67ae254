from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from router_runtime.config import (
    CheapestQualifiedConfig,
    FixedConfig,
    HighestProbabilityConfig,
    UtilityConfig,
)
from router_runtime.service.sessions import Identity, Sessions, gain, identify
from router_runtime.service_config import StickinessConfig
from router_runtime.types import Reason, RoutingDecision


def user(content):
    return {"role": "user", "content": content}


def assistant(content="Well."):
    return {"role": "assistant", "content": content}


SYSTEM = {"role": "system", "content": "Be brief."}


def test_a_header_goes_before_user_and_both_before_the_beginning():
    messages = [user("Hello")]
    named = identify(messages, header="s1", user="u1")
    assert named == Identity(b"hs1", follows=True)
    assert identify(messages, user="u1") == Identity(b"uu1", follows=True)
    begun = identify(messages)
    assert begun is not None
    assert not begun.follows


def test_the_same_word_as_header_and_as_user_are_two_conversations():
    assert identify([], header="x") != identify([], user="x")


def test_a_conversation_is_known_by_its_first_turns_as_it_grows():
    first = identify([SYSTEM, user("Hello")])
    second = identify([SYSTEM, user("Hello"), assistant(), user("And then?")])
    assert first is not None
    assert second is not None
    assert first.name == second.name
    assert (first.follows, second.follows) == (False, True)


@pytest.mark.parametrize(
    "other",
    [
        [user("Hello")],
        [SYSTEM, user("Hello!")],
        [{"role": "system", "content": "Be long."}, user("Hello")],
        [SYSTEM, user([{"type": "text", "text": "Hello"}, {"type": "image_url", "x": "data:a"}])],
    ],
)
def test_another_beginning_is_another_conversation(other):
    one, two = identify([SYSTEM, user("Hello")]), identify(other)
    assert one is not None
    assert two is not None
    assert one.name != two.name


def test_pictures_are_told_apart_by_length_and_ends():
    def shown(uri):
        found = identify([user([{"type": "image_url", "image_url": {"url": uri}}])])
        assert found is not None
        return found.name

    uri = "data:image/png;base64," + "A" * 20_000
    assert shown(uri) == shown(str(uri))
    assert len({shown(uri), shown(uri + "A"), shown(uri[:-1] + "B")}) == 3


@pytest.mark.parametrize("name", ["", None, 7, {}, True])
def test_a_user_that_is_no_text_names_nothing(name):
    assert identify([user("Hello")], user=name) == identify([user("Hello")])


def test_without_a_user_turn_there_is_nothing_to_know_it_by():
    assert identify([SYSTEM, assistant()]) is None
    assert identify(["nonsense", 3]) is None


_CONTENT = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=5,
)


@given(messages=st.lists(st.dictionaries(st.sampled_from(["role", "content"]), _CONTENT)))
def test_any_messages_are_identified_without_an_error(messages):
    assert identify(messages) == identify(messages)


# ---------------------------------------------------------------------- the store


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_a_conversation_is_forgotten_after_a_silence():
    clock = Clock()
    sessions = Sessions(StickinessConfig(ttl_s=10), clock=clock)
    sessions.set_model("k", "m")
    clock.now = 10
    assert sessions.model_of("k") == "m"
    sessions.set_model("k", "m")
    clock.now = 20
    assert sessions.model_of("k") == "m"
    clock.now = 30.1
    assert sessions.model_of("k") is None
    assert len(sessions) == 0


PARTS = st.sampled_from(["a", "b", "ab", "a:b", "", "1:a"])


@given(st.tuples(PARTS, PARTS, PARTS, PARTS), st.tuples(PARTS, PARTS, PARTS, PARTS))
def test_keys_are_equal_only_where_tenant_policy_artifact_and_name_are(one, other):
    def key(parts):
        tenant, policy, artifact, name = parts
        identity = Identity(name.encode(), follows=True)
        return Sessions.key(identity, key_id=tenant, policy=policy, artifact_id=artifact)

    assert (key(one) == key(other)) == (one == other)


class Conversations(RuleBasedStateMachine):
    """Against a dictionary that forgets nothing: bounded, isolated, and never wrong."""

    @initialize(most=st.integers(1, 4))
    def begin(self, most):
        self.most = most
        self.clock = Clock()
        self.sessions = Sessions(StickinessConfig(max_sessions=most, ttl_s=100), clock=self.clock)
        self.model: dict[str, tuple[str, float]] = {}
        self.recent: list[str] = []

    def key(self, tenant, name):
        identity = Identity(name.encode(), follows=True)
        return Sessions.key(identity, key_id=tenant, policy="p", artifact_id="a")

    @rule(
        tenant=st.sampled_from(["t1", "t2"]),
        name=st.sampled_from(["x", "y", "z"]),
        model=st.sampled_from(["m1", "m2"]),
    )
    def serve(self, tenant, name, model):
        key = self.key(tenant, name)
        self.sessions.set_model(key, f"{tenant}/{model}")
        self.model[key] = (f"{tenant}/{model}", self.clock.now)
        self.recent = [*(k for k in self.recent if k != key), key][-self.most :]

    @rule(seconds=st.floats(0, 60))
    def wait(self, seconds):
        self.clock.now += seconds

    @rule(tenant=st.sampled_from(["t1", "t2"]), name=st.sampled_from(["x", "y", "z"]))
    def ask(self, tenant, name):
        key = self.key(tenant, name)
        found = self.sessions.model_of(key)
        if found is None:
            forgotten = key not in self.recent
            assert forgotten or self.clock.now - self.model[key][1] > 100
            if key in self.recent:
                self.recent.remove(key)
        else:
            assert found.startswith(f"{tenant}/")
            assert found == self.model[key][0]
            assert self.clock.now - self.model[key][1] <= 100

    @invariant()
    def bounded(self):
        if hasattr(self, "sessions"):
            assert len(self.sessions) <= self.most


TestConversations = Conversations.TestCase

# ---------------------------------------------------------------------- the gain


def decision(P, cost, *, best="b"):
    return RoutingDecision(
        model_id=best,
        ranking=("b", "c"),
        probabilities=P,
        expected_cost=cost,
        cost_unit="usd",
        ineligible={},
        reason=Reason.HIGHEST_UTILITY,
        artifact_id="x",
        policy="p",
    )


P, COST = {"b": 0.9, "c": 0.6}, {"b": 0.01, "c": 0.04}
NONE, HALF, HIGH = {}, {"b": 0.5, "c": 0.5}, {"b": 0.5, "c": 0.8}


@pytest.mark.parametrize(
    ("policy", "thresholds", "expected"),
    [
        (HighestProbabilityConfig(), NONE, 0.3),
        (UtilityConfig(lambda_per_usd=10), NONE, 0.3 + 10 * 0.03),
        (UtilityConfig(lambda_per_usd=0), NONE, 0.3),
        (CheapestQualifiedConfig(), HALF, 0.75),
        (CheapestQualifiedConfig(), HIGH, 0.3),
        (FixedConfig(model="b"), NONE, math.inf),
    ],
)
def test_the_gain_is_told_in_the_terms_of_the_policy(policy, thresholds, expected):
    found = gain(decision(P, COST), "c", policy=policy, thresholds=thresholds)
    assert found == pytest.approx(expected)


@pytest.mark.parametrize("cost", [{"b": None, "c": 0.1}, {"b": 0.1, "c": None}, {"b": 0, "c": 0}])
def test_where_costs_are_unknown_or_nothing_there_is_no_gain_in_cost(cost):
    qualified = CheapestQualifiedConfig()
    assert gain(decision(P, cost), "c", policy=qualified, thresholds=HALF) == 0


def test_an_unknown_cost_is_no_utility():
    cost = {"b": None, "c": 0.1}
    assert gain(decision(P, cost), "c", policy=UtilityConfig(lambda_per_usd=1), thresholds={}) == 0
