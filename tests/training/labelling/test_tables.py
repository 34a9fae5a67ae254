from __future__ import annotations

import io
from decimal import Decimal
from pathlib import Path

import pytest

from router_runtime.console import SafeConsole
from router_training.labelling.ask_local import Asked
from router_training.labelling.estimate import Estimate, ModelEstimate
from router_training.labelling.responses import Tally
from router_training.labelling.scoring import JudgeSummary
from router_training.labelling.tables import missing, render_estimate, render_labelled, usd
from router_training.labelling.walk import Labelled

LONG = "meta-llama/Llama-3.1-405B-Instruct-Turbo"


def labelled(**asked):
    parts = {
        "candidates": {LONG: Tally(answered=7, failed=1, reasons={"failed: HTTP 500": 1})},
        "judged": JudgeSummary({LONG: 5}, {LONG: 2}, {"no verdict: unreadable": 2}, {"judge": 5}),
        "judges": {"judge": Tally(answered=9, unpriced=9)},
        "spent": {LONG: Decimal("1.25")},
        "stopped": {},
        "budget_reached": False,
    }
    return Labelled(
        samples=Path("samples"),
        n_samples=8,
        asked=Asked(**{**parts, **asked}),
        spent_usd=Decimal("1.25"),
        total_usd=Decimal(3),
        estimated_usd=Decimal("0.5"),
        tabulated=None,
    )


def shown(render, *arguments, width=80, **options):
    text = io.StringIO()
    render(*arguments, SafeConsole(file=text, width=width, markup=False), **options)
    return text.getvalue()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "unknown"),
        (Decimal(0), "$0.0000"),
        (Decimal("0.00012"), "$0.0001"),
        (Decimal("12.5"), "$12.5000"),
        (Decimal("1234.567"), "$1,234.57"),
    ],
)
def test_dollars_are_told_with_digits_that_matter(value, text):
    assert usd(value) == text


def test_every_reason_for_a_missing_score_is_counted():
    text = shown(render_labelled, labelled())
    assert f"- {LONG}: 1 failed: HTTP 500" in text
    assert "2 answers (28.6%) have no score:" in text
    assert "- 2 no verdict: unreadable" in text
    assert "Scores by: judge 5." in text


def test_costs_that_nobody_told_are_marked():
    text = shown(render_labelled, labelled())
    assert "$1.2500" in text
    assert "$0.0000+" in text
    assert "at most $0.5000 for calls that told no cost" in " ".join(text.split())


def test_a_candidate_that_never_answered_is_named():
    silent = {LONG: Tally(failed=8), "other": Tally(answered=8)}
    (line,) = missing(labelled(candidates=silent), max_cost_usd=None)
    assert line == f"{LONG} answered nothing: all of its 8 calls failed."


def test_a_finished_run_misses_nothing():
    assert missing(labelled(), max_cost_usd=None) == ()


def test_a_stopped_target_the_budget_and_what_is_to_come_are_told():
    lines = missing(
        labelled(
            candidates={LONG: Tally(answered=2, pending=3)},
            judged=JudgeSummary({}, {LONG: 2}, {"pending: judge 'judge': budget_reached": 2}, {}),
            stopped={LONG: "HTTP 401"},
            budget_reached=True,
        ),
        max_cost_usd=Decimal(2),
    )
    assert lines == (
        f"{LONG} was stopped: HTTP 401",
        "The budget of $2.0000 is reached; raise max_cost_usd to go on.",
        "3 answers of candidates are still to come.",
        "2 answers are still to be judged.",
    )


def test_an_estimate_says_what_it_rests_on_and_whether_the_budget_suffices():
    models = (
        ModelEstimate(LONG, "candidate", 0, 100, 20, 12_000, 40_000, "max_tokens", Decimal(3)),
        ModelEstimate("judge", "judge", 0, 90, 0, 9_000, 2_000, "assumed", None),
    )
    found = Estimate(120, models, Decimal("0.5"))
    text = " ".join(shown(render_estimate, found, max_cost_usd=Decimal(3), width=100).split())
    assert "190 calls for about $3.0000, without judge (no price)." in text
    assert f"Tokens out as max_tokens allows: {LONG}." in text
    assert "max_cost_usd leaves $2.5000 of $3.0000. That is likely to end the run" in text
    assert "likely" not in shown(render_estimate, found, max_cost_usd=Decimal(5))


def test_a_budget_that_has_money_left_says_what_a_call_counts_with():
    lines = missing(labelled(budget_reached=True), max_cost_usd=Decimal(4))
    assert lines[0].startswith("The budget of $4.0000 is reached;")
    assert "a lower max_tokens" in lines[0]
