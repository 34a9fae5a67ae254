"""``prediction/encoders/openvino_session`` and ``engine: openvino``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from router_runtime.artifacts import load_artifact
from router_runtime.config import EncoderRuntime
from router_runtime.errors import ArtifactIntegrityError, EncoderError, MissingDependencyError
from router_runtime.prediction.encoders import build_encoder
from router_runtime.types import Query

from .conftest import TEXTS, picture

pytest.importorskip("onnxruntime")
openvino_session = pytest.importorskip(
    "router_runtime.prediction.encoders.openvino_session", exc_type=ImportError
)
IMAGES = [picture(seed, size=(30 + seed, 40)) for seed in (1, 2, 3)]
LACKING_BF16 = "this processor has no bfloat16 instructions"
needs_bf16 = pytest.mark.skipif(not openvino_session.computes_bf16(), reason=LACKING_BF16)


@pytest.fixture
def at(exported):
    def make(precision="fp32", **changes):
        return EncoderRuntime(
            engine="openvino", folder=exported[0], precision=precision, batch_size=4, **changes
        )

    return make


@pytest.fixture
def without_bf16(monkeypatch):
    """A processor as most are."""

    class Core(openvino_session.openvino.Core):
        def get_property(self, device, name):
            if name == "OPTIMIZATION_CAPABILITIES":
                return ["FP32", "INT8"]
            return super().get_property(device, name)

    monkeypatch.setattr(openvino_session.openvino, "Core", Core)


def least_cosine(A, B):
    A, B = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (A, B))
    return float((A * B).sum(axis=1).min())


def test_fp32_gives_what_onnx_runtime_gives_and_is_the_same_encoder(spec, runtime, at):
    ours, other = (build_encoder(spec, runtime=made) for made in (at(), runtime()))
    np.testing.assert_allclose(ours.encode_texts(TEXTS), other.encode_texts(TEXTS), atol=1e-4)
    np.testing.assert_allclose(ours.encode_images(IMAGES), other.encode_images(IMAGES), atol=1e-4)
    assert (ours.fingerprint, ours.stands_for) == (other.fingerprint, other.stands_for)


def test_a_batch_gives_what_one_by_one_gives(spec, at):
    encoder = build_encoder(spec, runtime=at())
    one_by_one = np.vstack([encoder.encode_texts([text]) for text in TEXTS])
    np.testing.assert_allclose(encoder.encode_texts(TEXTS), one_by_one, atol=1e-5)
    assert encoder.encode_texts([]).shape == encoder.encode_images([]).shape == (0, 32)


@needs_bf16
def test_bf16_is_near_fp32_and_an_encoder_of_its_own(spec, at):
    rounded, exact = (build_encoder(spec, runtime=at(precision)) for precision in ("bf16", "fp32"))
    for texts_or_images, method in ((TEXTS, "encode_texts"), (IMAGES, "encode_images")):
        A, B = (getattr(encoder, method)(texts_or_images) for encoder in (rounded, exact))
        assert least_cosine(A, B) > 0.999
        assert np.abs(A - B).max() > 1e-4  # it was rounded
    assert (rounded.precision, rounded.stands_for) == ("bf16", None)
    assert rounded.fingerprint != exact.fingerprint


@needs_bf16
def test_bf16_serves_only_after_it_was_accepted(artifact, at, exported, tmp_path):
    from .test_checking import run

    with pytest.raises(ArtifactIntegrityError, match="check-encoder"):
        load_artifact(artifact).predictor(at("bf16"))
    (tmp_path / "samples.jsonl").write_text("\n".join(json.dumps(text) for text in TEXTS if text))
    done = run(
        "check-encoder", artifact, "--folder", exported[0], "--precision", "bf16",
        "--samples", tmp_path / "samples.jsonl", "--min-cosine", 0.99, "--changed", 0.5,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    (entry,) = load_artifact(artifact).feature_parts.accepted[0]
    assert (entry.precision, entry.fingerprint) == ("bf16", exported[2].fingerprint("bf16"))
    P = load_artifact(artifact).predictor(at("bf16")).predict([Query("a cat")]).P
    assert np.isfinite(P).all()
    with pytest.raises(ArtifactIntegrityError, match="check-encoder"):  # another encoder
        load_artifact(artifact).predictor(EncoderRuntime(engine="onnx", folder=exported[0],
                                                         precision="int8"))  # fmt: skip


def test_an_artifact_trained_on_bf16_is_compared_with_bf16(artifact, runtime, exported):
    from router_runtime.exporting_encoders.checking import reference_runtime

    manifest = artifact / "manifest.json"
    content = json.loads(manifest.read_text())
    content["predictor"]["encoders"][0]["fingerprint"] = exported[2].fingerprint("bf16")
    manifest.write_text(json.dumps(content))
    reference = reference_runtime(load_artifact(artifact), runtime("int8", cpus=[0]))
    assert (reference.engine, reference.precision) == ("openvino", "bf16")
    assert reference.cpus is None


def test_a_processor_without_bf16_is_named_with_the_remedy(spec, at, without_bf16):
    assert not openvino_session.computes_bf16()
    with pytest.raises(EncoderError, match=r"AVX512-BF16 or AMX.*'precision: fp32', or"):
        build_encoder(spec, runtime=at("bf16"))
    assert build_encoder(spec, runtime=at()).precision == "fp32"


def test_threads_and_cpus_are_those_of_the_settings(spec, at):
    before = os.sched_getaffinity(0)
    plain = build_encoder(spec, runtime=at())
    bound = build_encoder(spec, runtime=at(cpus=[min(before)]))
    assert os.sched_getaffinity(0) == before
    assert bound._text_graph._thread.call(os.sched_getaffinity, 0) == {min(before)}
    np.testing.assert_array_equal(bound.encode_texts(TEXTS), plain.encode_texts(TEXTS))
    two = build_encoder(spec, runtime=at(threads=2))
    for encoder, threads in ((plain, 1), (two, 2)):
        compiled = encoder._text_graph._request.get_compiled_model()
        assert compiled.get_property("INFERENCE_NUM_THREADS") == threads
        assert compiled.get_property("ENABLE_CPU_PINNING") is False
    with pytest.raises(EncoderError, match="this process may run on"):
        build_encoder(spec, runtime=at(cpus=[60_000]))


def test_threads_may_share_an_encoder(spec, at):
    encoder = build_encoder(spec, runtime=at())
    expected = [encoder.encode_texts([text]) for text in TEXTS]
    with ThreadPoolExecutor(4) as pool:
        for found, wanted in zip(
            pool.map(lambda text: encoder.encode_texts([text]), TEXTS * 5),
            expected * 5,
            strict=True,
        ):
            np.testing.assert_array_equal(found, wanted)


def test_what_is_no_graph_is_refused(tmp_path):
    (tmp_path / "text.onnx").write_bytes(b"\0" * 100)
    with pytest.raises(EncoderError, match=r"cannot run .*text\.onnx"):
        openvino_session.OpenvinoSession(tmp_path / "text.onnx", precision="fp32", threads=1)


def test_a_run_that_fails_is_an_encoder_error_and_the_next_one_works(spec, at):
    encoder = build_encoder(spec, runtime=at())
    with pytest.raises(EncoderError, match="failed to encode"):
        encoder._picture_graph.run({"elsewhere": np.zeros((1, 3, 32, 32), dtype=np.float32)})
    assert encoder.encode_images(IMAGES).shape == (3, 32)


def test_a_missing_openvino_is_answered_with_the_pip_command(spec, at, monkeypatch):
    monkeypatch.delitem(sys.modules, openvino_session.__name__)
    monkeypatch.setitem(sys.modules, "openvino", None)  # what an uninstalled module looks like
    with pytest.raises(MissingDependencyError, match=r"'openvino' .* 'model-router\[openvino\]'"):
        build_encoder(spec, runtime=at())


def test_importing_openvino_tells_nobody_and_needs_neither_onnx_runtime_nor_torch(spec, exported):
    program = f"""
import sys
from router_runtime.config import EncoderRuntime
from router_runtime.prediction.encoders import build_encoder
from router_runtime.prediction.encoders.specs import ClipSpec
spec = ClipSpec(**{spec.model_dump()!r})
runtime = EncoderRuntime(engine="openvino", folder={str(exported[0])!r})
assert build_encoder(spec, runtime=runtime).encode_texts(["a"]).shape == (1, 32)
told = {{name.partition(".")[0] for name in sys.modules}}
print(sorted(told & {{"openvino_telemetry", "onnxruntime", "torch", "onnx"}}))
print("openvino.tools.ovc" in sys.modules)
"""
    done = subprocess.run(  # noqa: S603  our own program
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    assert done.stdout.split("\n")[:2] == ["[]", "False"]
