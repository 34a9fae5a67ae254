"""Tables of many models become records of tiers, and what is known of them reaches the card."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from router_runtime.artifacts import load_artifact, read_manifest
from router_runtime.errors import ConfigError, DataError
from router_training.cli import app
from router_training.cli_tiers import make_tiers
from router_training.config import load_training_config
from router_training.keep_left_out import check_same_run, keep_left_out
from router_training.labels import read_evaluations
from router_training.leave_out import leave_out
from router_training.made_from import read_made_from
from router_training.pipeline import run
from router_training.tiers import load_tiers_config, merge_tiers

PRICES = "tiers: {weak: {input_mtok: 1, output_mtok: 1}, strong: {input_mtok: 9, output_mtok: 9}}\n"
TABLES = """tables:
- {name: one, path: one.jsonl, models: {weak: small, strong: large}, origin: a place, licence: MIT}
- {name: two, path: two.jsonl, models: {weak: w, strong: s}, origin: "b | c", licence: CC0}
"""


def written(folder: Path, text: str = PRICES + TABLES) -> Path:
    """Two small tables with other models, and the config that merges them."""
    words = ("add", "draw", "translate", "list", "prove", "count", "name", "sort")
    one, two = [], []
    for n in range(120):
        easy = n % 2
        prompt = f"{'please' if easy else 'nevertheless'} {words[n % 8]} {n} of them"
        one.append(
            {
                "id": n,
                "dataset": ("letters", "numbers")[n // 60],
                "prompt": prompt,
                "scores": {"large": int(n % 5 > 0), "other": 0, "small": easy},
                "costs": {"large": 0.5},
            }
        )
        two.append(
            {"id": n, "prompt": f"{prompt} twice", "scores": {"s": int(n % 7 > 0), "w": easy}}
        )
    for name, rows in (("one", one), ("two", two)):
        text_rows = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text_rows)
    (folder / "tables.yml").write_text(text)
    return folder / "tables.yml"


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A run on merged records, with what leaving data sets out has shown: (config, folder)."""
    folder = tmp_path_factory.mktemp("tiers")
    config = written(folder)
    cli = CliRunner().invoke(
        _app(),
        [str(config), "--data", str(folder), "--output", str(folder / "records.jsonl"), "--json"],
    )
    assert cli.exit_code == 0, cli.output
    assert json.loads(cli.stdout)["output"] == str(folder / "records.jsonl")
    (folder / "train.yml").write_text(
        "data: {path: records.jsonl}\noutput: artifact\nwork_dir: work\n"
        "head: {kind: logistic}\n"
        "features: {encoders: [{kind: embedded, hash_bits: 8, text_components: 4}]}\n"
    )
    settled = load_training_config(folder / "train.yml")
    run(settled)
    check_same_run(settled, settled.output)
    keep_left_out(leave_out(settled), settled.output)
    return settled, settled.output


def _app():
    import typer

    alone = typer.Typer()
    alone.command()(make_tiers)
    return alone


def test_each_table_gives_the_models_that_stand_for_a_tier(tmp_path):
    records, used = merge_tiers(load_tiers_config(written(tmp_path)), tmp_path)
    assert records.model_ids == ("weak", "strong")
    assert len(records) == 240
    assert records.labels.Y[1].tolist() == [1.0, 1.0]
    assert records.labels.Y[122].tolist() == [0.0, 1.0]
    assert records.samples[0].id == "one/0"
    assert {sample.dataset for sample in records.samples} == {"letters", "numbers", "two"}
    assert [table.recorded_costs for table in used] == [True, False]


def test_costs_are_recorded_ones_and_else_the_tiers_nominal_price(tmp_path):
    records, _ = merge_tiers(load_tiers_config(written(tmp_path)), tmp_path)
    cost = records.labels.cost_usd
    assert cost[0, 1] == 0.5
    assert cost[120, 1] == pytest.approx(9 * cost[120, 0])
    assert cost[0, 0] > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("strong: large", "strong: nobody"), "no scores of 'nobody'"),
        (("strong: large", "strong: small"), "one model for two tiers"),
        (("strong: large", "middle: large"), "name one for each of weak, strong"),
        (("name: two", "name: one"), "listed twice"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(tmp_path, change, message):
    path = written(tmp_path, PRICES + TABLES.replace(*change))
    with pytest.raises(ConfigError, match=message):
        merge_tiers(load_tiers_config(path), tmp_path)


def test_what_tables_records_were_made_from_stays_beside_them(kept):
    records = kept[0].data.path
    told = read_made_from(records)
    assert [table.models["strong"] for table in told.tables] == ["large", "s"]
    assert len(read_evaluations(records)) == sum(table.rows for table in told.tables)


def test_records_that_were_changed_since_are_not_described(kept, tmp_path, caplog):
    records = tmp_path / "records.jsonl"
    records.write_bytes(kept[0].data.path.read_bytes() + b"\n")
    beside = kept[0].data.path.with_name("records.jsonl.tables.json")
    (tmp_path / beside.name).write_bytes(beside.read_bytes())
    assert read_made_from(records) is None
    assert "other records" in caplog.text


def test_a_damaged_description_is_an_error(kept, tmp_path):
    records = tmp_path / "records.jsonl"
    records.write_bytes(b"")
    (tmp_path / "records.jsonl.tables.json").write_text('{"schema_version": 9}')
    with pytest.raises(DataError, match="merge the tables again"):
        read_made_from(records)


def test_the_card_tells_tables_and_unseen_kinds(kept):
    card = (kept[1] / "README.md").read_text()
    assert "| one: a place | 120 | small | large | recorded | MIT |" in card
    assert r"two: b \| c" in card
    assert "## Kinds of task that it never saw" in card
    for dataset in ("letters", "numbers", "two"):
        assert f"| {dataset} |" in card
    assert "no prompt, picture or answer" in card


def test_keeping_changes_figures_and_card_alone(kept):
    config, folder = kept
    again = load_artifact(folder)
    assert len(again.metrics["left_out"]) == 3
    assert again.training["data_sha256"] == read_manifest(folder).training["data_sha256"]
    before = run(config.model_copy(update={"output": folder.parent / "fresh"})).artifact
    assert before.parts.to_files() == again.parts.to_files()


def test_figures_of_another_run_are_not_kept(kept):
    config, folder = kept
    with pytest.raises(ConfigError, match="'seed' differs"):
        check_same_run(config.model_copy(update={"seed": 7}), folder)
    small = config.features.encoders[0].model_copy(update={"text_components": 2})
    features = config.features.model_copy(update={"encoders": (small,)})
    with pytest.raises(ConfigError, match="'features' differ"):
        check_same_run(config.model_copy(update={"features": features}), folder)


def test_the_command_line_keeps_what_it_measured(kept):
    folder = kept[1]
    path = folder.parent / "train.yml"
    told = CliRunner().invoke(app, ["leave-out", str(path), "--keep", str(folder), "--json"])
    assert told.exit_code == 0, told.output
    assert json.loads(told.stdout)["left_out"] == load_artifact(folder).metrics["left_out"]
