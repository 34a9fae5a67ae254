"""The commands about what the service remembers."""

import asyncio
import json

import pytest
import typer
from typer.testing import CliRunner

from router_runtime.cli_store import register
from router_runtime.errors import ConfigError
from router_runtime.service.feedback import Feedbacks
from router_runtime.service.store import open_store
from router_runtime.service.values import Caller, Feedback
from router_runtime.service_config import StoreConfig

app = typer.Typer()
register(app)


@app.callback()
def _root() -> None:
    pass


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "router.yml"
    path.write_text(
        "artifact: a\n"
        "candidates:\n"
        "  - {id: small, price: {input_mtok: 1, output_mtok: 2}}\n"
        "  - {id: large, price: {input_mtok: 5, output_mtok: 9}}\n"
        "service: {store: {url: 'sqlite:///here.db', spool: spool, content: true}}\n"
    )
    return path


@pytest.fixture
def filled(config, make_event):
    store = open_store(
        StoreConfig(url="sqlite:///here.db", spool="spool", content=True), folder=config.parent
    )
    said = ({"role": "user", "content": "What is 1 + 1?"},)
    store.record(make_event("d1", messages=said, key_id="k1"))
    store.record(make_event("d2", messages=said, key_id="k2", at=1_790_086_400.0, cost="0.02"))
    store.record(make_event("d3", messages=None, key_id="k2"))
    for decision_id, key_id in (("d1", "k1"), ("d2", "k2"), ("d3", "k2")):
        asyncio.run(Feedbacks(store).give(Caller(key_id), Feedback(decision_id, 1.0)))
    assert store.close().queued == 0
    return config


def run(*args):
    result = CliRunner().invoke(app, [str(arg) for arg in args], catch_exceptions=True)
    return result.exit_code, " ".join(result.output.split()), result.exception


def test_spend_shows_lines_total_and_savings(filled):
    status, shown, _ = run("spend", "--config", filled)
    assert status == 0
    assert "small 3 3 0 0.040000 0% 0.110000 73%" in shown
    assert "total 3" in shown
    assert "'large' was expected to cost" in shown


def test_spend_takes_key_day_since_and_baseline(filled):
    _, shown, _ = run("spend", "--config", filled, "--by", "day", "--since", "2026-09-22")
    assert "2026-09-22" in shown
    assert "2026-09-21" not in shown
    _, shown, _ = run("spend", "--config", filled, "--by", "key", "--key", "k1")
    assert "k1" in shown
    assert "k2" not in shown
    _, shown, _ = run("spend", "--config", filled, "--baseline", "small")
    assert "'small' was expected to cost" in shown


def test_spend_prints_json_with_exact_dollars(filled):
    status, _, _ = run("spend", "--config", filled, "--json")
    content = json.loads(
        CliRunner().invoke(app, ["spend", "--config", str(filled), "--json"]).output
    )
    assert status == 0
    assert content["total"]["input_tokens"] == 300
    assert content["total"]["cost_usd"] == "0.040000000000"
    assert content["baseline"] == "large"


def test_export_feedback_writes_records_and_says_what_is_left_out(filled, tmp_path):
    output = tmp_path / "records.jsonl"
    status, shown, _ = run("export-feedback", "--config", filled, "--output", output)
    assert status == 0
    assert "2 records" in shown
    assert "1 left out: their messages were not kept" in shown
    assert len(output.read_text().splitlines()) == 2
    command = ["export-feedback", "--config", str(filled), "--output", str(output)]
    done = CliRunner().invoke(app, [*command, "--key", "k1", "--json"])
    told = {"output": str(output), "records": 1, "without_content": 0, "not_served": 0}
    assert json.loads(done.stdout) == told
    assert len(output.read_text().splitlines()) == 1
    run("export-feedback", "--config", filled, "--output", output, "--since", "2026-09-22T00:00:00")
    assert json.loads(output.read_text())["idx"] == "d2"


def test_export_feedback_refuses_another_kind_of_file(filled, tmp_path):
    _, _, error = run("export-feedback", "--config", filled, "--output", tmp_path / "a.csv")
    assert isinstance(error, ConfigError)
    assert "must end in .jsonl" in str(error)


def test_db_upgrade_makes_the_database_beside_the_config(config):
    status, shown, _ = run("db", "upgrade", "--config", config)
    assert status == 0
    assert "revision 0001" in shown
    assert (config.parent / "here.db").is_file()
    told = json.loads(run("db", "upgrade", "--config", config, "--json")[1])
    assert told["revision"] in shown and told["url"] in shown
    assert run("spend", "--config", config)[0] == 0


def test_without_a_database_the_remedy_is_told(config):
    for command in (("spend",), ("export-feedback", "--output", config.parent / "r.jsonl")):
        _, _, error = run(*command, "--config", config)
        assert isinstance(error, ConfigError)
        assert "model-router db upgrade" in str(error)
