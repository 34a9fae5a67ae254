"""A provider's limits per minute, kept on our side."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from router_runtime.targets.quota import MINUTE_S, MinuteQuota


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def quota(requests=None, tokens=None):
    clock = Clock()
    return MinuteQuota(requests, tokens, clock=clock), clock


def test_calls_are_free_again_a_minute_after_each():
    found, clock = quota(requests=2)
    found.count(0)
    clock.now = 20.0
    found.count(0)
    assert found.full and found.free_in_s == 40.0
    clock.now = MINUTE_S
    assert not found.full
    found.count(0)
    assert found.full and found.free_in_s == 20.0


def test_tokens_fill_it_as_well_and_a_large_call_passes_an_idle_one():
    found, clock = quota(tokens=100)
    assert not found.full
    found.count(500)
    assert found.full
    clock.now = MINUTE_S
    assert not found.full and found.free_in_s == 0.0


@given(st.lists(st.tuples(st.floats(0, 30), st.integers(1, 50)), max_size=60))
def test_no_minute_sees_more_calls_than_allowed(steps):
    found, clock = quota(requests=5, tokens=100)
    sent = []
    for wait, tokens in steps:
        clock.now += wait
        if not found.full:
            found.count(tokens)
            sent.append((clock.now, tokens))
    for at, _ in sent:
        within = [tokens for when, tokens in sent if at <= when < at + MINUTE_S]
        assert len(within) <= 5
        assert sum(within[:-1]) < 100
