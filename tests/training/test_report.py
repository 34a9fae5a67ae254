from __future__ import annotations

import io
import json
import re
from dataclasses import replace

import numpy as np
import pytest
import yaml
from rich.console import Console

from router_runtime.errors import RouterError
from router_runtime.policy import CheapestQualified, HighestProbability
from router_training.evaluate import evaluate
from router_training.evaluation_report import SCHEMA_VERSION
from router_training.labels import LabelMatrix
from router_training.report import render_table, render_tuning, write_report_json
from router_training.tune import tune

NAN = float("nan")
MODELS = ("vendor/dear", "cheap[v2]")
P = np.array([[0.9, 0.8], [0.9, 0.8], [0.9, 0.2], [0.9, 0.2]])
Y = np.array([[1.0, 1.0], [1.0, 1.0], [1.0, 0.0], [1.0, 0.0]])
COST = np.tile([0.004, 0.001], (4, 1))


def evaluated(scores=Y, cost=COST, policy=None, **arguments):
    return evaluate(
        P=P,
        labels=LabelMatrix.of_scores(MODELS, scores),
        expected_cost=cost,
        policy=policy or CheapestQualified(np.full(2, 0.5)),
        model_ids=MODELS,
        **arguments,
    )


def printed(render, value, *, width=110, **arguments):
    stream = io.StringIO()
    render(value, Console(file=stream, width=width), **arguments)
    return stream.getvalue()


def cells(text, title):
    """The cells of the line that starts with ``title``."""
    line = next(line for line in text.splitlines() if re.match(rf"\W*{re.escape(title)}", line))
    return [cell.strip() for cell in re.split(r"\s{2,}", line) if cell.strip()]


def without_bounds(text, title):
    """The cells after the title that are no intervals."""
    return [cell for cell in cells(text, title)[1:] if not cell.startswith("[")]


def test_the_table_shows_every_candidate_the_references_and_the_router():
    text = printed(render_table, evaluated())
    assert without_bounds(text, "vendor/dear") == ["1.0000", "+0.0000", "4", "0.0%"]
    assert without_bounds(text, "cheap[v2]") == ["0.5000", "-0.5000", "1", "75.0%"]
    assert cells(text, "best single")[0] == "best single (vendor/dear)"
    assert without_bounds(text, "oracle") == ["1.0000", "+0.0000", "2.5", "37.5%"]
    assert without_bounds(text, "router") == ["1.0000", "+0.0000", "2.5", "37.5%"]
    assert "USD/1k calls" in text
    assert "unscored" not in text


def test_without_a_terminal_the_output_is_plain():
    assert "\x1b" not in printed(render_table, evaluated())


def test_unscored_choices_get_a_column():
    scores = Y.copy()
    scores[0, 1] = NAN
    text = printed(render_table, evaluated(scores))
    assert "unscored" in text
    assert cells(text, "router")[-2:] == ["1", "0"]
    assert "7 scores of 8" in text


@pytest.mark.parametrize("width", [80, 100, 110, 120, 140])
def test_strategies_have_their_names_at_every_width(width):
    scores = Y.copy()
    scores[0, 1] = NAN
    table = printed(render_table, evaluated(scores), width=width).split("The router's", 1)[0]
    assert cells(table, "vendor/dear")[0] == "vendor/dear"


def test_unknown_costs_are_dashes():
    report = evaluated(cost=np.full((4, 2), NAN), policy=HighestProbability(), cost_unit="unknown")
    text = printed(render_table, report)
    assert without_bounds(text, "router") == ["1.0000", "+0.0000", "-", "-"]
    assert "no cost is known" in text


def test_a_table_without_rows_is_not_printed(make_report):
    text = printed(render_table, make_report(1, costs="unknown", queries=60))
    assert "Read off the test curves" not in text
    assert "relative" not in text


def test_intervals_are_printed_where_there_is_room():
    assert "[-0." in printed(render_table, evaluated(), width=100)
    narrow = printed(render_table, evaluated(), width=80)
    table = narrow.split("router vs", 1)[0].split("The router", 1)[0]
    assert "[" not in table.replace("cheap[v2]", "")
    assert max(map(len, narrow.splitlines())) <= 80


def test_honest_points_are_kept_apart_from_the_test_curve(small_report):
    text = printed(render_table, small_report)
    honest, curve = text.split("What to expect")[1].split("Read off the test curves")
    assert "98 % of best" in honest and "recommended" in honest
    assert "AIQ" not in honest
    assert "98 %" not in curve.split("Slices")[0]
    for measure in ("AIQ, router", "QNC", "headroom", "deferral area, router", "APGR", "CPT(50 %)"):
        assert measure in curve


def test_slices_failures_and_the_policy_are_printed(small_report):
    text = printed(render_table, small_report)
    assert cells(text, "set-00")[1] == "40"
    assert "Least predictable model" in text.split("Where it fails")[1]
    lines = text.split("To serve with this policy\n")[1]
    assert yaml.safe_load(lines)["policies"]["recommended"]["lambda_per_usd"] == 40.0


def test_tuning_shows_both_policies_side_by_side():
    result = tune(
        P=P, expected_cost=COST, labels=LabelMatrix.of_scores(MODELS, Y), model_ids=MODELS
    )
    text = printed(render_tuning, result)
    assert cells(text, "utility (recommended)")[-1] == "met"
    assert cells(text, "cheapest_qualified")[-1] == "met"
    assert "lambda_per_usd = " in text
    assert "cheap[v2] 0." in text
    assert result.message.split(":")[0] in text.replace("\n", " ")


def test_relative_costs_are_not_called_dollars():
    result = tune(
        P=P,
        expected_cost=COST,
        labels=LabelMatrix.of_scores(MODELS, Y),
        model_ids=MODELS,
        cost_unit="relative",
    )
    assert "USD" not in printed(render_tuning, result, cost_unit="relative").split("utility:")[0]
    assert "USD" not in printed(render_table, evaluated(cost_unit="relative"))


def test_the_json_file_is_whole_and_versioned(tmp_path):
    path = tmp_path / "new" / "report.json"
    report = evaluated()
    write_report_json(report, path)
    write_report_json(report, path)  # replaces
    content = json.loads(path.read_text())
    assert content == report.to_json()
    assert content["schema_version"] == SCHEMA_VERSION
    assert [p.name for p in path.parent.iterdir()] == ["report.json"]


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RouterError, match="cannot be written"):
        write_report_json(evaluated(), tmp_path / "file" / "report.json")


def test_durations_are_shown_where_some_are_known():
    report = evaluated()
    assert "med. s" not in printed(render_table, report)
    models = (replace(report.models[0], median_seconds=1.25), report.models[1])
    text = printed(render_table, replace(report, models=models))
    table = text[text.index("Probabilities per model") :]
    assert cells(table, "vendor/dear")[-1] == "1.250"
    assert cells(table, "cheap[v2]")[-1] == "-"
