from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from router_runtime.service_config import BreakerConfig
from router_runtime.targets.breaker import Breaker, Breakers, State

CONFIG = BreakerConfig(failures=3, window_s=10, rest_s=4, max_rest_s=10, probes=1)


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def breaker(clock):
    return Breaker(CONFIG, clock=clock)


def fail(breaker, times=1, **how):
    for _ in range(times):
        breaker.permit().failure(**how)


def test_it_opens_at_the_configured_number_of_failures(breaker):
    fail(breaker, 2)
    assert breaker.state is State.CLOSED
    fail(breaker)
    assert (breaker.state, breaker.permit(), breaker.refuses) == (State.OPEN, None, True)
    assert breaker.wait_s == 4


def test_failures_outside_the_window_do_not_count(breaker, clock):
    fail(breaker, 2)
    clock.now += 10
    fail(breaker, 2)
    assert breaker.state is State.CLOSED


def test_a_busy_target_that_fails_now_and_then_stays_in_use(breaker):
    for _ in range(50):
        fail(breaker)
        breaker.permit().success()
    assert breaker.state is State.CLOSED


def test_a_failure_that_all_calls_would_meet_opens_at_once(breaker):
    fail(breaker, for_all=True)
    assert breaker.state is State.OPEN


def test_it_rests_as_long_as_the_server_asks_up_to_the_most(breaker):
    fail(breaker, 2)
    fail(breaker, rest_s=7)
    assert breaker.wait_s == 7
    other = Breaker(CONFIG, clock=breaker._clock)
    fail(other, for_all=True, rest_s=3600)
    assert other.wait_s == 10


def test_after_its_rest_one_probe_at_a_time_decides(breaker, clock):
    fail(breaker, 3)
    clock.now += 4
    assert (breaker.state, breaker.refuses) == (State.HALF_OPEN, False)
    probe = breaker.permit()
    assert probe is not None
    assert (breaker.permit(), breaker.refuses) == (None, True)
    probe.success()
    assert breaker.state is State.CLOSED
    assert breaker.permit() is not None


def test_each_failed_probe_doubles_the_rest_up_to_the_most(breaker, clock):
    fail(breaker, 3)
    for rest_s in (8, 10, 10):
        clock.now += breaker.wait_s
        fail(breaker)
        assert breaker.wait_s == rest_s


def test_a_closed_breaker_forgets_how_long_it_rested(breaker, clock):
    fail(breaker, 3)
    clock.now += 4
    fail(breaker)
    clock.now += 8
    breaker.permit().success()
    fail(breaker, 3)
    assert breaker.wait_s == 4


def test_a_probe_that_is_cancelled_gives_its_place_back(breaker, clock):
    fail(breaker, 3)
    clock.now += 4
    breaker.permit().cancel()
    assert (breaker.state, breaker.permit() is not None) == (State.HALF_OPEN, True)


def test_calls_from_before_it_opened_change_nothing_afterwards(breaker, clock):
    late = [breaker.permit() for _ in range(3)]
    fail(breaker, 3)
    late[0].success()
    assert breaker.state is State.OPEN
    clock.now += 4
    late[1].failure()
    assert breaker.state is State.HALF_OPEN
    late[2].cancel()
    probe = breaker.permit()
    assert breaker.permit() is None
    probe.success()
    assert breaker.state is State.CLOSED


def test_of_what_a_permit_is_told_the_first_counts(breaker):
    permit = breaker.permit()
    permit.success()
    for _ in range(5):
        permit.failure()
    assert breaker.state is State.CLOSED


def test_a_target_keeps_its_breaker_over_configs(clock):
    breakers = Breakers(clock=clock)
    breaker = breakers.of("http://host/v1 m", CONFIG)
    fail(breaker, 2)
    again = breakers.for_models({"name": "http://host/v1 m"}, BreakerConfig(failures=3))["name"]
    assert again is breaker
    fail(again)
    assert (again.state, again.wait_s) == (State.OPEN, 10)


def test_targets_that_no_config_names_are_forgotten(clock):
    breakers = Breakers(clock=clock)
    kept, gone = breakers.of("kept", CONFIG), breakers.of("gone", CONFIG)
    breakers.keep_only(["kept"])
    assert breakers.of("kept", CONFIG) is kept
    assert breakers.of("gone", CONFIG) is not gone


class BreakerMachine(RuleBasedStateMachine):
    """Calls begin and end in any order, at any time."""

    def __init__(self):
        super().__init__()
        self.clock = Clock()
        self.config = BreakerConfig(failures=3, window_s=10, rest_s=4, max_rest_s=30, probes=2)
        self.breaker = Breaker(self.config, clock=self.clock)
        self.in_flight = []
        self.probing = []
        self.opened_at = None

    @rule(seconds=st.floats(0, 20))
    def time_passes(self, seconds):
        self.clock.now += seconds

    @rule()
    def call_begins(self):
        state, refuses = self.breaker.state, self.breaker.refuses
        permit = self.breaker.permit()
        assert (permit is None) == refuses
        if state is State.CLOSED:
            assert permit is not None
            self.in_flight.append(permit)
        elif state is State.OPEN:
            assert permit is None
        elif permit is not None:
            self.probing.append(permit)
            assert len(self.probing) <= self.config.probes
        else:
            assert len(self.probing) == self.config.probes

    @precondition(lambda self: self.in_flight)
    @rule(how=st.sampled_from(["success", "failure", "cancel"]), at=st.integers(0, 100))
    def older_call_ends(self, how, at):
        before = self.breaker.state
        permit = self.in_flight.pop(at % len(self.in_flight))
        getattr(permit, how)()
        if before is not State.CLOSED:
            assert self.breaker.state is before, "a call from before it opened says nothing"
        elif how != "failure":
            assert self.breaker.state is State.CLOSED
        if before is State.CLOSED and self.breaker.state is State.OPEN:
            self.probing = []

    @precondition(lambda self: self.probing)
    @rule(how=st.sampled_from(["success", "failure", "cancel"]))
    def probe_ends(self, how):
        getattr(self.probing.pop(), how)()
        if how == "success":
            assert self.breaker.state is State.CLOSED
            self.in_flight, self.probing = [*self.in_flight, *self.probing], []
        elif how == "failure":
            assert self.breaker.state is State.OPEN
            self.in_flight, self.probing = [*self.in_flight, *self.probing], []
        else:
            assert self.breaker.state is State.HALF_OPEN

    @invariant()
    def it_never_rests_longer_than_the_most(self):
        assert 0 <= self.breaker.wait_s <= self.config.max_rest_s
        assert len(self.breaker._failures) < self.config.failures


BreakerMachine.TestCase.settings = settings(max_examples=150, deadline=None)
test_any_order_of_calls_keeps_the_rules = BreakerMachine.TestCase
