from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from router_runtime import ModelRouter
from router_runtime.artifacts import MANIFEST, load_artifact
from router_runtime.errors import ConfigError, DataError, RouterError
from router_training.config import load_training_config
from router_training.pipeline import Walk, run
from router_training.served import Served
from router_training.splits import Split

QUICK = (
    "features: {encoders: [{kind: embedded, text_components: 16, thumbnail_components: 8}]}\n"
    "output: artifact\nwork_dir: work\n"
)


def records(n: int, *, models: dict | None = None) -> list[dict]:
    models = models or {"good": lambda i: 1 - (i % 5 == 0), "cheap": lambda i: i % 2}
    return [
        {
            "idx": i,
            "prompt": f"{'even' if i % 2 == 0 else 'odd'} question number {i}",
            "model_scores": {name: score(i) for name, score in models.items()},
        }
        for i in range(n)
    ]


def config_for(tmp_path: Path, rows: list[dict] | str, extra: str = "head: logistic\n"):
    text = rows if isinstance(rows, str) else json.dumps(rows)
    (tmp_path / "records.json").write_text(text)
    (tmp_path / "train.yml").write_text(f"data: {{path: records.json}}\n{QUICK}{extra}")
    return load_training_config(tmp_path / "train.yml")


def test_records_without_any_cost_give_a_router_that_chooses_by_probability(tmp_path):
    result = run(config_for(tmp_path, records(200)))
    assert result.tuned is None
    router = ModelRouter(tmp_path / "artifact")
    assert router.default_policy == "recommended"
    odd, even = (router.decide(f"{kind} question number 90") for kind in ("odd", "even"))
    assert odd.cost_unit == "unknown"
    assert odd.probabilities["cheap"] > 0.5 > even.probabilities["cheap"]


def test_a_run_is_reproducible_to_the_byte_but_for_the_time_it_took(tmp_path):
    made = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        run(config_for(tmp_path / name, records(200), "head: {kind: mlp, epochs: 3}\n"))
        made.append(tmp_path / name / "artifact")
    for file in sorted(made[0].iterdir()):
        one, two = (timeless(folder / file.name) for folder in made)
        assert one == two, file.name


def timeless(file) -> bytes:
    """Return a file's bytes; of a manifest those without the seconds that training took."""
    content = file.read_bytes()
    if file.name != "manifest.json":
        return content
    told = json.dumps(json.loads(content)["training"]["seconds"], indent=2).replace("\n", "\n    ")
    assert content.count(told.encode()) == 1
    return content.replace(told.encode(), b"")


def test_the_time_of_training_is_kept_in_the_artifact(tmp_path):
    first = run(config_for(tmp_path, records(200))).artifact.training["seconds"]
    assert set(first) == {"embed", "fit"}
    assert all(0 < seconds < 600 for seconds in first.values())
    config = config_for(tmp_path, records(200), "head: prior\n")
    second = Walk(config).provenance["seconds"]
    assert second["embed"] == first["embed"]  # when it was made, not when it was found


def test_a_time_that_nobody_measured_is_not_told(tmp_path):
    config = config_for(tmp_path, records(200))
    Walk(config).keep()
    for file in config.work_dir.rglob("made.json"):
        file.unlink()
    assert Walk(config).provenance["seconds"] == {"embed": None, "fit": None}


def test_a_second_run_takes_its_stages_from_the_work_folder(tmp_path, monkeypatch):
    config = config_for(tmp_path, records(200))
    first = run(config).artifact.artifact_id
    monkeypatch.setattr("router_training.stages.fit_head", None)
    monkeypatch.setattr("router_training.stages.prepare_encoders", None)
    assert run(config).artifact.artifact_id == first


def test_whole_number_labels_are_places_in_the_configured_models(tmp_path):
    rows = [
        {
            "conversations": [{"from": "human", "value": f"{('red', 'blue')[i % 2]} screen {i}"}],
            "label": i % 2,
        }
        for i in range(120)
    ]
    with pytest.raises(DataError, match="model_ids"):
        run(config_for(tmp_path, rows))
    text = (tmp_path / "train.yml").read_text()
    path = "path: records.json"
    (tmp_path / "train.yml").write_text(text.replace(path, f"{path}, model_ids: [warm, cold]"))
    result = run(load_training_config(tmp_path / "train.yml"))
    assert result.artifact.model_ids == ("warm", "cold")
    assert ModelRouter(tmp_path / "artifact").route("blue screen 7") == "cold"


def test_a_changed_input_is_not_confused_with_an_old_one(tmp_path):
    first = Walk(config_for(tmp_path, records(200)))
    P = first.P(first.split.test)
    changed = records(200)
    changed[0]["model_scores"]["good"] = 0.5
    second = Walk(config_for(tmp_path, changed))
    assert not np.array_equal(P, second.P(second.split.test))
    other_seed = Walk(replace_seed(config_for(tmp_path, records(200)), 5))
    assert not np.array_equal(first.split.test, other_seed.split.test)


def cost_of(result, model: str) -> float:
    return next(s for s in result.report.strategies if s.name == model).outcome.cost


def replace_seed(config, seed: int):
    return config.model_copy(update={"seed": seed})


def test_missing_scores_are_masked_and_counted_not_zero(tmp_path):
    rows = records(300)
    for row in rows[::3]:
        row["model_scores"]["cheap"] = None
    result = run(config_for(tmp_path, rows))
    report = result.report
    assert report.n_scores < 2 * report.n_queries
    Y = result.evaluations.labels.Y
    assert int(np.isnan(Y).sum()) == 100


def test_prices_turn_recorded_usage_into_dollars(tmp_path):
    rows = records(200)
    for row in rows:
        row["model_usage"] = {
            "good": {"input_tokens": 1000, "output_tokens": 500},
            "cheap": {"input_tokens": 1000, "output_tokens": 100},
        }
    prices = (
        "candidates:\n"
        "  - {id: good, price: {input_mtok: 10, output_mtok: 20}}\n"
        "  - {id: cheap, price: {input_mtok: 1, output_mtok: 2}}\n"
    )
    result = run(config_for(tmp_path, rows, f"head: logistic\n{prices}"))
    assert cost_of(result, "good") == pytest.approx(0.02)
    assert cost_of(result, "cheap") == pytest.approx(0.0012)
    assert result.tuned is not None


def test_relative_costs_are_tuned_and_reported_as_such(tmp_path):
    costs = "candidates: [{id: good, cost: 1.0}, {id: cheap, cost: 0.1}]\n"
    result = run(config_for(tmp_path, records(200), f"head: logistic\n{costs}"))
    assert result.report.cost_unit == "relative"
    assert cost_of(result, "cheap") == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ("", "empty"),
        ("[]", "no"),
        (json.dumps(records(10)), "20"),
        (json.dumps(records(100, models={"a": lambda i: 1, "b": lambda i: i % 2})), "'a'"),
        (
            json.dumps(records(100, models={"a": lambda i: None, "b": lambda i: i % 2})),
            "'a'",
        ),
        (json.dumps(records(100, models={"a": lambda i: i})), "model_scores"),
    ],
)
def test_data_that_cannot_be_learned_from_is_refused_and_nothing_is_written(
    tmp_path, rows, expected
):
    config = config_for(tmp_path, rows)
    with pytest.raises(RouterError, match=expected) as caught:
        run(config)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "artifact").exists()


def test_data_must_be_named(tmp_path):
    (tmp_path / "train.yml").write_text("output: artifact\n")
    with pytest.raises(ConfigError, match="--data"):
        run(load_training_config(tmp_path / "train.yml"))


def test_a_candidate_without_scores_is_named(tmp_path):
    with pytest.raises(ConfigError, match="'gpt-9' has no scores"):
        run(config_for(tmp_path, records(100), "candidates: [{id: gpt-9, cost: 1}]\n"))


def test_evaluating_a_router_on_its_test_rows_gives_the_runs_figures(trained):
    config, result = trained
    walk = Walk(config)
    test = walk.data.take(walk.split.test)
    report = Served(ModelRouter(config.output), test).report(seed=config.seed)
    assert report.to_json() == result.report.to_json()


def test_records_of_other_models_are_refused(trained):
    config, result = trained
    data = result.evaluations
    renamed = replace(data.labels, model_ids=("a", "b", "c", "d"))
    with pytest.raises(DataError, match="labels are of a, b, c, d"):
        Served(ModelRouter(config.output), replace(data, labels=renamed)).report()


def test_honest_points_are_tuned_on_the_calibration_rows(trained):
    _, result = trained
    honest = result.report.honest
    assert [point.name for point in honest] == ["recommended", "90 %", "95 %", "98 %", "100 %"]
    assert honest[0].outcome == result.report.strategy("router").outcome
    lambdas = [point.policy["lambda_per_usd"] for point in honest[1:]]
    assert lambdas == sorted(lambdas, reverse=True)
    assert {str(point.policy["fallback"]) for point in honest} == {
        str(result.artifact.recommended_policy["fallback"])
    }


def test_the_report_has_slices_of_the_test_rows(trained):
    slices = trained[1].report.slices
    kinds = {part.by for part in slices}
    assert {"data set", "modality", "prompt length"} <= kinds
    for kind in kinds:
        assert sum(part.n for part in slices if part.by == kind) == trained[1].report.n_queries


def test_the_provenance_says_how_the_rows_were_divided(trained):
    training = trained[1].artifact.training
    assert training["fractions"] == [0.6, 0.1, 0.1, 0.2]
    assert training["limit"] is None
    assert len(training["rows_sha256"]) == len(training["test_sha256"]) == 64


def test_a_limit_takes_some_rows(tmp_path):
    config = config_for(tmp_path, records(200))
    limited = config.model_copy(update={"data": config.data.model_copy(update={"limit": 100})})
    assert len(Walk(limited).data) == 100


def test_legacy_files_stand_beside_the_artifact_on_request(tmp_path):
    head = "head: {kind: mlp, hidden_dims: [8], epochs: 2}\n"
    run(config_for(tmp_path, records(200), head), export_legacy=True)
    names = {file.name for file in (tmp_path / "artifact").iterdir()}
    assert {"nn_router.pth", "model_names.joblib", "best_hyperparameters.joblib"} <= names
    load_artifact(tmp_path / "artifact")


def test_a_run_that_is_interrupted_says_so_and_leaves_no_artifact(tmp_path):
    config_for(tmp_path, records(3000), "head: {kind: mlp, epochs: 2000, patience: 2000}\n")
    process = subprocess.Popen(  # noqa: S603 - our own interpreter on our own code
        [sys.executable, "-m", "router_training", "run", str(tmp_path / "train.yml")],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    deadline = time.monotonic() + 60
    while not list((tmp_path / "work").glob(".fit-*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(1.0)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    # A shell shows 130 for both: Python ends itself by the signal if it hits an import.
    assert process.returncode in (130, -signal.SIGINT), errors
    assert "interrupted" in errors
    assert "Traceback" not in errors
    assert not (tmp_path / "artifact" / MANIFEST).exists()
    assert list((tmp_path / "work").glob("embed-*"))
    assert not list((tmp_path / "work").glob(".fit-*"))


# --------------------------------------------------------------------------- novelty


def recommended(tmp_path, novelty: str) -> tuple[Walk, dict | None]:
    rows = records(200)
    for row in rows:
        row["model_costs"] = {"good": 0.01, "cheap": 0.001}
    walk = Walk(config_for(tmp_path, rows, f"head: logistic\nnovelty: {novelty}\n"))
    return walk, walk.recommended.model_dump()["fallback"]


def test_the_recommended_policy_falls_back_to_the_best_single_model(tmp_path):
    walk, fallback = recommended(tmp_path, "{}")
    assert fallback == {"model": "good", "novelty_above": 0.99, "confidence_below": None}
    artifact = walk.keep()
    assert artifact.recommended_policy["fallback"] == fallback
    assert artifact.training["novelty"]["components"] == 32


def test_the_fallback_is_what_the_config_says(tmp_path):
    _, fallback = recommended(tmp_path, "{fallback: {model: cheap, novelty_above: 0.5}}")
    assert fallback == {"model": "cheap", "novelty_above": 0.5, "confidence_below": None}
    assert recommended(tmp_path, "{fallback: off}")[1] is None


def test_an_unknown_fallback_is_refused_before_anything_is_fitted(tmp_path, monkeypatch):
    monkeypatch.setattr("router_training.stages.fit_head", None)
    with pytest.raises(ConfigError, match="'nobody' has no scores"):
        recommended(tmp_path, "{fallback: {model: nobody}}")


def test_without_novelty_nothing_is_shrunken_and_nothing_falls_back(tmp_path):
    walk, fallback = recommended(tmp_path, "{enabled: false}")
    assert fallback is None
    assert walk.novelty is None
    assert walk.predict(walk.split.test).novelty is None
    assert walk.keep().novelty is None


@pytest.mark.parametrize("setting", ["components: 2", "neighbours: 4", "shrink_above: 0.2"])
def test_every_setting_of_novelty_changes_what_is_predicted(tmp_path, setting):
    plain, _ = recommended(tmp_path, "{}")
    other, _ = recommended(tmp_path, f"{{{setting}}}")
    rows = np.arange(200)
    assert not np.array_equal(plain.P(rows), other.P(rows))
    assert plain.features.X.shape == other.features.X.shape


def test_a_given_split_and_given_records_are_used(tmp_path):
    config = config_for(tmp_path, records(200))
    first = Walk(config)
    split = Split(*(np.arange(start, start + 50) for start in (0, 50, 100, 150)))
    second = Walk(config, data=first.data, split=split)
    assert second.data is first.data
    assert second.split is split
    first.fitted, second.fitted  # noqa: B018 - made and kept
    assert len([entry for entry in config.work_dir.iterdir() if "fit-" in entry.name]) == 2


def test_fitting_knows_which_rows_belong_together(tmp_path):
    """Else rows of one picture are in several folds of a stack, which trusts what it has seen."""
    rows = [{**row, "group": f"picture {i % 40}"} for i, row in enumerate(records(200))]
    walk = Walk(config_for(tmp_path, rows))
    data, split = walk.fit_data, walk.split
    numbers = dict(zip(np.array(walk.data.groups)[split.train], data.groups, strict=True))
    names = np.array(walk.data.groups)[split.validation]
    numbers |= dict(zip(names, data.validation_groups, strict=True))
    assert len(set(numbers.values())) == len(numbers) == 28
    assert len(set(data.validation_groups)) == 4


def test_who_labelled_the_records_goes_with_the_artifact(tmp_path):
    from router_training.labelled_by import (
        LabelledBy,
        LabelledCells,
        labels_path,
        records_digest,
        write_labelled_by,
    )
    from router_training.labelling.trust import measure_trust

    config = config_for(tmp_path, records(200))
    found = LabelledBy(
        rows=200,
        records_sha256=records_digest(tmp_path / "records.json"),
        candidates=(),
        judge=None,
        scorers={"match": "exact"},
        scoring_sha256="0" * 64,
        cells={"good": LabelledCells(199, {"failed": 1}, 0.8)},
        trust=measure_trust([]),
    )
    write_labelled_by(found, tmp_path / "records.json")
    artifact = run(config).artifact
    assert load_artifact(tmp_path / "artifact").training["labels"] == found.to_json()
    assert "0.5% of the answers" in (tmp_path / "artifact/README.md").read_text()
    assert artifact.training["rows"] == 200
    labels_path(tmp_path / "records.json").write_text("{}")
    with pytest.raises(DataError, match=r"labels\.json"):
        run(config)
