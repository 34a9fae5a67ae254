from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from router_runtime.errors import EncoderError
from router_runtime.prediction.encoders import build_encoder
from router_runtime.prediction.encoders.specs import ClipSpec, EmbeddedSpec

from .conftest import TEXTS, TOWERS, few_probes, picture, save_model

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
exporting = pytest.importorskip("router_runtime.exporting_encoders.exporting", exc_type=ImportError)
IMAGES = [picture(1), picture(2, size=(300, 200), kind="JPEG"), picture(1)]


def directions(vectors):
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_fp32_gives_what_the_source_gives(spec, source, runtime):
    encoder = build_encoder(spec, runtime=runtime())
    np.testing.assert_allclose(encoder.encode_texts(TEXTS), source.encode_texts(TEXTS), atol=1e-5)
    np.testing.assert_allclose(
        directions(encoder.encode_images(IMAGES)), directions(source.encode_images(IMAGES)),
        atol=1e-3,
    )  # fmt: skip
    assert (encoder.kind, encoder.text_dim, encoder.image_dim) == ("clip", 32, 32)


def test_the_graphs_give_what_the_source_gives_for_the_same_pixels(source, spec, runtime):
    encoder = build_encoder(spec, runtime=runtime())
    pixels = np.random.default_rng(0).normal(size=(5, 3, 32, 32)).astype(np.float32)
    torch = pytest.importorskip("torch")
    with torch.inference_mode():
        expected = source.model.encode_image(torch.from_numpy(pixels)).numpy()
    np.testing.assert_allclose(encoder.encode_pixels(pixels), expected, atol=1e-5)


def test_int8_keeps_the_cosine_that_was_asked_for(spec, source, runtime, exported):
    encoder = build_encoder(spec, runtime=runtime("int8"))
    cosines = (
        directions(encoder.encode_texts(TEXTS)) * directions(source.encode_texts(TEXTS))
    ).sum(axis=1)
    assert cosines.min() > 0.98
    variant = exported[2].variants["int8"]
    assert min(variant.text.measured.min_cosine, variant.picture.measured.min_cosine) >= 0.99
    assert variant.text.weight_bits == 7
    assert not variant.equal


def test_a_cosine_that_rounding_cannot_keep_leaves_blocks_in_fp32(spec, tmp_path):
    _, manifest = exporting.export_encoder(
        spec, tmp_path, precisions=["int8"], weight_bits=7, least_cosine=0.9999
    )
    half = manifest.variants["int8"].text
    assert half.fp32_blocks
    assert half.measured.min_cosine > 0.999


def test_the_manifest_says_what_was_measured(exported, source):
    _, folder, manifest = exported
    fp32 = manifest.variants["fp32"]
    assert fp32.equal
    assert fp32.text.measured.max_abs_difference < 1e-5
    assert manifest.source_fingerprint == source.fingerprint
    assert sorted(manifest.files) == sorted(
        path.name for path in folder.iterdir() if path.name != "encoder.json"
    )
    assert {path.suffix for path in folder.iterdir()} == {".onnx", ".bin", ".gz", ".json"}


def test_precisions_have_fingerprints_of_their_own(exported, source):
    manifest = exported[2]
    fingerprints = {manifest.fingerprint("fp32"), manifest.fingerprint("int8"), source.fingerprint}
    assert len(fingerprints) == 3
    assert manifest.stands_for("fp32") == source.fingerprint
    assert manifest.stands_for("int8") is None


def test_an_export_again_replaces_the_folder_and_leaves_nothing_beside_it(spec, tmp_path):
    first, _ = exporting.export_encoder(spec, tmp_path, precisions=["fp32"], probes=few_probes())
    (first / "left-over").write_text("x")
    second, manifest = exporting.export_encoder(
        spec, tmp_path, precisions=["int8"], probes=few_probes()
    )
    assert first == second
    assert list(tmp_path.iterdir()) == [first]
    assert not (second / "left-over").exists()
    assert list(manifest.variants) == ["int8"]


def test_an_export_that_fails_leaves_the_earlier_one(spec, tmp_path, monkeypatch):
    folder, _ = exporting.export_encoder(spec, tmp_path, precisions=["fp32"], probes=few_probes())
    before = (folder / "encoder.json").read_bytes()
    monkeypatch.setattr(exporting, "_measure", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        exporting.export_encoder(spec, tmp_path, precisions=["fp32"], probes=few_probes())
    assert (folder / "encoder.json").read_bytes() == before
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("tiny-gelu", {}),
        ("tiny-custom-text", {"custom_text": True}),
        (
            "tiny-scaled",
            {
                "vision_cfg": {**TOWERS["vision_cfg"], "ls_init_value": 0.5, "no_ln_pre": True},
                "text_cfg": {**TOWERS["text_cfg"], "ls_init_value": 0.5},
            },
        ),
    ],
)
def test_other_forms_of_open_clips_transformers_are_exported_exactly(tmp_path, name, changes):
    spec = save_model(tmp_path, name, **changes)
    _, manifest = exporting.export_encoder(
        spec, tmp_path / "out", precisions=["fp32"], probes=few_probes()
    )
    assert manifest.variants["fp32"].equal
    assert manifest.variants["fp32"].text.measured.max_abs_difference < 1e-5


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("tiny-average", {"vision_cfg": {**TOWERS["vision_cfg"], "pool_type": "avg"}}, "pool type"),
        (
            "tiny-resnet",
            {"vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 16}},
            "ModifiedResNet",
        ),
        (
            "tiny-seeing-all",
            {"custom_text": True, "text_cfg": {**TOWERS["text_cfg"], "no_causal_mask": True}},
            "cannot be exported",
        ),
    ],
)
def test_what_is_not_described_is_refused_by_name(tmp_path, name, changes, message):
    spec = save_model(tmp_path, name, **changes)
    with pytest.raises(EncoderError, match=message):
        exporting.export_encoder(spec, tmp_path / "out", precisions=["fp32"], probes=few_probes())
    assert not (tmp_path / "out").exists()


def test_other_kinds_are_refused(tmp_path):
    with pytest.raises(EncoderError, match="kind 'embedded' are not exported"):
        exporting.export_encoder(EmbeddedSpec(), tmp_path)


def test_serving_imports_no_torch(spec, exported):
    program = f"""
import json, sys
from router_runtime.config import EncoderRuntime
from router_runtime.prediction.encoders import build_encoder
from router_runtime.prediction.encoders.specs import ClipSpec
runtime = EncoderRuntime(engine="onnx", folder={str(exported[0])!r}, precision="int8")
encoder = build_encoder(ClipSpec(**json.loads({spec.model_dump_json()!r})), runtime=runtime)
encoder.encode_texts(["a"])
print(sorted({{"torch", "open_clip", "transformers", "torchvision"}} & set(sys.modules)))
"""
    found = subprocess.run(  # noqa: S603  our own interpreter and program
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert json.loads(found.stdout) == []


def test_an_encoder_of_another_spec_is_not_in_the_folder(spec, runtime):
    other = ClipSpec(**{**spec.model_dump(), "max_windows": 5})
    with pytest.raises(EncoderError, match=r"holds no export of the encoder.*max_windows 3"):
        build_encoder(other, runtime=runtime())
