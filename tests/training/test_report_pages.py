from __future__ import annotations

import sys
from datetime import UTC, datetime

import pytest

from router_runtime import ModelRouter
from router_runtime.artifacts import read_manifest
from router_runtime.errors import ConfigError, MissingDependencyError
from router_training.report_pages import (
    Wanted,
    added_since,
    subject_of_manifest,
    subject_of_router,
    subject_of_walk,
    write_files,
    write_served_files,
    write_walk_files,
)
from router_training.served import Served
from router_training.stored_report import stored_report

MADE = datetime(2026, 11, 20, 10, 30, tzinfo=UTC)


def test_an_artifacts_page_has_its_figures_and_no_prompt(trained, tmp_path):
    config, result = trained
    manifest = read_manifest(config.output)
    subject = subject_of_manifest(manifest, name="artifact", made=MADE)
    assert subject.facts["made"] == "2026-11-20 10:30 UTC"
    assert subject.facts["router"] == "logistic on embedded"
    assert result.evaluations.fingerprint[:16] in subject.facts["trained on"]
    report = stored_report(manifest, name="artifact")
    wanted = Wanted(tmp_path / "r.json", tmp_path / "r.html", tmp_path / "plots", examples=5)
    write_files(report, wanted, subject)
    assert len(list((tmp_path / "plots").iterdir())) == 5
    assert (tmp_path / "r.json").exists()
    assert "This page holds prompts" not in (tmp_path / "r.html").read_text()


def test_an_artifacts_page_names_the_models_that_came_after_its_figures(trained):
    manifest = read_manifest(trained[0].output)
    report = stored_report(manifest, name="artifact")
    assert added_since(manifest, report) == ()
    assert "without" not in subject_of_manifest(manifest, name="artifact").facts
    longer = manifest.model_copy(update={"model_ids": (*manifest.model_ids, "new")})
    assert added_since(longer, report) == ("new",)
    subject = subject_of_manifest(longer, name="artifact", added=("new",))
    assert subject.facts["without"] == "new (added since)"


def test_a_walks_page_shows_as_many_test_rows_as_wanted(trained, tmp_path):
    walk = trained[1].walk
    write_walk_files(walk, Wanted(html=tmp_path / "r.html", examples=3))
    page = (tmp_path / "r.html").read_text()
    shown = [f"Record {walk.data.samples[row].id}<" in page for row in walk.split.test]
    assert page.count("<article") == sum(shown) == 3
    write_walk_files(walk, Wanted(html=tmp_path / "none.html", examples=0))
    assert "<article" not in (tmp_path / "none.html").read_text()
    assert subject_of_walk(walk, made=MADE).facts["artifact"] == "artifact"


def test_a_served_routers_page_shows_its_records(trained, tmp_path):
    config, result = trained
    router = ModelRouter(config.output)
    data = result.evaluations.take(result.walk.split.test)
    wanted = Wanted(html=tmp_path / "r.html", examples=2)
    write_served_files(result.report, Served(router, data), wanted, name="test.jsonl")
    page = (tmp_path / "r.html").read_text()
    assert page.count("<article") == 2
    assert "test.jsonl, 80 rows" in page
    facts = subject_of_router(router, data, name="test.jsonl", made=MADE).facts
    assert facts["artifact"] == router.artifact.artifact_id


def test_without_the_extra_the_error_names_it_before_anything_is_written(
    trained, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for name in [n for n in sys.modules if n.startswith("router_training.plot")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "router_training.report_html", raising=False)
    wanted = Wanted(tmp_path / "r.json", tmp_path / "r.html")
    with pytest.raises(MissingDependencyError, match=r"model-router\[report\]"):
        write_walk_files(trained[1].walk, wanted)
    assert list(tmp_path.iterdir()) == []
    Wanted(tmp_path / "r.json").check()  # needs nothing


def test_provenance_of_any_kind_is_shown_as_text(trained):
    training = {"data_sha256": 5, "rows": {"a": 1}, "parts": {"<b>": [1]}, "seed": [None]}
    manifest = read_manifest(trained[0].output).model_copy(update={"training": training})
    facts = subject_of_manifest(manifest, name="x", made=MADE).facts
    assert facts["trained on"] == "{'a': 1} records, sha256 5"
    assert (facts["division"], facts["seed"]) == ("<b> [1]", "[None]")


@pytest.mark.parametrize("wanted", ["json", "html", "plots"])
def test_an_artifacts_folder_is_no_place_for_reports(trained, wanted):
    folder = trained[0].output
    place = folder if wanted == "plots" else folder / "report"
    with pytest.raises(ConfigError, match="is an artifact's folder"):
        Wanted(**{wanted: place}).check()
    assert ModelRouter(folder).decide("What is 2 + 2?")


def test_one_file_cannot_be_both_json_and_page(tmp_path):
    with pytest.raises(ConfigError, match="name two files"):
        Wanted(tmp_path / "r", tmp_path / "r").check()
