from __future__ import annotations

import asyncio
import base64
import csv
import io
import json
from contextlib import contextmanager
from dataclasses import replace
from decimal import Decimal

import numpy as np
import PIL.Image
import pytest

from router_runtime.errors import ConfigError, TargetStatusError, TargetTimeoutError
from router_runtime.pricing import Usage
from router_runtime.targets.base import Completion
from router_runtime.targets.fake import FakeTarget
from router_runtime.yaml_config import validate
from router_training.labelled_by import labels_path, read_labelled_by
from router_training.labelling import audit
from router_training.labelling.answer_store import AnswerStore
from router_training.labelling.cells import cell_reader
from router_training.labelling.config import LabelConfig
from router_training.labelling.marks import write_csv
from router_training.labelling.responses import collect, live_asker
from router_training.labelling.samples_stage import iter_samples, keep_samples
from router_training.labelling.scoring import judge_all
from router_training.labelling.tabulate import tabulate
from router_training.labelling.trust import measure_trust, read_marks
from router_training.labels import read_evaluations

URL = "http://127.0.0.1:9/v1"
PRICE = {"input_mtok": "2", "output_mtok": "10"}
N = 8  # question 0 has a picture, 1 is refused to 'cheap', 2 fails there, 3 cannot be judged


def picture() -> str:
    stream = io.BytesIO()
    PIL.Image.new("RGB", (4, 4), "teal").save(stream, format="PNG")
    return base64.b64encode(stream.getvalue()).decode()


def config_in(folder, **changes) -> LabelConfig:
    source = folder / "source.jsonl"
    rows = [
        {"idx": at, "prompt": f"question {at}", "answer": f"right {at}", "dataset": "quiz"}
        for at in range(N)
    ]
    rows[0]["images"] = [picture()]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    target = {"kind": "compatible", "base_url": URL}
    content = {
        "data": {"path": str(source)},
        "candidates": [
            {"id": "good", "target": target, "price": PRICE, "modalities": ["text", "image"]},
            {"id": "cheap", "target": target, "price": PRICE, "modalities": ["text"]},
        ],
        "ask": {"attempts": 1},
        "judge": {
            "models": [{"id": "judge", "target": target}],
            "repeats": 2,
            "invalid_retries": 0,
            "structured": "text",
        },
        "scoring": {"scorers": {"match": "exact"}, "default": ["match", "judge"]},
        "output": str(folder / "records.jsonl"),
        "work_dir": str(folder / "work"),
        **changes,
    }
    return validate(LabelConfig, content, source="label.yml")


def number_in(call) -> int:
    text = json.dumps(call.messages[-1]["content"])
    return int(text.split("question ")[1].split("<")[0].split('"')[0].split("\\")[0])


def good(call):
    at = number_in(call)
    return Completion("good", f"right {at}", Usage(100, 20, 40), "stop", 0.5)


def cheap(call):
    at = number_in(call)
    if at == 1:
        return TargetStatusError("HTTP 400", status=400, retryable=False)
    if at == 2:
        return TargetTimeoutError("no answer in time", retryable=True)
    text = f"right {at}" if at % 2 == 0 else f"Well, surely it is right {at}."
    return Completion("cheap", text, None, "stop", 0.25)


def judge(call):
    at = number_in(call)
    return "I would rather not say." if at == 3 else "It is.\nVerdict: yes"


@contextmanager
def labelled(config, *, judged=True):
    """Collect and judge with fake targets; yields the samples' folder and the store to read."""
    folder = keep_samples(config)

    async def work(store):
        names = {"good": good, "cheap": cheap, "judge": judge}
        targets = {name: FakeTarget(name, answer) for name, answer in names.items()}
        async with live_asker(config, targets, store) as asker:
            await collect(lambda: iter_samples(folder), config, asker)
            if judged:
                await judge_all(lambda: iter_samples(folder), config, asker, asker)

    with AnswerStore.open(config.work_dir, holder="test") as store:
        asyncio.run(work(store))
    with AnswerStore.read(config.work_dir) as store:
        yield folder, store


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    config = config_in(tmp_path_factory.mktemp("labelled"))
    with labelled(config) as (folder, store):
        yield config, folder, store, tabulate(config, folder, store)


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_cell_has_a_score_or_a_reason_and_no_silent_zero(made):
    config, *_ = made
    rows = rows_of(config.output)
    assert [row["model_scores"]["good"] for row in rows] == [1.0] * N
    assert [row["model_scores"]["cheap"] for row in rows] == [None] * 4 + [1.0] * 4
    reasons = [row["unscored"].get("cheap", "") for row in rows]
    assert [reason.partition(":")[0] for reason in reasons[:4]] == [
        *("ineligible", "refused", "failed", "no verdict")
    ]
    assert reasons[0] == "ineligible: does_not_accept_image"
    assert reasons[4:] == [""] * 4


def test_cost_usage_and_duration_are_of_answers_and_missing_ones_have_no_entry(made):
    config, *_ = made
    first = rows_of(config.output)[0]
    # 60 fresh and 40 cached input tokens at 2, and 20 output tokens at 10 USD per million.
    assert first["model_costs"] == {"good": float(Decimal("0.0004"))}
    usage = {"input_tokens": 100, "output_tokens": 20, "cached_input_tokens": 40}
    assert first["model_usage"] == {"good": usage}
    assert first["model_seconds"] == {"good": 0.5}
    fourth = rows_of(config.output)[4]
    assert "cheap" not in fourth["model_usage"] | fourth["model_costs"]
    assert fourth["model_seconds"]["cheap"] == 0.25


def test_what_was_tabulated_trains(made):
    config, *_ = made
    data = read_evaluations(config.output)
    assert data.model_ids == ("good", "cheap")
    assert np.isnan(data.labels.Y[:4, 1]).all()
    assert data.labels.seconds[0, 0] == 0.5
    assert data.samples[0].query.images
    assert data.datasets == ("quiz",) * N


def test_the_tally_counts_what_was_written(made):
    _, _, _, result = made
    found = result.labelled_by
    assert (result.rows, result.pending) == (N, 0)
    assert found.cells["cheap"].unscored == {
        "failed": 1,
        "ineligible": 1,
        "no verdict": 1,
        "refused": 1,
    }
    assert (found.cells["good"].scored, found.cells["good"].mean_score) == (N, 1.0)
    assert found.unscored_share == 3 / 15


def test_the_trust_report_tells_of_the_judge(made):
    trust = made[3].labelled_by.trust
    assert trust.decided == {"judge": 2, "match": 10}
    (judged,) = trust.judges
    assert judged.verdicts == {"yes": 4}
    assert (judged.unscored.n, judged.unscored.value) == (6, 2 / 6)
    assert (judged.repeats.n, judged.repeats.value) == (2, 1.0)
    assert (trust.no_verdict.n, trust.no_verdict.value) == (3, 1 / 3)


def test_the_file_beside_the_records_says_who_labelled_them(made):
    config, _, _, result = made
    found = read_labelled_by(config.output)
    assert found.to_json() == result.labelled_by.to_json()
    assert [entry.id for entry in found.candidates] == ["good", "cheap"]
    assert (found.judge.rubric, found.judge.rubric_version) == ("correctness", 1)
    assert found.judge.candidates == ()
    assert found.scorers == {"match": "exact"}
    text = labels_path(config.output).read_text()
    assert "question" not in text
    assert URL not in text


def test_equal_stores_and_configs_give_equal_bytes(made):
    config, folder, store, _ = made
    files = [config.output, labels_path(config.output)]
    before = [file.read_bytes() for file in files]
    tabulate(config, folder, store)
    assert [file.read_bytes() for file in files] == before


@pytest.mark.parametrize("name", ["out.json", "out.jsonl.gz", "out.parquet", "shards"])
def test_every_format_reads_back_equal(made, tmp_path, name):
    config, folder, store, _ = made
    output = tmp_path / name
    changed = config.model_copy(update={"output": output, "rows_per_shard": 3})
    tabulate(changed, folder, store)
    assert read_evaluations(output).fingerprint == read_evaluations(config.output).fingerprint
    assert read_labelled_by(output).rows == N
    if name == "shards":
        assert labels_path(output) == output / "_labels.json"
        assert len(list(output.glob("part-*.parquet"))) == 3
        tabulate(changed, folder, store)  # its own folder is replaced
        assert read_labelled_by(output).rows == N


def test_records_that_were_changed_are_not_described(made, tmp_path, caplog):
    config, folder, store, _ = made
    output = tmp_path / "records.jsonl"
    tabulate(config.model_copy(update={"output": output}), folder, store)
    output.write_text("\n".join(output.read_text().splitlines()[:-1]))
    assert read_labelled_by(output) is None
    assert "other records" in caplog.text


def test_verdicts_that_are_to_come_are_pending(tmp_path):
    config = config_in(tmp_path)
    with labelled(config, judged=False) as (folder, store):
        result = tabulate(config, folder, store)
    assert result.pending == 3
    reasons = [row["unscored"] for row in rows_of(config.output)]
    assert all(reasons[at]["cheap"].startswith("pending: ") for at in (3, 5, 7))
    assert result.labelled_by.trust.no_verdict.n == 0


def test_a_candidate_that_was_never_asked_is_pending(made):
    config, folder, store, _ = made
    target = config.candidates[0].target
    late = config.candidates[0].model_copy(
        update={"id": "late", "target": target.model_copy(update={"model": "late"})}
    )
    changed = config.model_copy(update={"candidates": (*config.candidates, late)})
    cells = [row.cells[2] for row in cell_reader(changed, store).read(iter_samples(folder))]
    assert {cell.unscored for cell in cells} == {"pending: not_asked"}
    assert {cell.answer for cell in cells} == {None}


def test_a_judging_candidate_is_named(made, tmp_path):
    config, folder, store, _ = made
    model = config.judge.models[0].model_copy(update={"id": "good"})
    judged = config.judge.model_copy(update={"models": (model,), "allow_candidates": True})
    changed = config.model_copy(update={"judge": judged, "output": tmp_path / "r.jsonl"})
    assert tabulate(changed, folder, store).labelled_by.judge.candidates == ("good",)


@pytest.mark.parametrize("name", ["records.csv", "records.txt"])
def test_an_output_of_another_kind_is_refused(made, tmp_path, name):
    config, folder, store, _ = made
    with pytest.raises(ConfigError, match=r"\.jsonl.*or into a folder"):
        tabulate(config.model_copy(update={"output": tmp_path / name}), folder, store)
    assert list(tmp_path.iterdir()) == []


def test_progress_is_told_to_the_end(made, tmp_path):
    config, folder, store, _ = made
    told = []
    changed = config.model_copy(update={"output": tmp_path / "r.jsonl"})
    tabulate(changed, folder, store, progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (N, N)


def test_a_cost_unknown_when_asked_is_computed_from_the_price(made):
    from router_runtime.pricing import Price
    from router_training.labelling.tabulate import record_of

    config, folder, store, _ = made
    row = next(iter(cell_reader(config, store).read(iter_samples(folder))))
    cell = row.cells[0]
    unpriced = replace(cell, outcome=replace(cell.outcome, cost_usd=None))
    row = replace(row, cells=(unpriced, *row.cells[1:]))
    prices = {"good": Price(1, 1), "cheap": None}
    assert record_of(row, prices)["model_costs"] == {"good": 0.00012}
    assert record_of(row, {"good": None, "cheap": None})["model_costs"] == {}


def test_an_audit_of_a_run_is_marked_and_fed_back(made, tmp_path):
    config, folder, store, _ = made
    found = audit.export(config, folder, store, tmp_path / "audit", rows=9)
    assert found.answers == 9
    assert found.of_stratum == {("cheap", "none"): 1, ("cheap", "yes"): 4, ("good", "yes"): 4}
    assert "data:image/" in audit.export(config, folder, store, tmp_path / "all").html.read_text()
    # A person who calls everything right agrees with every score there is.
    lines = list(csv.DictReader(found.csv.read_text("utf-8-sig").splitlines()))
    filled = [[line["id"], line["model"], "yes"] for line in lines]
    (tmp_path / "marks.csv").write_bytes(write_csv(["id", "model", "human"], filled))
    reader = cell_reader(config, store)
    marks = read_marks(tmp_path / "marks.csv")
    report = measure_trust(reader.read(iter_samples(folder)), marks=marks)
    assert report.human[0].accuracy.estimate == 1.0
    assert (report.human[0].n, report.marks.unscored) == (8, 1)
