"""``router-train`` as a user types it: real processes, exit statuses and output."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from router_training.cli import app

QUICK = (
    "features: {encoders: [{kind: embedded, text_components: 16, thumbnail_components: 8}]}\n"
    "head: logistic\noutput: artifact\nwork_dir: work\n"
)


def call(*arguments: object, cwd: Path) -> subprocess.CompletedProcess:
    return subprocess.run(  # noqa: S603 - our own interpreter on our own code
        [sys.executable, "-m", "router_training", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "120"},
    )


def succeeded(*arguments: object, cwd: Path) -> str:
    done = call(*arguments, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def folder(tmp_path, workload) -> Path:
    (tmp_path / "train.yml").write_text(f"data: {{path: {workload}/records.jsonl}}\n{QUICK}")
    return tmp_path


def test_a_run_prints_the_table_and_saves_the_artifact(folder):
    shown = succeeded("run", "train.yml", cwd=folder)
    for name in ("sim-large-vl", "sim-small-text", "oracle", "best single", "router"):
        assert name in shown
    assert "saved in artifact" in shown
    assert (folder / "artifact" / "manifest.json").exists()
    assert json.loads(succeeded("report", "artifact", "--json", cwd=folder))["schema_version"] == 2
    assert "oracle" in succeeded("report", "artifact", "--output", "r.json", cwd=folder)
    assert json.loads((folder / "r.json").read_text())["strategies"]


def test_a_run_leaves_its_report_in_the_work_folder_and_no_prompt_in_the_artifact(folder):
    shown = succeeded("run", "train.yml", "--examples", "2", cwd=folder)
    assert "report saved in work/report/report.html" in shown
    page = (folder / "work" / "report" / "report.html").read_text()
    assert page.count("<article") == 2
    assert json.loads((folder / "work" / "report" / "report.json").read_text())["strategies"]
    assert not list((folder / "artifact").glob("*.html"))
    again = json.loads(succeeded("run", "train.yml", "--no-examples", "--json", cwd=folder))
    assert "This page holds" not in (folder / "work" / "report" / "report.html").read_text()
    assert again["output"] == str(folder / "artifact")
    assert again["report"]["strategies"] and again["tuned"]["utility"]


def test_pages_and_figures_of_an_artifact_a_config_and_an_evaluation(folder, workload, trained):
    artifact, records = trained[0].output, workload / "records.jsonl"
    for name, arguments in {
        "artifact": ("report", artifact, "--plots", "plots"),
        "config": ("report", "train.yml", "--examples", "3"),
        "records": ("evaluate", artifact, "--data", records, "--examples", "1"),
    }.items():
        assert "oracle" in succeeded(*arguments, "--html", f"{name}.html", cwd=folder)
    counts = {path.stem: path.read_text().count("<article") for path in folder.glob("*.html")}
    assert counts == {"artifact": 0, "config": 3, "records": 1}
    assert len(list((folder / "plots").glob("*.png"))) == 5


def printed(*arguments: object) -> dict:
    """Return the JSON of a command that runs in this process."""
    return json.loads(CliRunner().invoke(app, list(map(str, arguments))).stdout)


def test_stages_run_one_by_one(folder, monkeypatch):
    assert "features" in succeeded("embed", "train.yml", cwd=folder)
    assert "fitted logistic" in succeeded("fit", "train.yml", cwd=folder)
    assert "sim-large-vl" in succeeded("calibrate", "train.yml", cwd=folder)
    monkeypatch.chdir(folder)
    assert printed("embed", "train.yml", "--json")["rows"] == 400
    assert printed("fit", "train.yml", "--json")["head"] == "logistic"
    maps = printed("calibrate", "train.yml", "--json")["models"]
    assert all(entry["chosen"] for entry in maps)
    tuned = json.loads(
        succeeded("tune", "train.yml", "--max-cost-per-1k", "1.0", "--json", cwd=folder)
    )
    assert tuned["utility"]["cost"] <= 0.001
    assert "utility" in succeeded("tune", "train.yml", "--target-quality", "0.9", cwd=folder)
    assert not (folder / "artifact").exists()


def test_options_replace_what_the_config_says(folder, workload):
    (folder / "bare.yml").write_text(QUICK)
    records = workload / "records.jsonl"
    succeeded("run", "bare.yml", "--data", records, "--output", "other", "--seed", 5, cwd=folder)
    manifest = json.loads((folder / "other" / "manifest.json").read_text())
    assert manifest["training"]["seed"] == 5


@pytest.mark.parametrize("suffix", [".json", ".jsonl.gz", ".parquet"])
def test_import_writes_records_that_train_reads(folder, workload, suffix):
    output = f"out{suffix}"
    arguments = ("import", workload / "records.jsonl", "--output", output)
    if suffix == ".json":
        told = json.loads(succeeded(*arguments, "--json", cwd=folder))
        assert (told["records"], len(told["model_ids"]), told["skipped"]) == (400, 4, 0)
    else:
        assert "400 records of 4 models" in succeeded(*arguments, cwd=folder)
    assert "400 rows" in succeeded("embed", "train.yml", "--data", output, cwd=folder)


def test_bad_rows_are_an_error_or_a_listed_skip(folder):
    rows = [
        {"idx": i, "prompt": f"question {i}", "model_scores": {"a": i % 2, "b": (i // 2) % 2}}
        for i in range(60)
    ]
    rows[7]["model_scores"]["a"] = 1.5
    rows[9]["images"] = ["bm90IGEgcGljdHVyZQ=="]
    (folder / "bad.json").write_text(json.dumps(rows))
    done = call("import", "bad.json", "--output", "out.json", cwd=folder)
    assert done.returncode == 2
    assert "bad.json, row 8" in done.stderr
    assert "model_scores" in done.stderr
    assert not (folder / "out.json").exists()
    done = call("import", "bad.json", "--output", "o.json", "--on-bad-row", "skip", cwd=folder)
    assert done.returncode == 0
    assert "left out 2 rows" in done.stderr
    assert "row 8" in done.stderr
    assert "row 10" in done.stderr
    assert len(json.loads((folder / "o.json").read_text())) == 58


def test_simulated_records_are_equal_for_equal_seeds(folder):
    assert "simulated" in succeeded("simulate", "one", "--rows", 30, cwd=folder)
    told = json.loads(succeeded("simulate", "two", "--rows", 30, "--json", cwd=folder))
    assert told == {"output": "two/records.jsonl", "rows": 30, "answers": None}
    one, two = ((folder / name / "records.jsonl").read_bytes() for name in ("one", "two"))
    assert one == two
    assert (folder / "one" / "example.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["run", "no.yml"], "no.yml"),
        (["run", "wrong.yml"], "unknown key"),
        (["run", "empty.yml"], "empty.jsonl"),
        (["run", "train.yml", "--data", "no.jsonl"], "no.jsonl"),
        (["import", "no.jsonl", "--output", "o.json"], "no.jsonl"),
        (["import", "train.yml", "--output", "o.json"], "train.yml"),
        (["import", "train.yml", "--image-root", "no", "--output", "o.json"], "no: The folder"),
        (["report", "nowhere"], "nowhere"),
        (["run"], "Missing argument 'config'. Try: "),
        (["run", "train.yml", "--seed", "x"], "--seed"),
        (["run", "train.yml", "--on-bad-row", "maybe"], "'error', 'skip'"),
        (["evaluate", "nowhere", "--data", "no.jsonl"], "nowhere"),
        (["tune", "train.yml", "--target-quality", "9"], "target_quality"),
        (["tune", "train.yml", "--target-quality", "1", "--max-cost-per-1k", "1"], "two goals"),
    ],
)
def test_wrong_input_is_one_line_and_status_2(folder, arguments, expected):
    (folder / "wrong.yml").write_text("output: x\nheadd: mlp\n")
    (folder / "empty.yml").write_text(f"data: {{path: empty.jsonl}}\n{QUICK}")
    (folder / "empty.jsonl").write_text("")
    done = call(*arguments, cwd=folder)
    assert done.returncode == 2, (done.returncode, done.stdout, done.stderr)
    assert expected in done.stderr
    assert "Traceback" not in done.stderr
    assert len([line for line in done.stderr.splitlines() if "embed:" not in line]) == 1
    assert not (folder / "artifact").exists()
    assert not (folder / "x").exists()


def test_a_model_is_added_from_the_command_line(folder, workload):
    lines = (workload / "records.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    hidden = "sim-large-text"
    for row in rows:
        for key in ("model_scores", "model_costs", "model_usage"):
            row[key].pop(hidden, None)
    (folder / "others.jsonl").write_text("\n".join(map(json.dumps, rows)))
    shutil.copy(workload / "records.jsonl", folder)
    succeeded("run", "train.yml", "--data", "others.jsonl", cwd=folder)
    arguments = ("add-model", "artifact", "--data", "records.jsonl", "--model", hidden)
    shown = succeeded(*arguments, "--work-dir", "work", cwd=folder)
    assert f"{hidden}: column fitted on" in shown
    for name in ("AUC", "Brier below the base rate's", "ECE", "mean uncertainty", "no score on a"):
        assert name in shown
    assert "saved in artifact+sim-large-text" in shown
    manifest = json.loads((folder / f"artifact+{hidden}" / "manifest.json").read_text())
    assert manifest["model_ids"][-1] == hidden
    old_figures = call("report", f"artifact+{hidden}", cwd=folder)
    assert f"before {hidden} came to it" in old_figures.stderr
    told = json.loads(succeeded(*arguments, "--output", "third", "--json", cwd=folder))
    assert (told["model_id"], told["output"]) == (hidden, "third")
    assert told["held_out"] and told["labels"] > 0
    again = call(*arguments, cwd=folder)
    assert (again.returncode, "--output" in again.stderr) == (2, True)
    twice = call(
        *("add-model", f"artifact+{hidden}", "--data", "records.jsonl", "--model", hidden),
        *("--output", "other"),
        cwd=folder,
    )
    assert twice.returncode == 2
    assert "is in the artifact already" in twice.stderr
    assert not (folder / "other").exists()


def test_each_data_set_is_left_out_from_the_command_line(folder):
    found = json.loads(succeeded("leave-out", "train.yml", "--json", cwd=folder))["left_out"]
    names = {entry["dataset"] for entry in found}
    assert len(names) == len(found) > 1
    assert all(entry["gap"]["low"] <= entry["gap"]["high"] for entry in found)
    shown = succeeded("leave-out", "train.yml", cwd=folder)
    for name in names:
        assert name in shown
    assert not (folder / "artifact").exists()
