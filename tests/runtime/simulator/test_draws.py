from __future__ import annotations

import statistics

from router_runtime.simulator.draws import Draws


def test_a_draw_depends_on_its_name_and_not_on_what_was_drawn_before():
    draws = Draws.of(0, "model", "call")
    first = draws.uniform("success")
    draws.uniform("length")
    assert draws.uniform("success") == first != draws.uniform("length")


def test_parts_are_kept_apart():
    assert Draws.of("ab", "c") != Draws.of("a", "bc")
    assert Draws.of(1, "x") == Draws.of("1", "x")


def test_uniform_normal_and_pick_are_spread_as_they_should_be():
    draws = Draws.of("spread")
    uniform = [draws.uniform(str(at)) for at in range(4000)]
    normal = [draws.normal(str(at)) for at in range(4000)]
    picks = [draws.pick(str(at), "ab") for at in range(4000)]
    assert 0 <= min(uniform) and max(uniform) < 1
    assert abs(statistics.mean(uniform) - 0.5) < 0.02
    assert abs(statistics.mean(normal)) < 0.05 and abs(statistics.stdev(normal) - 1) < 0.05
    assert abs(picks.count("a") / 4000 - 0.5) < 0.03


def test_lone_surrogates_can_be_drawn_for():
    assert Draws.of("\ud800") != Draws.of("\ud801")
