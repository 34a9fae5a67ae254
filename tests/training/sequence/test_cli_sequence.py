from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from router_runtime.artifacts import read_manifest
from router_runtime.errors import ConfigError

pytest.importorskip("torch")
pytest.importorskip("transformers")

from router_training.cli_sequence import fit_sequence, make_prompted_command, route_sequence

ROOT = Path(__file__).resolve().parents[3]
app = typer.Typer()
app.command()(fit_sequence)
app.command()(route_sequence)
app.command("make-prompted")(make_prompted_command)


def ask(*arguments, given=""):
    return CliRunner().invoke(app, [str(a) for a in arguments], input=given)


def refused(*arguments):
    result = ask(*arguments)
    assert isinstance(result.exception, ConfigError), result.output
    return str(result.exception)


def fit(files, base, folder, *more):
    return ask(
        "fit-sequence",
        *("--train_data", files / "train.jsonl", "--val_data", files / "val.jsonl"),
        *("--output_dir", folder, "--epochs", 2, "--batch_size", 16, "--model", base),
        *("--max_tokens", 32, "--device", "cpu", *more),
    )


def test_fit_sequence_takes_the_published_flags_and_saves_a_router(files, base, tmp_path):
    result = fit(files, base, tmp_path / "router_model")
    assert result.exit_code == 0, result.output
    assert "epoch 2: training loss" in result.output and "macro-F1" in result.output
    manifest = read_manifest(tmp_path / "router_model")
    assert manifest.model_ids == ("code", "math", "science")
    assert len(manifest.training["predictor"]["epochs"]) == 2
    assert [entry.name for entry in (tmp_path / "router_model").iterdir() if entry.is_dir()] == []


def test_the_seed_and_the_rate_change_the_router(files, base, tmp_path):
    ids = set()
    for name, *more in (("a",), ("b",), ("c", "--seed", 5), ("d", "--learning_rate", 1e-3)):
        result = fit(files, base, tmp_path / name, *more, "--json")
        assert len(json.loads(result.stdout)["epochs"]) == 2
        ids.add((tmp_path / name / "sequence.safetensors").read_bytes())
    assert len(ids) == 3  # a and b are alike


def test_categories_and_models_come_from_the_config(files, base, tmp_path):
    config = tmp_path / "router_config.yaml"
    config.write_text(
        "categories: [science, math, code]\n"
        "model_mappings: {science: s, math: m, code: m}\n"
        "router_config:\n"
        "  model_path: router_model\n"
        "  device: cpu\n"
        "  confidence_threshold: 0.9\n"
        "  fallback: science\n"
    )
    assert fit(files, base, tmp_path / "router_model", "--config", config).exit_code == 0
    manifest = read_manifest(tmp_path / "router_model")
    assert manifest.model_ids == ("s", "m")
    assert manifest.predictor["labels"] == ["science", "math", "code"]
    assert manifest.recommended_policy["fallback"]["model"] == "s"
    result = ask("route-sequence", "--mode", "single", "--query", "x", "--config", config)
    told = json.loads(result.output)
    assert told["model"] in ("s", "m") and told["confident"] is False


def test_without_the_wandb_package_the_flag_is_refused_before_anything_is_learned(
    files, base, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "wandb", None)
    result = fit(files, base, tmp_path / "router_model", "--wandb")
    assert "model-router[wandb]" in str(result.exception)
    assert not (tmp_path / "router_model").exists()


# --------------------------------------------------------------------------- modes


def test_mode_single_prints_one_object(router_model):
    result = ask(
        *("route-sequence", "--mode", "single", "--model_path", router_model[0]),
        *("--query", "compile the python loop of an array", "--device", "cpu"),
    )
    told = json.loads(result.output)
    assert set(told) == {"category", "confidence"} and told["category"] == "code"


def test_mode_interactive_answers_line_by_line_until_an_empty_one(router_model):
    typed = "compile the python loop of an array\nsum the angle of a triangle\n\nnever read\n"
    result = ask("route-sequence", "--model_path", router_model[0], given=typed)
    assert result.exit_code == 0
    told = [json.loads(line) for line in result.stdout.splitlines()]
    assert [entry["category"] for entry in told] == ["code", "math"]


def test_mode_batch_reads_and_writes_jsonl(router_model, files, tmp_path):
    given = ("--model_path", router_model[0], "--input_file", files / "test.jsonl")
    arguments = ("route-sequence", "--mode", "batch", *given, "--output_file", tmp_path / "o.jsonl")
    assert "60 rows:" in " ".join(ask(*arguments).output.split())
    assert len((tmp_path / "o.jsonl").read_text().splitlines()) == 60
    assert "60 rows, 60 of them before" in " ".join(ask(*arguments).output.split())
    told = json.loads(ask(*arguments, "--json").stdout)
    assert (told["rows"], told["resumed"]) == (60, 60)


@pytest.mark.parametrize("more", [(), ("--json",)])
def test_mode_evaluate_prints_figures_and_writes_picture_and_json(
    router_model, files, tmp_path, more
):
    pytest.importorskip("matplotlib")
    result = ask(
        *("route-sequence", "--mode", "evaluate", "--model_path", router_model[0]),
        *("--test_file", files / "test.jsonl", "--plot", tmp_path / "matrix.png"),
        *("--output_file", tmp_path / "figures.json", *more),
    )
    assert result.exit_code == 0, result.output
    if more:
        assert json.loads(result.stdout)["macro_f1"] > 0.9
    else:
        assert "accuracy" in result.output and "macro-F1" in result.output
    assert (tmp_path / "matrix.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "figures.json").read_text())["accuracy"] > 0.9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--mode", "single"), "--mode single needs --query"),
        (("--mode", "batch"), "--mode batch needs --input_file"),
        (("--mode", "evaluate"), "--mode evaluate needs --test_file"),
        (("--mode", "single", "--query", "x", "--test_file", "t"), "--test_file changes nothing"),
        (("--query", "x"), "--query changes nothing in --mode interactive"),
    ],
)
def test_a_mode_says_what_it_needs_and_what_it_has_no_use_for(arguments, message):
    assert message in refused("route-sequence", *arguments)


def test_batch_without_an_output_is_refused(router_model, files):
    given = ("--model_path", router_model[0], "--input_file", files / "test.jsonl")
    assert "needs --output_file" in refused("route-sequence", "--mode", "batch", *given)


def test_make_prompted_saves_an_artifact(tmp_path):
    pytest.importorskip("openai")
    (tmp_path / "p.yml").write_text(
        "output: made\n"
        "predictor:\n"
        "  kind: prompted\n"
        "  target: {kind: vllm, base_url: 'http://127.0.0.1:9/v1', model: qwen-vl}\n"
        "  descriptions: {a: one kind, b: another kind}\n"
    )
    result = ask("make-prompted", tmp_path / "p.yml")
    assert result.exit_code == 0 and "not calibrated" in result.output
    assert read_manifest(tmp_path / "made").predictor["kind"] == "prompted"
    told = json.loads(ask("make-prompted", tmp_path / "p.yml", "--json").stdout)
    assert told["model_ids"] == ["a", "b"]


# --------------------------------------------------------------------------- scripts


def script(name, *arguments, cwd):
    path = ROOT / "router_training" / name
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(  # noqa: S603
        [sys.executable, path, *map(str, arguments)],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_the_inference_script_answers_from_any_folder(router_model, tmp_path):
    folder = router_model[0]
    done = script(
        "router_inference.py",
        *("--mode", "single", "--query", "compile the python loop", "--model_path", folder),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["category"] == "code"


def test_the_training_script_explains_its_flags_and_refuses_in_one_line(tmp_path):
    done = script("train_router.py", "--help", cwd=tmp_path)
    assert "--train_data" in done.stdout and "--val_data" in done.stdout
    done = script("train_router.py", "--train_data", "nowhere.jsonl", cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "nowhere.jsonl" in done.stderr
