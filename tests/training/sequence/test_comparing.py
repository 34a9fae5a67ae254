"""One comparison of routers of three kinds on the same records."""

from __future__ import annotations

import json

import pytest
import typer
from typer.testing import CliRunner

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("openai")

from router_runtime.prediction.prompting import question
from router_runtime.simulator.config import SimulatedModelConfig, SimulatorConfig
from router_runtime.simulator.known import KnownAnswer, answer_line
from router_runtime.simulator.serve import SimulatorServer
from router_runtime.types import Query
from router_training.cli_evaluate import compare_routers
from router_training.config import load_training_config
from router_training.pipeline import Walk

KINDS = ("math", "science", "code")
DESCRIPTIONS = {kind: f"questions about {kind}" for kind in KINDS}
KEYS = {"embed_s", "fit_s", "trained_parameters", "frozen_parameters", "artifact_bytes"}

app = typer.Typer()
app.command("compare")(compare_routers)


@pytest.fixture(scope="module")
def records(files, tmp_path_factory):
    """180 questions of three kinds."""
    lines = (files / "train.jsonl").read_text().splitlines()[:180]
    path = tmp_path_factory.mktemp("kinds") / "records.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def server(records, tmp_path_factory):
    """A server whose model tells the kind of nine of ten of them."""
    answers = tmp_path_factory.mktemp("server") / "answers.jsonl"
    with answers.open("w") as file:
        for row in map(json.loads, records.read_text().splitlines()):
            call = question(
                Query(row["query"]),
                list(DESCRIPTIONS.values()),
                order=range(3),
                max_chars=8000,
                parameters={},
            )
            prompt = "".join(part["text"] for part in call.messages[1]["content"])
            letter = "ABC"[KINDS.index(row["category"])]
            file.write(answer_line(prompt, KnownAnswer(letter, "kinds", 0.5, 2)))
    model = SimulatedModelConfig(skills={"kinds": (0.9, 0.9)})
    with SimulatorServer(SimulatorConfig(models={"asked": model}, answers=answers)) as running:
        yield running


@pytest.fixture(scope="module")
def configs(records, server, base, settings_of):
    """A config of each kind, beside the records."""
    target = {"kind": "compatible", "base_url": f"{server.url}/v1", "model": "asked"}
    encoder = {"kind": "embedded", "text_components": 16, "thumbnail_components": 4}
    kinds = {
        "features": {"features": {"encoders": [encoder]}, "head": "logistic"},
        "sequence": {"predictor": settings_of(base, epochs=4).model_dump()},
        "prompted": {
            "predictor": {
                "kind": "prompted",
                "target": target,
                "descriptions": DESCRIPTIONS,
                "fallback": "math",
            }
        },
    }
    paths = []
    for name, content in kinds.items():
        common = {
            "data": {"path": records.name, "model_ids": list(KINDS)},
            "output": f"out-{name}",
            "work_dir": "work",
        }
        if name != "prompted":
            common["encoder"] = {"device": "cpu"}
        paths.append(records.parent / f"{name}.yml")
        paths[-1].write_text(json.dumps(common | content))
    return paths


@pytest.fixture(scope="module")
def shown(configs):
    """What the command prints and what it writes, of the same comparison."""
    file = configs[0].parent / "comparison.json"
    words = [*configs, "--timed", 6, "--output", file]
    done = CliRunner().invoke(app, list(map(str, words)), catch_exceptions=False)
    assert done.exit_code == 0
    return done.stdout, json.loads(file.read_text())


def test_routers_of_three_kinds_stand_in_one_table(shown):
    table = shown[0].partition("Decisions timed")[0]
    rows = {line.split()[0]: line.split() for line in table.splitlines() if line.strip()}
    for kind in ("features", "sequence", "prompted"):
        assert len(rows[kind]) == 9  # name, accuracy, cost, training, sizes, three times
    for words in ("train s", "params", "bytes", "p95", "accuracy", "of 6"):
        assert words in table
    assert "sequence minus features" in shown[0]
    assert "prompted minus features" in shown[0]


def test_each_kind_tells_what_it_takes(shown, configs):
    standings = {entry["name"]: entry for entry in shown[1]["standings"]}
    features, sequence, prompted = (standings[path.stem]["footprint"] for path in configs)
    assert all(set(entry) >= KEYS for entry in (features, sequence, prompted))
    assert features["embed_s"] > 0 < features["fit_s"]
    assert sequence["embed_s"] == prompted["embed_s"] == 0
    assert sequence["fit_s"] > prompted["fit_s"]
    assert sequence["frozen_parameters"] == features["frozen_parameters"] == 0
    assert prompted["frozen_parameters"] is prompted["frozen_bytes"] is None
    assert prompted["trained_parameters"] == 0
    assert sequence["trained_parameters"] * 4 < sequence["artifact_bytes"]
    for entry in (features, sequence, prompted):
        assert 0 < entry["latency"]["median_ms"] <= entry["latency"]["p95_ms"]
    assert (features["latency"]["rounds"], prompted["latency"]["rounds"]) == (5, 1)
    assert standings["sequence"]["quality"] > 0.5
    assert standings["prompted"]["quality"] > 0.5
    assert "cores" in shown[1]["machine"]


def test_comparing_saves_no_artifact_and_keeps_the_time_of_the_first_run(shown, configs):
    assert not list(configs[0].parent.glob("out-*"))
    sequence = shown[1]["standings"][1]["footprint"]
    assert Walk(load_training_config(configs[1])).seconds["fit"] == sequence["fit_s"]


def test_nothing_is_timed_where_that_is_not_wanted(shown, configs):
    words = [*configs[:2], "--timed", 0, "--json"]
    done = CliRunner().invoke(app, list(map(str, words)), catch_exceptions=False)
    found = json.loads(done.stdout)
    assert [entry["footprint"]["latency"] for entry in found["standings"]] == [None, None]
    assert found["machine"] == ""
