import io
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import PIL.Image
import pytest

from router_runtime.errors import EncoderError
from router_runtime.images import load_image
from router_runtime.prediction.encoders.specs import EncoderRuntime, HuggingFaceSpec

huggingface = pytest.importorskip(
    "router_runtime.prediction.encoders.huggingface", exc_type=ImportError
)
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

making = pytest.importorskip("encoder_parts.making", exc_type=ImportError)

CPU = EncoderRuntime(device="cpu", batch_size=3)


@pytest.fixture(scope="module", params=["clip", "siglip", "dinov2", "dinov2_with_registers"])
def made(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    model = making.save(folder, request.param)
    return request.param, folder, model, build(folder)


def build(folder, *, runtime=CPU, **spec):
    return huggingface.HuggingFaceEncoder(HuggingFaceSpec(model=str(folder), **spec), runtime)


def picture(seed, *, size=(40, 50)):
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    out = io.BytesIO()
    PIL.Image.fromarray(pixels).save(out, "PNG")
    return load_image(out.getvalue())


def test_short_texts_are_what_transformers_makes_of_them(made):
    kind, folder, model, encoder = made
    texts = ["the quick fox", "", "naïve \N{GRINNING FACE} 日本"[:7]]
    if encoder.text_dim == 0:
        assert kind.startswith("dinov2")
        assert encoder.encode_texts(texts).shape == (3, 0)
        return
    words = transformers.AutoTokenizer.from_pretrained(folder)
    inputs = words(texts, padding="max_length", truncation=True, return_tensors="pt")
    with torch.inference_mode():
        expected = model.get_text_features(**inputs)
    expected = getattr(expected, "pooler_output", expected).numpy()
    np.testing.assert_allclose(encoder.encode_texts(texts), expected, atol=1e-5)


def test_pictures_are_what_transformers_makes_of_them(made):
    kind, folder, model, encoder = made
    processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    image = picture(1)
    inputs = processor(images=[PIL.Image.open(io.BytesIO(image.data))], return_tensors="pt")
    with torch.inference_mode():
        if kind.startswith("dinov2"):
            expected = model(**inputs).last_hidden_state[:, 0]
        else:
            expected = model.get_image_features(**inputs)
            expected = getattr(expected, "pooler_output", expected)
    np.testing.assert_allclose(encoder.encode_images([image]), expected.numpy(), atol=1e-5)


def test_a_batch_gives_what_one_by_one_gives(made):
    *_, encoder = made
    texts = ["b", "", "two words", "the question? " * 30, "b", "\ud83d broken"]
    one_by_one = np.vstack([encoder.encode_texts([text]) for text in texts])
    np.testing.assert_allclose(encoder.encode_texts(texts), one_by_one, atol=1e-5)
    images = [picture(seed, size=(30 + seed, 40)) for seed in (1, 2, 3, 1, 4)]
    rows = encoder.encode_images(images)
    one_by_one = np.vstack([encoder.encode_images([image]) for image in images])
    np.testing.assert_allclose(rows, one_by_one, atol=1e-5)
    np.testing.assert_allclose(encoder.encode_images(images[::-1]), rows[::-1], atol=1e-5)
    assert len({row.tobytes() for row in rows}) == 4
    assert encoder.encode_texts([]).shape == (0, encoder.text_dim)
    assert encoder.encode_images([]).shape == (0, encoder.image_dim)


def test_a_question_after_a_preamble_of_2000_tokens_changes_the_features(made):
    _, folder, _, encoder = made
    if not encoder.text_dim:
        return
    before = "the quick brown fox jumps over the lazy dog. " * 300
    words = transformers.AutoTokenizer.from_pretrained(folder)
    assert len(words(before)["input_ids"]) > 2000
    one, other = encoder.encode_texts([before + "what is the capital?", before + "jumps the dog?"])
    assert np.abs(one - other).max() > 1e-3


def test_a_text_cannot_end_its_own_window(made):
    *_, encoder = made
    plain, hidden = encoder.encode_texts(["the lazy dog", "<|endoftext|>the lazy dog"])
    np.testing.assert_allclose(plain, hidden, atol=1e-6)


def test_threads_may_share_an_encoder(made):
    *_, encoder = made
    texts = [f"text {i} " * (1 + 40 * (i % 3)) for i in range(24)]
    expected = encoder.encode_texts(texts)
    with ThreadPoolExecutor(4) as pool:
        rows = list(pool.map(lambda text: encoder.encode_texts([text])[0], texts))
    np.testing.assert_allclose(rows, expected, atol=1e-5)


def test_the_fingerprint_follows_weights_and_windows_but_not_place_or_batch(made, tmp_path):
    kind, _, _, encoder = made
    making.save(tmp_path / "same", kind)
    making.save(tmp_path / "other", kind, seed=1)
    same = build(tmp_path / "same", runtime=EncoderRuntime(batch_size=9))
    assert same.fingerprint == encoder.fingerprint
    assert build(tmp_path / "other").fingerprint != encoder.fingerprint
    if encoder.text_dim:
        assert build(tmp_path / "same", max_windows=2).fingerprint != encoder.fingerprint
    (tmp_path / "same" / "onnx").mkdir()
    (tmp_path / "same" / "onnx" / "config.json").write_text("{}")
    (tmp_path / "same" / "README.md").write_text("about")
    assert build(tmp_path / "same").fingerprint == encoder.fingerprint


def test_a_checkpoint_that_lacks_weights_is_refused_instead_of_filled_with_random_ones(tmp_path):
    files = pytest.importorskip("safetensors.torch")
    making.save(tmp_path, "clip")
    state = files.load_file(tmp_path / "model.safetensors")
    state.pop("visual_projection.weight")
    files.save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(EncoderError, match=r"lack 1 tensors .* 'visual_projection.weight'"):
        build(tmp_path)


def test_pickled_weights_are_not_read(tmp_path):
    model = making.save(tmp_path, "dinov2")
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(EncoderError, match="safetensors"):
        build(tmp_path)


def test_code_that_comes_with_a_model_is_not_run(tmp_path):
    (tmp_path / "evil.py").write_text("raise SystemExit('ran')\n")
    (tmp_path / "config.json").write_text(
        '{"model_type": "evil", "auto_map": {"AutoConfig": "evil.C", "AutoModel": "evil.M"}}'
    )
    with pytest.raises(EncoderError, match="code of its own"):
        build(tmp_path)


def test_a_model_of_text_alone_is_refused(tmp_path):
    config = transformers.BertConfig(**making.TOWER, vocab_size=50)
    transformers.BertModel(config).save_pretrained(tmp_path)
    making.save(tmp_path / "processor", "dinov2")
    (tmp_path / "processor" / "preprocessor_config.json").rename(
        tmp_path / "preprocessor_config.json"
    )
    with pytest.raises(EncoderError, match=r"is a bert model.*'sentence'"):
        build(tmp_path)


def test_a_model_without_a_processor_is_refused(tmp_path):
    making.save(tmp_path, "dinov2")
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(EncoderError, match="complete model"):
        build(tmp_path)
