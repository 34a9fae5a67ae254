"""The labelling commands as a user types them."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time

import pytest
from typer.testing import CliRunner

from router_training.cli import app

COMMANDS = ("collect", "judge", "label", "audit", "trust")


def call(*arguments):
    return CliRunner().invoke(app, [str(part) for part in arguments], env={"COLUMNS": "120"})


def started(site, *arguments):
    return subprocess.Popen(  # noqa: S603 - our own interpreter on our own code
        [sys.executable, "-m", "router_training", *map(str, arguments)],
        cwd=site.folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "120"},
    )


def test_label_tells_how_it_went_and_what_it_cost(site):
    done = call("label", site.write(), "--output", site.folder / "shards", "--limit", 10)
    assert done.exit_code == 0, done.output
    for text in ("Candidates (10 samples)", "ineligible", "Scores by: ", "in this run", "judge"):
        assert text in done.output
    assert "wrote 10 records to" in done.output
    assert (site.folder / "shards" / "part-00000.parquet").exists()


def test_a_dry_run_asks_nobody(site):
    for command in ("collect", "judge", "label"):
        done = call(command, site.write(), "--dry-run")
        assert done.exit_code == 0, done.output
        assert "Still to ask (30 samples)" in done.output
        assert ("sees" in done.output) == (command != "judge")
        assert ("judge (judge)" in done.output) == (command != "collect")
    told = json.loads(call("collect", site.write(), "--dry-run", "--json").stdout)
    assert told["samples"] == 30 and told["calls"] > 0
    assert sum(site.ledger()[0].values()) == 0


def test_what_the_budget_ends_says_how_to_go_on_and_then_does(site):
    path = site.write()
    done = call("label", path, "--max-cost-usd", 0.02)
    assert done.exit_code == 1
    assert "The budget of $0.0200 is reached" in done.output
    assert "No records were written; --partial" in done.output
    assert "the same command goes on from here" in done.output
    assert not (site.folder / "records.jsonl").exists()
    done = call("label", path, "--max-cost-usd", 0.02, "--partial")
    assert done.exit_code == 1
    assert (site.folder / "records.jsonl").exists()
    assert call("collect", path).exit_code == 0
    done = call("judge", path)
    assert done.exit_code == 0 and "wrote 30 records" in done.output
    told = json.loads(call("label", path, "--json").stdout)
    assert (told["records"], told["missing"], told["samples"]) == (30, [], 30)
    assert set(told["candidates"]["sees"]) >= {"answered", "pending", "cost_usd"}


def test_a_target_that_refuses_ends_with_status_1_and_its_reason(site):
    content = site.content()
    content["candidates"][1]["target"]["model"] = "no-such-model"
    done = call("collect", site.write(content))
    assert done.exit_code == 1
    assert "reads was stopped: " in done.output


def test_rows_that_are_left_out_are_listed(site):
    with (site.folder / "data" / "samples.jsonl").open("a") as file:
        file.write('{"idx": "bad", "prompt": "", "answer": "7"}\n')
    content = site.content()
    content["data"]["on_bad_row"] = "skip"
    done = call("collect", site.write(content))
    assert "left out 1 rows:" in done.output
    assert "row 31, prompt: The row has no prompt." in done.output


def test_a_line_that_is_no_row_is_listed_by_its_number_alone(site):
    with (site.folder / "data" / "samples.jsonl").open("a") as file:
        file.write("{\n")
    content = site.content()
    content["data"]["on_bad_row"] = "skip"
    done = call("collect", site.write(content), "--dry-run")
    assert "row 31: Invalid JSON in line 31" in done.output


def test_the_engine_of_one_process_needs_no_other_config(site):
    path = site.write(site.content() | {"engine": "ray", "ray_address": "ray://nowhere:1"})
    done = call("collect", path, "--engine", "local", "--limit", 3)
    assert done.exit_code == 0 and "Candidates (3 samples)" in done.output
    assert "ray://nowhere:1" in str(call("collect", path, "--limit", 3).exception)


def test_marks_of_an_audit_come_back_as_agreement(site):
    path, folder = site.write(), site.folder / "audit"
    assert call("label", path).exit_code == 0
    done = call("audit", path, "--output", folder, "--rows", 12, "--no-pictures")
    assert done.exit_code == 0, done.output
    assert "12 answers to look at" in done.output
    some = call("audit", path, "--output", site.folder / "a", "--rows", 2, "--limit", 8)
    assert f"router-train trust {path} --limit 8 --human" in some.stdout.replace("\n", "")
    again = call("audit", path, "--output", site.folder / "b", "--rows", 2, "--json")
    assert json.loads(again.stdout)["answers"] == 2
    with (folder / "audit.csv").open(encoding="utf-8-sig", newline="") as file:
        header, *rows = csv.reader(file)
    for row in rows:  # a person who agrees with every label
        row[header.index("human")] = "yes" if float(row[header.index("score")]) else "no"
    with (folder / "marked.csv").open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    done = call("trust", path, "--human", folder / "marked.csv", "--json")
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert report["human"][0]["n"] == 12
    assert report["human"][0]["accuracy"]["estimate"] == 1.0
    assert "12 marks" in call("trust", path, "--human", folder / "marked.csv").output


def test_ctrl_c_ends_with_130_and_the_same_command_asks_only_the_rest(open_site):
    models = {
        "sees": {"modalities": ["text", "image"], "latency": {"median_s": 0.3}},
        "reads": {"latency": {"median_s": 0.3}},
        "judge": {"role": "judge", "modalities": ["text", "image"]},
    }
    site = open_site(models=models)
    content = site.content()
    for candidate in content["candidates"]:
        candidate["target"]["max_concurrency"] = 2
    path = site.write(content)
    run = started(site, "label", path)
    deadline = time.monotonic() + 60
    while site.ledger()[0]["sees"] < 4 and time.monotonic() < deadline:
        time.sleep(0.05)
    run.send_signal(signal.SIGINT)
    _, said = run.communicate(timeout=60)
    assert run.returncode == 130, said
    assert "interrupted; run the same command again to continue" in said
    first, _ = site.ledger()
    assert 4 <= first["sees"] < 30
    assert not (site.folder / "records.jsonl").exists()
    for candidate in content["candidates"]:
        candidate["target"]["max_concurrency"] = 32
    done = call("label", site.write(content))
    assert done.exit_code == 0, done.output
    assert site.ledger()[0]["sees"] <= 30  # none twice
    assert (site.folder / "records.jsonl").exists()


def test_without_its_libraries_a_command_names_the_extra(site):
    code = (
        "import sys; sys.modules.update(dict.fromkeys(['tenacity', 'aiolimiter', 'datasets']))\n"
        "from router_runtime.console import run_app\n"
        "from router_training.cli import app\n"
        "run_app(app)\n"
    )
    done = subprocess.run(  # noqa: S603 - our own interpreter on our own code
        [sys.executable, "-c", code, "collect", str(site.write())], capture_output=True, text=True
    )
    assert done.returncode == 2, done.stderr
    assert "pip install 'model-router[label]'" in done.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_a_config_that_is_wrong_is_one_line(command, tmp_path):
    (tmp_path / "label.yml").write_text("data: {path: x.jsonl}\ncandidates: []\n")
    more = ("--output", tmp_path / "a") if command == "audit" else ()
    done = call(command, tmp_path / "label.yml", *more)
    assert done.exit_code == 1 and "candidates" in str(done.exception)
