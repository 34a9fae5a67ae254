from __future__ import annotations

from dataclasses import replace

import pytest
import yaml

from router_training import wording
from router_training.evaluation_report import Interval

NAN = float("nan")


def test_unknown_numbers_are_dashes():
    for form in (wording.share, wording.number, wording.signed, wording.percent, wording.per_1k):
        assert form(NAN) == "-"
    assert wording.percent(float("inf")) == "never"
    assert wording.percent(float("-inf")) == "-"


def test_an_interval_without_bounds_is_its_estimate():
    known = Interval(0.1, 0.05, 0.2)
    assert wording.interval(known, wording.signed) == "+0.1000 [+0.0500, +0.2000]"
    assert wording.interval(Interval(0.1, NAN, NAN), wording.signed) == "+0.1000"


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [(0.01, 0.03, "better than"), (-0.03, -0.01, "worse than"), (-0.01, 0.03, "cannot be told")],
)
def test_the_verdict_claims_only_what_the_interval_allows(small_report, low, high, words):
    report = replace(small_report, quality_gap=Interval((low + high) / 2, low, high))
    assert words in wording.verdict(report)
    assert report.best_single in wording.verdict(report)


def test_without_an_interval_the_verdict_claims_nothing(small_report):
    report = replace(small_report, quality_gap=Interval(0.1, NAN, NAN))
    assert "cannot be told" in wording.verdict(report)
    assert "nan" not in wording.verdict(report).lower().replace(report.best_single.lower(), "")


def test_a_best_single_model_that_is_free_is_not_called_of_unknown_cost(make_report):
    text = wording.verdict(make_report(1, free=True, queries=60))
    assert text.endswith("; the best single model costs nothing.")
    unknown = wording.verdict(make_report(1, costs="unknown", queries=60))
    assert unknown.endswith("; no cost is known.")


def test_only_known_costs_have_a_unit():
    units = ("usd", "relative", "unknown")
    assert [*map(wording.cost_header, units)] == ["USD/1k calls", "relative cost x 1k", "cost"]


def test_failing_slices_come_worst_first_and_others_are_not_named(small_report):
    gaps = [Interval(0, -1, 1), Interval(-0.1, -0.2, -0.01), Interval(-0.3, -0.4, -0.2)]
    parts = [replace(p, gap=g) for p, g in zip(small_report.slices, gaps, strict=False)]
    report = replace(small_report, slices=tuple(parts))
    assert [part.gap.estimate for part in wording.failing_slices(report)] == [-0.3, -0.1]
    found = [line for line in wording.failures(report) if line.startswith("Worse")]
    assert found[0].startswith(
        "Worse than the best single model on data set 'set-02': -30.0 points"
    )
    assert len(found) == 2
    fine = replace(report, slices=tuple(parts[:1]))
    assert "On none of the 1 slices" in wording.failures(fine)[0]


def test_the_weakest_models_are_named_where_they_are_known(small_report):
    first, second = small_report.models
    first = replace(first, metrics=replace(first.metrics, auc=0.5, ece=NAN))
    second = replace(second, metrics=replace(second.metrics, auc=0.9, ece=0.2))
    report = replace(small_report, models=(first, second))
    assert wording.least_predictable(report) is first
    assert wording.worst_calibrated(report) is second
    blank = replace(first, metrics=replace(first.metrics, auc=NAN))
    assert wording.least_predictable(replace(report, models=(blank,))) is None


def test_unserved_and_unscored_queries_are_counted(small_report):
    strategies = tuple(
        replace(s, outcome=replace(s.outcome, n_unscored=24, n_unserved=12))
        if s.kind == "router"
        else s
        for s in small_report.strategies
    )
    text = " ".join(wording.failures(replace(small_report, strategies=strategies)))
    assert "No model may serve 12 of the 240 queries (5.0%)." in text
    assert "has no score on 24 of the 240 queries (10.0%)" in text


def test_curve_figures_are_those_that_are_known(small_report, make_report):
    names = [name for name, _, _ in wording.curve_figures(small_report)]
    assert "APGR" in names and "AIQ, zero router" in names
    assert all(value != "-" for _, value, _ in wording.curve_figures(small_report))
    unknown = [name for name, _, _ in wording.curve_figures(make_report(3, costs="unknown"))]
    assert not any("AIQ" in name for name in unknown)


def test_policy_lines_are_yaml_without_empty_settings():
    text = wording.policy_lines({"kind": "utility", "lambda_per_usd": 2.0, "fallback": None})
    assert yaml.safe_load(text) == {
        "policies": {"recommended": {"kind": "utility", "lambda_per_usd": 2.0}},
        "policy": "recommended",
    }


def test_a_wanted_share_says_of_what():
    assert wording.honest_name("98 %") == "98 % of best"
    assert wording.honest_name("recommended") == "recommended"


@pytest.mark.parametrize(
    "name", ["a\n```\n---\nb", "\u2028x", "\u202egnp", "\x1b[2J", "é 名", "yes", "1e5", "a: b #"]
)
def test_yaml_keeps_every_text_in_its_line(name):
    content = {"models": [name], "thresholds": {name: 0.5}}
    text = wording.yaml_lines(content)
    assert yaml.safe_load(text) == content
    assert all(line.isprintable() for line in text.split("\n"))
    assert not any(line.lstrip().startswith(("```", "---")) for line in text.splitlines())


def test_what_a_router_takes_reads_short():
    assert [wording.seconds(v) for v in (None, 0.0, 0.042, 3.14, 9.96, 812.4)] == [
        "-", "0", "0.042", "3.1", "10", "812"
    ]  # fmt: skip
    assert [wording.magnitude(v) for v in (None, 0, 950, 999_600, 1_234_567, 66_955_010)] == [
        "-", "0", "950", "1M", "1.23M", "67M"
    ]  # fmt: skip
    assert [wording.milliseconds(v) for v in (float("nan"), 0.4567, 11.26, 99.96, 1616.9)] == [
        "-", "0.457", "11.3", "100", "1617"
    ]  # fmt: skip
