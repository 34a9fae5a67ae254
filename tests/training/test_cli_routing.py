"""The routing commands as a user types them, from drawn screens to a router that chooses."""

from __future__ import annotations

import json
import re
import shutil

import pytest
import typer
from typer.testing import CliRunner

from router_runtime import ModelRouter
from router_runtime.errors import ConfigError, DataError
from router_training.cli_routing import (
    ANY_OPTIONS,
    check_command,
    convert_command,
    draw_command,
    generate_command,
)
from router_training.config import load_training_config
from router_training.pipeline import run
from router_training.routing.screens import DEFAULT_ADAPTERS

app = typer.Typer()
app.command("generate-routing-data", context_settings=ANY_OPTIONS)(generate_command)
app.command("check-routing-data")(check_command)
app.command("convert-routing-to-classification")(convert_command)
app.command("draw-screens")(draw_command)

FOUR = (*DEFAULT_ADAPTERS, "chandra-ocr")
CONFIG = """\
data: {source: routing}
split: {train: 0.7, validation: 0.1, calibration: 0.1, test: 0.1}
features: {encoders: [{kind: embedded, text_components: 32, thumbnail_components: 32}]}
head: logistic
novelty: {shrink_above: 1.0, fallback: off}
output: artifact
work_dir: work
"""


def call(*words: object):
    done = CliRunner().invoke(app, list(map(str, words)))
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("screens") / "drawn"
    four = ("--adapters", ",".join(FOUR))
    done = call("draw-screens", folder, "--rows", 160, "--seed", 3, *four, "--json")
    assert len(json.loads(done.stdout)["drawn"]) == 4
    return folder


def data_sets(drawn, adapters=FOUR) -> list[str]:
    return [f"--{name}-dataset={drawn / name / 'train.jsonl'}" for name in adapters]


def generated(tmp_path, *words: object):
    done = call("generate-routing-data", *words, "--output-dir", tmp_path)
    folder = next(tmp_path.glob("routing_*"))
    assert re.fullmatch(r"routing_\d{8}_\d{6}", folder.name)
    return done, folder


def test_drawn_screens_become_routing_data_and_a_router_of_four_adapters(drawn, tmp_path):
    done, folder = generated(tmp_path, *data_sets(drawn), "--eval-samples", 6)
    assert "no picture, group or id is in two parts" in done.output
    (tmp_path / "screens.yml").write_text(CONFIG)
    config = load_training_config(tmp_path / "screens.yml", overrides={"data.path": folder})
    assert run(config).artifact.model_ids == FOUR
    router = ModelRouter(str(tmp_path / "artifact"))
    rows = [json.loads(line) for line in (folder / "eval.jsonl").read_text().splitlines()]
    right = [
        router.route(
            row["conversations"][0]["value"].removeprefix("<image>\n"), [folder / row["image"]]
        )
        == row["adapter"]
        for row in rows
    ]
    assert sum(right) / len(right) > 0.6  # a quarter by chance; 100 rows are few


def test_options_of_the_command_and_of_adapters_go_together(drawn, tmp_path):
    done, folder = generated(
        tmp_path,
        "--train-samples",
        20,
        *data_sets(drawn, FOUR[:2]),
        "--train-samples-calendar",
        10,
        "--eval-images",
        4,
        "--eval-images-claim-window=3",
        "--train-val-split",
        0.5,
    )
    found = json.loads((folder / "metadata.json").read_text())
    total = {n: found["rows"]["train"][n] + found["rows"]["val"][n] for n in FOUR[:2]}
    assert total == {"calendar": 10, "claim-window": 20}
    assert found["options"]["train_share"] == 0.5
    assert [source["eval"]["images"] for source in found["sources"]] == [4, 3]
    assert "not used: " in done.output


def test_balanced_leaves_rows_out(drawn, tmp_path):
    words = [*data_sets(drawn, FOUR[:2]), "--train-samples-calendar", 15, "--balanced"]
    done, folder = generated(tmp_path, *words, "--json")
    told = json.loads(done.stdout)
    assert (told["output"], told["leaks"]) == (str(folder), [])
    rows = json.loads((folder / "metadata.json").read_text())["rows"]
    assert rows["train"]["claim-window"] + rows["val"]["claim-window"] == 15


def test_an_unknown_option_is_an_error_that_names_the_known_forms(drawn, tmp_path):
    with pytest.raises(ConfigError, match=r"'--train-sample' is no known option\. Known: --<adap"):
        generated(tmp_path, *data_sets(drawn), "--train-sample", 3)
    assert list(tmp_path.iterdir()) == []


def test_bad_rows_are_errors_or_listed_on_demand(drawn, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(drawn / "calendar", broken)
    first = json.loads((broken / "train.jsonl").read_text().splitlines()[0])
    (broken / first["image"]).unlink()
    words = [f"--calendar-dataset={broken}/train.jsonl", *data_sets(drawn, FOUR[1:])]
    with pytest.raises(DataError, match=r"row 1, field 'image\[0\]': There is no picture file"):
        generated(tmp_path, *words)
    done, _ = generated(tmp_path, *words, "--on-bad-row", "skip")
    assert "left out" in done.output
    assert "train.jsonl, row 1, image[0]: There is no picture file" in done.output.replace("\n", "")


def test_the_check_fails_where_parts_share_a_picture(drawn, tmp_path):
    _, folder = generated(tmp_path, *data_sets(drawn, FOUR[:2]))
    assert call("check-routing-data", folder).exit_code == 0
    row = json.loads((folder / "train.jsonl").read_text().splitlines()[0])
    with (folder / "val.jsonl").open("a") as file:
        file.write(json.dumps({**row, "id": "copy", "metadata": {}}) + "\n")
    done = call("check-routing-data", folder)
    assert done.exit_code == 1
    told = json.loads(call("check-routing-data", folder, "--json").stdout)
    assert len(told["leaks"]) >= 1 and set(told["rows"]) == {"train", "val"}
    assert "shared: picture" in done.output


def test_conversion_says_what_it_wrote(drawn, tmp_path):
    _, folder = generated(tmp_path, *data_sets(drawn, FOUR[:2]))
    done = call("convert-routing-to-classification", folder, "--question", "picture")
    assert "train-classification.jsonl" in done.output
    again = call("convert-routing-to-classification", folder, "--question", "picture", "--json")
    assert all(n > 0 for n in json.loads(again.stdout)["rows"].values())
    human = json.loads((folder / "val-classification.jsonl").read_text().splitlines()[0])
    asked = human["conversations"][1]["value"]
    assert asked == "<image>\nWhich adapter should handle this screenshot?"
