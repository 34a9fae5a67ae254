from __future__ import annotations

import base64
import json
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from router_runtime.artifacts import load_artifact, rewrite_predictor
from router_runtime.cli_encoders import register
from router_runtime.config import EncoderRuntime, RuntimeConfig
from router_runtime.console import EXIT_FOUND
from router_runtime.errors import ArtifactError, ArtifactIntegrityError, ConfigError, DataError
from router_runtime.model_router import ModelRouter
from router_runtime.types import Query

from .conftest import TEXTS, picture

pytest.importorskip("onnxruntime")
checking = pytest.importorskip("router_runtime.exporting_encoders.checking", exc_type=ImportError)
samples_module = pytest.importorskip(
    "router_runtime.exporting_encoders.samples", exc_type=ImportError
)
OLD = Path(__file__).parents[2] / "data" / "artifact-v2"
LAX = checking.Bounds(min_cosine=0.9, mean_dp=0.1, changed=0.5)
QUERIES = [Query(text) for text in TEXTS if text] + [Query("what is it?", (picture(7),))]


def run(*arguments):
    app = typer.Typer()
    register(app)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_fp32_that_proved_equal_serves_an_artifact_of_torch(artifact, runtime):
    router = ModelRouter.from_config(RuntimeConfig(artifact=artifact, encoder=runtime()))
    torch = ModelRouter.from_config(
        RuntimeConfig(artifact=artifact, encoder=EncoderRuntime(device="cpu"))
    )
    np.testing.assert_allclose(
        router.probabilities(QUERIES), torch.probabilities(QUERIES), atol=1e-3
    )


def test_int8_serves_only_after_it_was_accepted(artifact, runtime):
    with pytest.raises(ArtifactIntegrityError, match="check-encoder"):
        load_artifact(artifact).predictor(runtime("int8"))
    found = checking.compare(artifact, QUERIES, runtime("int8"), bounds=LAX)
    assert found.failures == []
    before = load_artifact(artifact)
    artifact_id = checking.record(artifact, found)
    after = load_artifact(artifact)
    assert after.artifact_id == artifact_id != before.artifact_id
    (entry,) = after.feature_parts.accepted[0]
    assert (entry.precision, entry.samples) == ("int8", len(QUERIES))
    assert entry.figures["mean_dp"] == found.mean_dp
    after.predictor(runtime("int8"))
    assert sorted(path.name for path in artifact.iterdir()) == [
        "README.md", "head.safetensors", "manifest.json",
    ]  # fmt: skip


def test_accepting_again_keeps_one_entry_per_fingerprint(artifact, runtime):
    for _ in range(2):
        checking.record(artifact, checking.compare(artifact, QUERIES, runtime("int8"), bounds=LAX))
    assert len(load_artifact(artifact).feature_parts.accepted[0]) == 1


def test_an_artifact_that_was_replaced_meanwhile_is_not_rewritten(artifact):
    loaded = load_artifact(artifact)
    manifest = artifact / "manifest.json"
    changed = json.loads(manifest.read_text()) | {"created_by": "somebody else"}
    manifest.write_text(json.dumps(changed))
    with pytest.raises(ArtifactError, match="replaced meanwhile"):
        rewrite_predictor(loaded, artifact)
    assert json.loads(manifest.read_text()) == changed


def test_rewriting_what_an_artifact_says_changes_no_other_byte(artifact):
    loaded = load_artifact(artifact)
    before = {path.name: path.read_bytes() for path in artifact.iterdir()}
    assert rewrite_predictor(loaded, artifact).artifact_id == loaded.artifact_id
    assert {path.name: path.read_bytes() for path in artifact.iterdir()} == before


def test_the_figures_are_those_of_the_two_encoders(artifact, runtime, source, spec):
    from router_runtime.prediction.encoders import build_encoder

    found = checking.compare(artifact, QUERIES, runtime("int8"), bounds=LAX)
    texts = [query.text for query in QUERIES]
    a, b = (
        vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        for vectors in (
            source.encode_texts(texts),
            build_encoder(spec, runtime=runtime("int8")).encode_texts(texts),
        )
    )
    text, image = found.halves
    assert (text.half, text.samples, image.half, image.samples) == ("text", 6, "picture", 1)
    assert text.min_cosine == pytest.approx(float((a * b).sum(axis=1).min()), abs=1e-5)
    assert 0 < found.mean_dp < found.max_dp
    low, high = found.mean_dp_interval
    assert low <= found.mean_dp <= high


def test_an_artifact_trained_on_an_export_is_compared_with_that_export(artifact, runtime, exported):
    fp32 = exported[2].fingerprint("fp32")
    manifest = artifact / "manifest.json"
    content = json.loads(manifest.read_text())
    content["predictor"]["encoders"][0]["fingerprint"] = fp32
    manifest.write_text(json.dumps(content))
    reference = checking.reference_runtime(load_artifact(artifact), runtime("int8"))
    assert (reference.engine, reference.precision) == ("onnx", "fp32")
    assert checking.compare(artifact, QUERIES, runtime("int8"), bounds=LAX).failures == []


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ({"min_cosine": 0.9999999}, "least cosine of clip text"),
        ({"mean_dp": 0.0}, r"mean \|dP\|"),
        ({"changed": 0.01}, "381 samples are enough"),
    ],
)
def test_a_bound_that_does_not_hold_is_named_and_nothing_is_recorded(
    artifact, runtime, bounds, message
):
    wanted = {"min_cosine": 0.9, "mean_dp": 0.1, "changed": 0.5} | bounds
    found = checking.compare(artifact, QUERIES, runtime("int8"), bounds=checking.Bounds(**wanted))
    with pytest.raises(ConfigError, match=message):
        checking.record(artifact, found)
    assert load_artifact(artifact).feature_parts.accepted == ((),)


def test_an_artifact_without_an_exported_encoder_has_nothing_to_check(runtime):
    with pytest.raises(ConfigError, match="no encoder that can be exported"):
        checking.compare(OLD, [Query("a")], runtime())


def test_samples_are_texts_messages_or_texts_with_pictures(tmp_path):
    (tmp_path / "p.png").write_bytes(picture(3).data)
    uri = "data:image/png;base64," + base64.b64encode(picture(4).data).decode()
    lines = [
        "plain",
        {"messages": [{"role": "user", "content": "asked"}]},
        {"text": "both", "images": ["p.png", uri]},
    ]
    file = tmp_path / "samples.jsonl"
    file.write_text("\n\n".join(map(json.dumps, lines)))
    found = samples_module.read_samples(file)
    assert [query.text for query in found] == ["plain", "asked", "both"]
    assert [len(query.images) for query in found] == [0, 0, 2]
    probes = samples_module.probes_of([*found, *found])
    assert (len(probes.texts), len(probes.images)) == (3, 2)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "hold no sample"),
        ("{", "line 1"),
        ('"a"\n{"prompt": 1}', "line 2: write a text"),
        ('{"text": "a", "image": "b"}', "unknown key 'image'"),
        ('{"text": "a", "images": ["nowhere.png"]}', "line 1"),
    ],
)
def test_a_bad_line_of_samples_is_named(tmp_path, content, message):
    (tmp_path / "s.jsonl").write_text(content)
    with pytest.raises(DataError, match=message):
        samples_module.read_samples(tmp_path / "s.jsonl")


def test_the_wilson_interval_is_the_textbooks():
    low, high = checking.wilson(10, 100)
    assert (round(low, 4), round(high, 4)) == (0.0552, 0.1744)
    n = checking.samples_needed(0.05)
    assert n == 73
    assert checking.wilson(0, n)[1] <= 0.05 < checking.wilson(0, n - 1)[1]


def test_the_commands_export_check_and_accept(artifact, tmp_path):
    pytest.importorskip("onnx")
    made = run("export-encoder", artifact, "--output", tmp_path / "out", "--weight-bits", 7)
    assert made.exit_code == 0, made.output
    assert "engine: onnx" in made.output
    (tmp_path / "s.jsonl").write_text("\n".join(json.dumps(q.text) for q in QUERIES))
    options = ["--folder", tmp_path / "out", "--samples", tmp_path / "s.jsonl", "--changed", 0.5]
    refused = run("check-encoder", artifact, *options, "--min-cosine", 0.9999999)
    assert refused.exit_code == EXIT_FOUND
    assert "not accepted" in refused.output
    assert load_artifact(artifact).feature_parts.accepted == ((),)
    dry = run("check-encoder", artifact, *options, "--min-cosine", 0.9, "--no-record", "--json")
    assert json.loads(dry.stdout)["samples"] == len(QUERIES)
    assert load_artifact(artifact).feature_parts.accepted == ((),)
    accepted = run("check-encoder", artifact, *options, "--min-cosine", 0.9)
    assert accepted.exit_code == 0, accepted.output
    assert "Accepted" in accepted.output
    assert len(load_artifact(artifact).feature_parts.accepted[0]) == 1


def test_export_takes_a_yaml_file_and_refuses_what_is_none(spec, tmp_path):
    pytest.importorskip("onnx")
    (tmp_path / "encoder.yml").write_text(f"encoder: {spec.model_dump_json()}\n")
    out = tmp_path / "out"
    fp32 = ("--precision", "fp32", "--json")
    made = run("export-encoder", tmp_path / "encoder.yml", "--output", out, *fp32)
    assert made.exit_code == 0, made.output
    (told,) = json.loads(made.stdout)["encoders"]
    assert Path(told["folder"]).parent == out and list(told["variants"]) == ["fp32"]
    for wrong in (tmp_path / "nothing.yml", "no-such-kind"):
        assert isinstance(run("export-encoder", wrong, "--output", out).exception, ConfigError)
    assert isinstance(run("check-encoder", "a", "--samples", "b").exception, ConfigError)
