from __future__ import annotations

import pytest

from router_runtime.simulator.config import RateLimitConfig
from router_runtime.simulator.limits import Bucket


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def test_a_minute_of_calls_may_come_at_once_and_then_evenly():
    clock = Clock()
    bucket = Bucket(RateLimitConfig(requests_per_minute=60), clock)
    assert [bucket.wait_s() for _ in range(60)] == [0.0] * 60
    assert bucket.wait_s() == pytest.approx(1.0)
    clock.now += 0.75
    assert bucket.wait_s() == pytest.approx(0.25)
    clock.now += 0.25
    assert bucket.wait_s() == 0.0 and bucket.wait_s() > 0


def test_a_burst_caps_what_rest_saves_up():
    clock = Clock()
    bucket = Bucket(RateLimitConfig(requests_per_minute=600, burst=2), clock)
    clock.now += 3600
    assert [bool(bucket.wait_s()) for _ in range(3)] == [False, False, True]
    bucket.refill()
    assert bucket.wait_s() == 0.0
