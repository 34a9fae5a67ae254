from __future__ import annotations

import copy
import json

import pytest

from router_runtime.artifacts import read_manifest
from router_runtime.errors import ConfigError, DataError
from router_training.evaluation_report import EvaluationReport
from router_training.stored_report import MAX_ENTRIES, stored_report


def carried(trained, change):
    """The manifest of a real artifact whose figures somebody has changed."""
    manifest = read_manifest(trained[0].output)
    metrics = copy.deepcopy(dict(manifest.metrics))
    change(metrics["test"])
    metrics = json.loads(json.dumps(metrics))
    return manifest.model_copy(update={"metrics": metrics})


def test_what_the_run_found_comes_back(trained):
    config, result = trained
    found = stored_report(read_manifest(config.output), name="x")
    assert isinstance(found, EvaluationReport)
    assert repr(found) == repr(result.report)


def test_an_artifact_without_figures_says_what_to_do(trained):
    manifest = read_manifest(trained[0].output).model_copy(update={"metrics": {}})
    with pytest.raises(ConfigError, match="router-train evaluate"):
        stored_report(manifest, name="x")


def nested(depth):
    value = {}
    for _ in range(depth):
        value = {"a": value}
    return value


def without(kind):
    return lambda test: test.update(
        strategies=[entry for entry in test["strategies"] if entry["kind"] != kind]
    )


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (without("router"), "0 strategies are 'router'"),
        (without("model"), "there is no single model"),
        (lambda test: test.update(models=[]), "there is no single model"),
        (lambda test: test.update(models=test["models"] * 1000), f"models has .* {MAX_ENTRIES}"),
        (lambda test: test.update(slices=test["slices"] * 1000), "slices has"),
        (lambda test: test["models"][0].update(histogram=[0] * 9999), "histogram has 9999"),
        (lambda test: test["models"][0].update(histogram=[-1]), "a histogram counts below 0"),
        (lambda test: test["models"][0]["reliability"][0].update(n=0), "a bin counts below 1"),
        (lambda test: test["curves"]["router"][0].update(quality="inf"), "outside the possible"),
        (lambda test: test["curves"]["router"][0].update(cost=-1), "outside the possible"),
        (lambda test: test["curves"]["oracle"].update(cost=1e308), "outside the possible"),
        (lambda test: test["curves"].update(cost_range=[0, "inf"]), "outside the possible"),
        (lambda test: test["strategies"][0]["outcome"].update(cost="inf"), "outside the possible"),
        (
            lambda test: test["honest"][0]["cost_ratio"].update(high="inf"),
            "an interval lies outside the possible",
        ),
        (
            lambda test: test["curves"].update(singles=test["curves"]["singles"] * 1000),
            "curves.singles has 4000",
        ),
    ],
)
def test_figures_that_no_evaluation_gives_are_refused(trained, change, problem):
    with pytest.raises(DataError, match=f"artifact 'x' carries are malformed: .*{problem}"):
        stored_report(carried(trained, change), name="x")


@pytest.mark.parametrize("policy", [nested(300), {"kind": "utility\n```"}, {}])
def test_a_policy_that_is_none_is_refused(trained, policy):
    manifest = carried(trained, lambda test: test["honest"][0].update(policy=policy))
    with pytest.raises(ConfigError, match="The policy 'recommended' of artifact 'x'"):
        stored_report(manifest, name="x")
