from __future__ import annotations

import base64
import io
import json
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import pytest
from typer.testing import CliRunner

from router_runtime.errors import ConfigError, DataError
from router_training.labels import Evaluations, LabelMatrix, read_evaluations
from router_training.prepare_hf_data import TEST_RECORDS, TRAIN_RECORDS, app, write_records

ROOT = Path(__file__).resolve().parents[3]


def png():
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (4, 4), "red").save(buffer, "PNG")
    return buffer.getvalue()


PNG = png()


def test_the_script_writes_the_two_files_that_the_next_stages_read(site):
    (site.folder / "out").mkdir()
    done = subprocess.run(  # noqa: S603 - our own interpreter on our own code
        [
            *(sys.executable, str(ROOT / "router_training" / "prepare_hf_data.py")),
            *("--dataset", "data/samples.jsonl", "--output-dir", "out", "--num-samples", "30"),
            *("--config", str(site.write())),
        ],
        capture_output=True,
        text=True,
        cwd=site.folder,
    )
    assert done.returncode == 0, done.stderr
    assert "hf_evaluations_train.json" in done.stdout
    train, test = (
        json.loads((site.folder / "out" / name).read_text())
        for name in (TRAIN_RECORDS, TEST_RECORDS)
    )
    assert len(train) + len(test) == 30
    assert 3 <= len(test) <= 9
    assert {record["idx"] for record in train}.isdisjoint(record["idx"] for record in test)
    for record in train + test:
        assert list(record) == ["idx", "prompt", "answer", "images", "model_scores"]
        assert list(record["model_scores"]) == ["sees", "reads"]
        assert record["model_scores"]["sees"] in (0, 1)
        assert (record["model_scores"]["reads"] is None) == bool(record["images"])
    assert read_evaluations(site.folder / "out" / TRAIN_RECORDS).model_ids == ("sees", "reads")


def test_another_data_set_needs_only_its_columns(site):
    rows = [{"q": f"What is {n} + 1?", "a": str(n + 1)} for n in range(25)]
    (site.folder / "other.json").write_text(json.dumps(rows))
    done = CliRunner().invoke(
        app,
        [
            *("--dataset", str(site.folder / "other.json"), "--config", str(site.write())),
            *("--prompt-column", "q", "--answer-column", "a", "--output-dir", str(site.folder)),
        ],
    )
    assert done.exit_code == 0, done.output
    assert json.loads((site.folder / TRAIN_RECORDS).read_text())[0]["prompt"].startswith("What is")


def test_a_dry_run_writes_nothing(site):
    done = CliRunner().invoke(
        app,
        [
            *("--dataset", str(site.folder / "data" / "samples.jsonl"), "--dry-run"),
            *("--config", str(site.write()), "--output-dir", str(site.folder)),
        ],
    )
    assert done.exit_code == 0, done.output
    assert "Still to ask (30 samples)" in done.output
    assert not (site.folder / TRAIN_RECORDS).exists()
    assert sum(site.ledger()[0].values()) == 0


def test_groups_stay_together_and_unscored_stays_null(workload, tmp_path):
    data = read_evaluations(workload / "records.jsonl").take(np.arange(100))
    Y = data.labels.Y.copy()
    Y[:, 0] = np.nan
    Y[0, 1] = 0.25
    pairs = [
        sample.__class__(**{**vars(sample), "group": f"pair {at // 2}"})
        for at, sample in enumerate(data.samples)
    ]
    labels = LabelMatrix.of_scores(data.model_ids, Y)
    write_records(Evaluations(tuple(pairs), labels), tmp_path, test_share=0.3, seed=1)
    train, test = (json.loads((tmp_path / n).read_text()) for n in (TRAIN_RECORDS, TEST_RECORDS))
    assert len(test) == 30
    halves = [{record["idx"] // 2 for record in part} for part in (train, test)]
    assert halves[0].isdisjoint(halves[1])
    scores = {record["idx"]: record["model_scores"] for record in train + test}
    assert all(row[data.model_ids[0]] is None for row in scores.values())
    assert scores[0][data.model_ids[1]] == 0.25


@pytest.mark.parametrize("share", ["0", "1", "1.5"])
def test_a_share_outside_0_and_1_is_refused(share, tmp_path):
    done = CliRunner().invoke(app, ["--dataset", "x", "--test-share", share])
    assert isinstance(done.exception, ConfigError)


def test_rows_without_ids_are_numbered_from_0_as_published(site):
    rows = [{"prompt": f"What is {n} + 1?", "answer": str(n + 1)} for n in range(25)]
    (site.folder / "other.json").write_text(json.dumps(rows))
    done = CliRunner().invoke(
        app,
        [
            *("--dataset", str(site.folder / "other.json"), "--config", str(site.write())),
            *("--output-dir", str(site.folder)),
        ],
    )
    assert done.exit_code == 0, done.output
    found = {
        record["idx"]: record["prompt"]
        for name in (TRAIN_RECORDS, TEST_RECORDS)
        for record in json.loads((site.folder / name).read_text())
    }
    assert found == {n: row["prompt"] for n, row in enumerate(rows)}


def test_what_the_budget_ends_writes_no_file_and_names_no_option_of_other_commands(site):
    done = CliRunner().invoke(
        app,
        [
            *("--dataset", str(site.folder / "data" / "samples.jsonl"), "--max-cost-usd", "0.02"),
            *("--config", str(site.write()), "--output-dir", str(site.folder)),
        ],
    )
    assert done.exit_code == 1
    assert "Neither file was written." in done.output and "--partial" not in done.output
    assert not (site.folder / TRAIN_RECORDS).exists()


def test_the_shipped_config_reads_any_data_set_with_usual_columns(tmp_path):
    (tmp_path / "configs").mkdir()
    shipped = (ROOT / "configs" / "label.yml").read_text()
    (tmp_path / "configs" / "label.yml").write_text(shipped)
    rows = [{"prompt": f"What is {n} + 1?", "solution": str(n + 1)} for n in range(25)]
    (tmp_path / "other.json").write_text(json.dumps(rows))
    config = str(tmp_path / "configs" / "label.yml")
    done = CliRunner().invoke(
        app, ["--dataset", str(tmp_path / "other.json"), "--config", config, "--dry-run"]
    )
    assert done.exit_code == 0, done.output
    assert "Still to ask (25 samples)" in done.output


def test_split_pictures_and_seed_come_from_the_command_line(site):
    data = {
        part: datasets.Dataset.from_dict(
            {
                "prompt": [f"{part} {n}?" for n in range(25)],
                "answer": ["x"] * 25,
                "shown": [PNG] * 25,
            }
        ).cast_column("shown", datasets.Image())
        for part in ("dev", "held_out")
    }
    datasets.DatasetDict(data).save_to_disk(site.folder / "saved")

    def tests_of(seed):
        done = CliRunner().invoke(
            app,
            [
                *("--dataset", str(site.folder / "saved"), "--config", str(site.write())),
                *("--split", "held_out", "--image-column", "shown", "--seed", str(seed)),
                *("--output-dir", str(site.folder)),
            ],
        )
        assert done.exit_code == 0, done.output
        return json.loads((site.folder / TEST_RECORDS).read_text())

    first, second = tests_of(1), tests_of(2)
    assert all(record["prompt"].startswith("held_out") for record in first)
    assert {record["images"][0] for record in first} == {base64.b64encode(PNG).decode()}
    assert [record["idx"] for record in first] != [record["idx"] for record in second]


def test_too_few_rows_are_told_before_anybody_is_asked(site):
    (site.folder / "few.json").write_text(json.dumps([{"prompt": f"{n}?"} for n in range(19)]))
    done = CliRunner().invoke(
        app, ["--dataset", str(site.folder / "few.json"), "--config", str(site.write())]
    )
    assert isinstance(done.exception, DataError) and "19 usable samples" in str(done.exception)
    assert sum(site.ledger()[0].values()) == 0
