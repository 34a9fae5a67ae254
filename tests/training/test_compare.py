from __future__ import annotations

import io
import json
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from router_runtime.errors import DataError
from router_runtime.policy import CheapestQualified, Fixed, HighestProbability
from router_training.compare import Contestant, compare
from router_training.compare_tables import render_comparison
from router_training.footprint import Footprint, Latency
from router_training.labels import LabelMatrix

NAN = float("nan")
MODELS = ("dear", "cheap")

# The dear model is always right, the cheap one on half of the rows, and one router knows on which.
Y = np.tile([[1.0, 1.0], [1.0, 0.0]], (50, 1))
KNOWS = np.where(Y > 0, 0.9, 0.1)
GUESSES = np.tile([0.8, 0.6], (100, 1))
COST = np.tile([4.0, 1.0], (100, 1))


def contestant(name="a", P=KNOWS, policy=None, **arguments):
    return Contestant(
        **{
            "name": name,
            "model_ids": MODELS,
            "P": P,
            "expected_cost": COST,
            "eligible": np.ones(P.shape, bool),
            "policy": policy or CheapestQualified(np.full(2, 0.5)),
            "labels": LabelMatrix.of_scores(MODELS, Y),
            "cost_unit": "usd",
        }
        | arguments
    )


def reversed_columns(one):
    return replace(
        one,
        model_ids=one.model_ids[::-1],
        P=one.P[:, ::-1],
        expected_cost=one.expected_cost[:, ::-1],
        eligible=one.eligible[:, ::-1],
        labels=LabelMatrix.of_scores(MODELS[::-1], Y[:, ::-1]),
    )


def test_every_figure_by_hand():
    found = compare([contestant(), contestant("b", GUESSES, HighestProbability())])
    first, second = found.standings
    assert (found.best_single, found.best_single_quality, found.cost_range) == (
        "dear",
        1.0,
        (1.0, 4.0),
    )
    assert (first.quality, first.cost, first.savings) == (1.0, 2.5, 1 - 2.5 / 4)
    assert (second.quality, second.cost, second.savings) == (1.0, 4.0, 0.0)
    # hulls: (1, .5), (2.5, 1), flat; and the straight line from (1, .5) to (4, 1)
    assert (first.aiq, second.aiq) == (pytest.approx(0.875), pytest.approx(0.75))
    assert (first.auc, first.brier) == (1.0, pytest.approx(0.01))
    assert first.difference is None
    difference = second.difference
    assert (difference.quality.estimate, difference.cost.estimate) == (0.0, 1.5)
    assert difference.savings.estimate == pytest.approx(-1.5 / 4)
    assert difference.aiq.estimate == pytest.approx(0.75 - 0.875)
    assert difference.brier.estimate == pytest.approx(second.brier - first.brier)
    assert difference.ece.estimate == pytest.approx(second.ece - first.ece)
    assert difference.auc.high < 0 < difference.brier.low


def test_a_router_differs_from_itself_by_nothing():
    difference = compare([contestant(), contestant("b")]).standings[1].difference
    for measure in vars(difference).values():
        assert (measure.estimate, measure.low, measure.high) == (0, 0, 0)


def test_columns_may_come_in_another_order():
    one = contestant(policy=HighestProbability(), P=GUESSES)
    first, second = compare([one, reversed_columns(replace(one, name="b"))]).standings
    assert replace(second, name="a", difference=None) == first
    assert second.difference.quality.estimate == 0


def test_a_kind_expectation_does_not_lower_the_bill():
    kind = contestant("kind", policy=Fixed(0), expected_cost=COST / 10)
    assert compare([contestant(), kind]).standings[1].cost == 4.0


def test_recorded_dollars_are_billed_to_all():
    unknown = np.full(Y.shape, NAN)
    labels = LabelMatrix(MODELS, Y, np.full(Y.shape, 2.0), unknown, unknown, unknown)
    found = compare([contestant(labels=labels), contestant("b", policy=Fixed(0), labels=labels)])
    assert [entry.cost for entry in found.standings] == [2.0, 2.0]


def test_without_costs_quality_and_probabilities_are_still_compared():
    unknown = {"expected_cost": np.full(Y.shape, NAN), "cost_unit": "unknown"}
    found = compare(
        [
            contestant(policy=HighestProbability(), **unknown),
            contestant("b", policy=Fixed(1), **unknown),
        ]
    )
    difference = found.standings[1].difference
    assert difference.quality.estimate == -0.5
    assert np.isnan([difference.aiq.estimate, difference.cost.estimate]).all()
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))["standings"][1]["aiq"] is None


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"model_ids": ("dear", "other")}, "'b' chooses among dear, other, 'a' among dear, cheap"),
        ({"cost_unit": "relative"}, "in unit 'relative'"),
        ({"labels": LabelMatrix.of_scores(MODELS, 1 - Y)}, "Compare on one file"),
    ],
)
def test_what_cannot_be_compared_is_refused(changed, message):
    with pytest.raises(DataError, match=message):
        compare([contestant(), contestant("b", **changed)])


def test_the_json_has_a_version_and_the_table_every_measure():
    found = compare([contestant("old"), contestant("new[x]", GUESSES, HighestProbability())])
    content = found.to_json()
    assert content["schema_version"] == 1
    assert json.loads(json.dumps(content, allow_nan=False)) == content
    stream = io.StringIO()
    render_comparison(found, Console(file=stream, width=120))
    text = stream.getvalue()
    for expected in ("old (cheapest_qualified)", "new[x] minus old", "best single (dear)"):
        assert expected in text
    for measure in ("savings", "AIQ", "AUC", "Brier", "ECE"):
        assert text.count(measure) == 2
    for measure in ("accuracy", "USD/1k"):  # of the best single model too
        assert text.count(measure) == 3
    assert "+1500" in text.replace(",", "")


def test_one_table_tells_what_every_router_takes_beside_what_it_achieves():
    latency = Latency(64, 5, 11.2, 16.9, 32, 9.9)
    known = Footprint(14.2, 0.4, 1_130_000, 0, 2_510_000, 0, latency)
    unknown = Footprint(None, 812.0, 0, None, 2_000, None)
    entrants = [
        replace(contestant("here"), footprint=known),
        replace(contestant("there"), footprint=unknown),
        contestant("unasked"),
    ]
    found = compare(entrants, machine="2 cores")
    stream = io.StringIO()
    render_comparison(found, Console(file=stream, width=80))
    table, _, rest = stream.getvalue().partition("Decisions timed")
    assert "64 queries, 5 rounds, on 2 cores." in " ".join(rest.split())
    rows = {line.split()[0]: line.split()[3:] for line in table.splitlines() if line.strip()}
    assert rows["here"] == ["14+0.4", "1.13M+0", "2.51M+0", "11.2", "16.9", "9.9"]
    assert rows["there"] == ["-+812", "0+-", "2k+-", "-", "-", "-"]
    assert rows["unasked"] == ["-"] * 6
    told = [entry["footprint"] for entry in found.to_json()["standings"]]
    assert told[0]["latency"]["p95_ms"] == 16.9
    assert told[1]["embed_s"] is told[1]["latency"] is told[2] is None


def test_where_nothing_was_timed_the_table_says_so():
    stream = io.StringIO()
    render_comparison(compare([contestant(), contestant("b")]), Console(file=stream, width=80))
    assert "No decision was timed." in stream.getvalue()
