from __future__ import annotations

import io
from decimal import Decimal

import pytest
from rich.console import Console

from router_runtime.console import SafeConsole
from router_training.labelling.calls import Outcome, Status
from router_training.labelling.progress import LabelProgress


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def plain():
    return SafeConsole(file=io.StringIO(), highlight=False, markup=False, width=200)


def ended(status=Status.ANSWERED, model="m", cost="0.01"):
    return Outcome("k", model, status, cost_usd=None if cost is None else Decimal(cost))


def lines(console):
    return console.file.getvalue().splitlines()


def test_plain_lines_come_every_few_seconds_and_at_the_end(clock):
    console = plain()
    with LabelProgress(console, every_s=5, clock=clock) as progress:
        progress.started("m", 100)
        for _ in range(10):
            clock.now += 1
            progress.ended(ended(), asked=True)
    assert lines(console) == [
        "m: 5/100 done, 0 failed, 1.0/s, $0.0500, 1:35 left",
        "m: 10/100 done, 0 failed, 1.0/s, $0.1000, 1:30 left",
        "m: 10/100 done, 0 failed, 1.0/s, $0.1000, 1:30 left",
    ]


def test_a_finished_target_is_told_once_until_it_is_given_more(clock):
    console = plain()

    def answered(progress, model):
        clock.now += 1
        progress.ended(ended(model=model), asked=True)

    with LabelProgress(console, every_s=1, clock=clock) as progress:
        progress.started("quick", 1)
        progress.started("slow", 9)
        for model in ("quick", "slow", "slow"):
            answered(progress, model)
        progress.started("quick", 1)
        answered(progress, "quick")
    told = [line.partition(" done")[0] for line in lines(console)]
    assert told == [
        *("quick: 1/1", "slow: 0/9"),
        *("slow: 1/9", "slow: 2/9"),
        *("quick: 2/2", "slow: 2/9"),
        "slow: 2/9",
    ]


def shown_at_end(clock, *events, after_s=10, total=None):
    console = plain()
    with LabelProgress(console, every_s=1e9, clock=clock) as progress:
        progress.started("m", total)
        for event in events:
            event(progress)
        clock.now += after_s
    return lines(console)[-1]


def test_failures_are_done_and_counted_apart_and_pending_cells_are_neither(clock):
    line = shown_at_end(
        clock,
        lambda p: p.ended(ended(Status.FAILED, cost=None), asked=True),
        lambda p: p.ended(ended(Status.REFUSED, cost=None), asked=True),
        lambda p: p.ended(ended(Status.PENDING, cost=None), asked=False),
        lambda p: p.ineligible("m"),
        total=9,
    )
    assert line == "m: 3/9 done, 2 failed, 0.2/s, $0.0000, 0:25 left"


def test_what_was_kept_is_done_and_costs_nothing_and_does_not_count_as_speed(clock):
    line = shown_at_end(clock, lambda p: p.ended(ended(), asked=False), total=2)
    assert line == "m: 1/2 done, 0 failed, 0.0/s, $0.0000"


def test_an_unknown_cost_is_marked_and_an_unknown_total_left_out(clock):
    line = shown_at_end(clock, lambda p: p.ended(ended(cost=None), asked=True))
    assert line == "m: 1 done, 0 failed, 0.1/s, $0.0000+"


def test_the_rate_is_that_of_the_last_half_minute(clock):
    line = shown_at_end(clock, lambda p: p.ended(ended(), asked=True), after_s=40, total=9)
    assert line == "m: 1/9 done, 0 failed, 0.0/s, $0.0100"


def test_totals_of_several_stages_add_up(clock):
    line = shown_at_end(clock, lambda p: p.started("m", 5), lambda p: p.started("m", 2))
    assert line.startswith("m: 0/7 done")


def test_a_stopped_target_and_calls_in_flight_are_said_at_once(clock):
    console = plain()
    with LabelProgress(console, clock=clock) as progress:
        progress.stopped("m", "HTTP 401 [red]key[/red]\x1b[2J")
        progress.draining(3)
    assert lines(console)[:2] == [
        "m: stopped: HTTP 401 [red]key[/red][2J",
        "waiting for 3 calls in flight; Ctrl-C again abandons them",
    ]


def test_a_terminal_shows_a_live_table_with_a_line_per_target(clock):
    console = Console(file=io.StringIO(), force_terminal=True, width=80, _environ={})
    with LabelProgress(console, clock=clock) as progress:
        progress.started("small", 1200)
        progress.started("big", 10)
        for _ in range(100):
            progress.ended(ended(model="small"), asked=True)
        progress.stopped("big", "HTTP 401")
        clock.now += 10
    shown = console.file.getvalue()
    assert "small" in shown
    assert "100/1,200" in shown
    assert "$1.0000" in shown
    assert "1:50" in shown
    assert "big (stopped)" in shown
