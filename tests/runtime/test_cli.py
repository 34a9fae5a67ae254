"""``model-router`` as a user types it: real processes, exit statuses and output."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


def call(
    *arguments: object, cwd: Path | None = None, stdin: str | bytes = ""
) -> subprocess.CompletedProcess:
    return subprocess.run(  # noqa: S603 - our own interpreter on our own code
        [sys.executable, "-m", "router_runtime.cli", *map(str, arguments)],
        capture_output=True,
        text=isinstance(stdin, str),
        cwd=cwd,
        input=stdin,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "120"},
    )


def succeeded(*arguments: object, **options) -> str:
    done = call(*arguments, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


def refused(*arguments: object, **options) -> str:
    done = call(*arguments, **options)
    assert done.returncode == 2, (done.returncode, done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    return done.stderr


@pytest.fixture(scope="module")
def artifact(trained) -> Path:
    return trained[0].output


def test_route_prints_the_choice_its_reason_and_every_candidate(artifact, trained):
    shown = succeeded("route", "--artifact", artifact, "What is 17 + 25?")
    first = shown.splitlines()[0]
    assert "policy recommended" in first
    assert all(model in shown for model in trained[1].artifact.model_ids)


def test_route_reads_pictures_stdin_and_messages(artifact, workload, tmp_path):
    picture = workload / "example.png"
    shown = succeeded("route", "--artifact", artifact, "--image", picture, "How many?")
    assert "does_not_accept_image" in shown
    prompt = "What is 17 + 25?"
    named = succeeded("route", "--artifact", artifact, "--quiet", prompt)
    assert succeeded("route", "--artifact", artifact, "--quiet", "-", stdin=prompt) == named
    (tmp_path / "m.json").write_text(json.dumps([{"role": "user", "content": prompt}]))
    as_messages = ("--quiet", "--messages", tmp_path / "m.json")
    assert succeeded("route", "--artifact", artifact, *as_messages) == named


def test_route_as_json_is_the_whole_decision(artifact):
    decision = json.loads(succeeded("route", "--artifact", artifact, "--json", "Hello"))
    assert decision["model_id"] == decision["ranking"][0]
    assert decision["cost_unit"] == "usd"
    assert set(decision["probabilities"]) == set(decision["expected_cost"])


def test_the_policy_is_chosen_on_the_command_line(artifact):
    decision = json.loads(
        succeeded("route", "--artifact", artifact, "--policy", "quality", "--json", "Hello")
    )
    assert decision["reason"] == "highest_probability"


def test_a_runtime_config_is_used_and_checked(artifact, tmp_path):
    config = tmp_path / "router.yml"
    config.write_text(
        f"artifact: {artifact}\ncandidates: [{{id: sim-small-text}}]\npolicy: quality\n"
    )
    assert "is valid" in succeeded("check-config", config)
    info = json.loads(succeeded("check-config", config, "--json"))
    assert info["candidates"] == ["sim-small-text"]
    assert succeeded("route", "--config", config, "--quiet", "Hello").strip() == "sim-small-text"


def test_what_cannot_be_served_is_said_once_something_asks_to_be_served(artifact, tmp_path):
    config = tmp_path / "router.yml"
    told = f"artifact: {artifact}\ncandidates: [{{id: sim-small-text}}]\n"
    target = "{kind: compatible, base_url: 'http://127.0.0.1:9/v1'}"
    for more in ("service: {port: 8080}\n", f"direct: [{{id: other, target: {target}}}]\n"):
        config.write_text(told + more)
        assert "no target for sim-small-text" in succeeded("check-config", config)
    config.write_text(told)
    assert json.loads(succeeded("check-config", config, "--json"))["serving"] == []


def test_inspect_shows_what_an_artifact_contains(artifact):
    shown = succeeded("inspect", artifact)
    assert "logistic" in shown
    manifest = json.loads(succeeded("inspect", artifact, "--json"))
    seen = manifest["training"]["seen"]
    assert len(seen) > 1000
    assert seen[:40] not in shown
    assert f"{len(seen):,} characters" in shown
    assert manifest["format_version"] == 3
    assert "head.safetensors" in manifest["files"]


def test_evaluate_comes_from_training(artifact, workload):
    shown = succeeded("evaluate", artifact, "--data", workload / "records.jsonl")
    assert "oracle" in shown
    assert "router" in shown


def test_version_and_help_work():
    assert "artifact format 3" in succeeded("--version")
    assert "import-artifact" in succeeded("--help")


def test_an_nn_objective_fn_block_is_converted(artifact, tmp_path):
    (tmp_path / "nat.yml").write_text(
        "functions:\n"
        "  nn_objective_fn:\n"
        "    _type: nn_objective_fn\n"
        "    model_thresholds: {sim-large-vl: 0.7}\n"
        "    model_costs: {sim-large-vl: 1.0, sim-small-vl: 0.3}\n"
        "  sfc_router_fn: {_type: sfc_router, objective_fn: nn_objective_fn}\n"
    )
    output = tmp_path / "router.yml"
    succeeded("import-config", tmp_path / "nat.yml", "--output", output, "--artifact", artifact)
    info = json.loads(succeeded("check-config", output, "--json"))
    assert info["cost_unit"] == "relative"
    assert info["thresholds"]["sim-large-vl"] == 0.7
    assert "exists" in refused(
        "import-config", tmp_path / "nat.yml", "--output", output, "--artifact", artifact
    )


def test_a_litellm_config_is_converted(artifact, tmp_path):
    (tmp_path / "proxy.yml").write_text(
        "model_list:\n"
        "  - model_name: sim-large-vl\n"
        "    litellm_params: {model: openai/x, api_base: 'http://127.0.0.1:1/v1'}\n"
        "  - model_name: other\n"
        "    litellm_params: {model: openai/y, api_base: 'http://127.0.0.1:1/v1'}\n"
        "general_settings: {master_key: sk-1}\n"
    )
    output = tmp_path / "router.yml"
    arguments = (tmp_path / "proxy.yml", "--output", output, "--artifact", artifact)
    done = call("import-config", "--from", "litellm", *arguments)
    assert done.returncode == 0, done.stderr
    assert "no counterpart: general_settings" in done.stderr
    output.unlink()
    told = json.loads(succeeded("import-config", "--from", "litellm", *arguments, "--json"))
    assert told["output"] == str(output)
    assert any("general_settings" in key for key in told["without_counterpart"])
    info = json.loads(succeeded("check-config", output, "--json"))
    assert info["candidates"] == ["sim-large-vl"]
    assert any("per process" in note for note in info["serving"])


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["route", "--artifact", "nowhere", "Hello"], "'nowhere' does not exist"),
        (["route", "--artifact", "ARTIFACT"], "Give a prompt"),
        (
            ["route", "--artifact", "ARTIFACT", "--policy", "nicest", "Hi"],
            "Unknown policy 'nicest'",
        ),
        (["route", "--artifact", "ARTIFACT", "--image", "no.png", "Hi"], "no.png"),
        (["route", "--artifact", "ARTIFACT", "--messages", "no.json"], "no.json"),
        (["route", "--config", "no.yml", "Hi"], "no.yml"),
        (["inspect", "nowhere"], "does not exist"),
        (["check-config", "no.yml"], "no.yml"),
        (["import-artifact", "nowhere", "--output", "out"], "nowhere"),
        (["evaluate", "ARTIFACT"], "--data"),
        (["rout"], "No such command 'rout'."),
        (["route", "--artefact", "x"], "No such option: --artefact"),
        (["inspect"], "Missing argument"),
        (["route", "--artifact", "ARTIFACT", "--device", "potato", "Hi"], "encoder.device"),
        (["route", "--artifact", "ARTIFACT", "--image", __file__, "Hi"], f"--image {__file__}"),
        (["route", "--artifact", "ARTIFACT", "caf\udce9"], "The prompt is not UTF-8 (byte 3)"),
    ],
)
def test_wrong_input_is_one_line_and_status_2(artifact, tmp_path, arguments, expected):
    settled = [artifact if a == "ARTIFACT" else a for a in arguments]
    message = refused(*settled, cwd=tmp_path)
    assert expected in message
    assert message.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_prompt_on_stdin_that_is_not_utf8_is_refused(artifact):
    done = call("route", "--artifact", artifact, "-", stdin=b"caf\xe9")
    assert (done.returncode, done.stderr.count(b"\n")) == (2, 1)
    assert b"not UTF-8" in done.stderr


def test_messages_nested_without_end_are_refused(artifact, tmp_path):
    (tmp_path / "deep.json").write_text("[" * 200_000)
    message = refused("route", "--artifact", artifact, "--messages", tmp_path / "deep.json")
    assert message.count("\n") == 1


def test_the_limits_on_pictures_hold_for_messages_too(artifact, workload, tmp_path):
    picture = base64.b64encode((workload / "example.png").read_bytes()).decode()
    part = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{picture}"}}
    (tmp_path / "m.json").write_text(json.dumps([{"role": "user", "content": [part]}]))
    config = tmp_path / "router.yml"
    config.write_text(f"artifact: {artifact}\nimages: {{max_bytes: 100}}\n")
    assert "100" in refused("route", "--config", config, "--messages", tmp_path / "m.json")


def test_a_converted_config_finds_its_artifact_from_where_it_lies(artifact, tmp_path):
    (tmp_path / "nat.yml").write_text(
        "functions: {f: {_type: nn_objective_fn, model_costs: {sim-large-vl: 1.0}}}\n"
    )
    (tmp_path / "made").symlink_to(artifact)
    (tmp_path / "configs").mkdir()
    arguments = ("nat.yml", "--output", "configs/router.yml", "--artifact", "made")
    succeeded("import-config", *arguments, cwd=tmp_path)
    assert "artifact: ../made" in (tmp_path / "configs" / "router.yml").read_text()


def test_names_are_printed_as_they_are(capsys):
    from router_runtime.console import err, out

    for console in (out, err):
        console.print("model [/x] [bold]y")
    assert capsys.readouterr() == ("model [/x] [bold]y\n", "model [/x] [bold]y\n")


def test_ctrl_c_while_modules_are_imported_is_no_traceback(capsys):
    from router_runtime.console import run_app

    def importing(**options):
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as stop:
        run_app(importing)
    assert stop.value.code == 130
    assert capsys.readouterr().err.startswith("interrupted")


def test_a_picture_of_2500_megapixels_is_refused_from_its_header(artifact, tmp_path):
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IEND", b"")
    (tmp_path / "bomb.png").write_bytes(bomb)
    message = refused("route", "--artifact", artifact, "--image", tmp_path / "bomb.png", "Hi")
    assert "50000" in message.replace(",", "").replace("_", "")


def test_novelty_is_shown_and_a_fallback_is_the_reason(artifact):
    strange = "Ωμέγα ξύλο ποταμός; 東京の天気は? " * 40
    shown = succeeded("route", "--artifact", artifact, strange)
    assert "novelty 1.000" in shown
    assert "novel_query_fallback" in shown
    decision = json.loads(succeeded("route", "--artifact", artifact, "--json", strange))
    assert decision["novelty"] == 1.0
    assert decision["reason"] == "novel_query_fallback"


def test_inspect_shows_the_novelty_model(artifact):
    assert "n_components" in succeeded("inspect", artifact)
    old = Path(__file__).resolve().parents[1] / "data" / "artifact-v1"
    assert "novelty unknown" in succeeded("route", "--artifact", old, "What is 17 + 25?")
