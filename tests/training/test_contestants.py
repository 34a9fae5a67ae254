from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest

from router_runtime.errors import ConfigError, DataError
from router_training.contestants import compare_files
from router_training.pipeline import Walk

FEATURES = "features: {encoders: [{kind: embedded, text_components: 32, thumbnail_components: 16}]}"


@pytest.fixture
def folder(tmp_path, trained, workload):
    """An artifact, a runtime config on it, and two training configs of its data and seed."""
    shutil.copytree(trained[0].output, tmp_path / "artifact")
    (tmp_path / "dear.yml").write_text("artifact: artifact\npolicy: quality\n")
    for head, seed in (("logistic", 3), ("prior", 3), ("other", 4)):
        (tmp_path / f"{head}.yml").write_text(
            f"data: {{path: '{workload / 'records.jsonl'}'}}\n{FEATURES}\n"
            f"head: {'prior' if head == 'prior' else 'logistic'}\n"
            f"output: out-{head}\nwork_dir: work\nseed: {seed}\n"
        )
    return tmp_path


def test_an_artifact_and_a_config_on_it_are_compared_on_its_test_rows(folder, trained, workload):
    data = workload / "records.jsonl"
    found = compare_files([folder / "artifact", folder / "dear.yml"], data=data)
    n_test = len(Walk(trained[0]).split.test)
    assert found.comparison.n_queries == n_test
    assert "artifact: The artifact was trained on these records" in found.messages[0]
    first, second = found.comparison.standings
    assert (first.name, first.policy) == ("artifact", "recommended")
    assert (second.name, second.policy) == ("dear", "quality")
    assert first.quality == trained[1].report.strategy("router").outcome.quality
    assert second.cost > first.cost
    assert second.difference.brier.estimate == 0


def test_training_configs_are_walked_and_compared_with_the_artifact_of_one(folder, trained):
    paths = [folder / "logistic.yml", folder / "prior.yml"]
    first, second = compare_files(paths).comparison.standings
    assert first.brier == pytest.approx(trained[1].report.pooled.brier)
    assert second.difference.brier.estimate == pytest.approx(second.brier - first.brier)
    assert second.difference.auc.estimate < 0  # the prior knows nothing of the query
    assert not (folder / "out-logistic").exists()


def test_training_configs_with_other_test_rows_are_refused(folder):
    with pytest.raises(DataError, match="Give both the same data, split, limit and seed"):
        compare_files([folder / "logistic.yml", folder / "other.yml"])


def test_one_router_or_no_records_is_an_error(folder):
    with pytest.raises(ConfigError, match="at least two"):
        compare_files([folder / "artifact"])
    with pytest.raises(ConfigError, match="--data FILE"):
        compare_files([folder / "artifact", folder / "dear.yml"])


def call(*arguments, cwd):
    done = subprocess.run(  # noqa: S603 - our own interpreter on our own code
        [sys.executable, "-m", "router_training", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "120"},
    )
    return done.stdout, done.stderr


def test_the_command_prints_a_table_and_writes_json(folder, workload):
    given = ("artifact", "dear.yml", "--data", workload / "records.jsonl", "--output", "c.json")
    shown, told = call("compare", *given, cwd=folder)
    assert "dear minus artifact" in shown
    assert "only the" in told
    content = json.loads((folder / "c.json").read_text())
    assert content["schema_version"] == 1


def test_evaluate_takes_test_rows_only_unless_told_otherwise(folder, workload, trained):
    given = ("evaluate", "artifact", "--data", workload / "records.jsonl", "--json")
    shown, told = call(*given, cwd=folder)
    n_test = len(Walk(trained[0]).split.test)
    assert json.loads(shown)["n_queries"] == n_test
    assert f"only the {n_test} test rows of 400" in told
    shown, told = call(*given, "--all-rows", cwd=folder)
    assert json.loads(shown)["n_queries"] == 400
    assert "the figures flatter" in told
