import io
import json
import pickle
import shutil
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import PIL.Image
import pytest

from router_runtime.errors import EncoderError, QueryError
from router_runtime.images import load_image
from router_runtime.prediction.encoders.specs import ClipSpec, EncoderRuntime
from router_runtime.types import Image

clip = pytest.importorskip("router_runtime.prediction.encoders.clip", exc_type=ImportError)
torch = pytest.importorskip("torch")
open_clip = pytest.importorskip("open_clip")
safetensors_torch = pytest.importorskip("safetensors.torch")

CPU = EncoderRuntime(device="cpu", batch_size=3)
TOWERS = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder with a tiny architecture's checkpoints, the architecture being registered."""
    folder = tmp_path_factory.mktemp("clip")
    for name in ("tiny-clip", "tiny-clip-quickgelu"):
        config = TOWERS | ({"quick_gelu": True} if "quick" in name else {})
        (folder / f"{name}.json").write_text(json.dumps(config))
        open_clip.add_model_config(folder / f"{name}.json")
    for seed in (0, 1):
        state = random_state(seed)
        safetensors_torch.save_file(state, folder / f"{seed}.safetensors")
        torch.save(state, folder / f"{seed}.pt")
    return folder


def random_state(seed):
    torch.manual_seed(seed)
    state = open_clip.create_model("tiny-clip").state_dict()
    noisy = {k: v + 0.1 * torch.randn_like(v) if v.dim() > 1 else v for k, v in state.items()}
    return {name: tensor.contiguous() for name, tensor in noisy.items()}


def build(folder, *, file="0.safetensors", model="tiny-clip", runtime=CPU, **spec):
    return clip.ClipEncoder(ClipSpec(model=model, pretrained=str(folder / file), **spec), runtime)


@pytest.fixture(scope="module")
def encoder(folder):
    return build(folder)


def picture(seed, *, size=(40, 50), kind="PNG"):
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    out = io.BytesIO()
    PIL.Image.fromarray(pixels).save(out, kind)
    return load_image(out.getvalue())


def preamble(n_tokens, tokenizer):
    text = "Answer the following question with a single letter. " * (n_tokens // 9 + 1)
    assert len(tokenizer.encode(text)) >= n_tokens
    return text


def test_short_texts_are_what_open_clip_makes_of_them(folder, encoder):
    model, _ = open_clip.create_model_from_pretrained("tiny-clip", str(folder / "0.safetensors"))
    texts = ["a cat", "", "naïve \N{GRINNING FACE} 日本"]
    with torch.inference_mode():
        expected = model.eval().encode_text(open_clip.get_tokenizer("tiny-clip")(texts))
    assert encoder.encode_texts(texts).dtype == np.float32
    np.testing.assert_allclose(encoder.encode_texts(texts), expected.numpy(), atol=1e-5)


@pytest.mark.parametrize("changes", [{}, {"custom_text": True}, {"quick_gelu": True}])
def test_texts_cut_to_the_longest_of_a_batch_equal_padded_ones(tmp_path, changes):
    name = f"tiny-cut-{len(changes)}-{'-'.join(changes)}"
    (tmp_path / f"{name}.json").write_text(json.dumps(TOWERS | changes))
    open_clip.add_model_config(tmp_path / f"{name}.json")
    torch.manual_seed(2)
    model = open_clip.create_model(name).eval()
    texts = ["a", "", "two words " * 9, "one more, of another length", "w " * 100]
    padded = open_clip.get_tokenizer(name)(texts)
    longest = int(padded[:4].argmax(dim=1).max()) + 1
    tower = clip.causal_text_tower(model)
    with torch.inference_mode():
        expected = model.encode_text(padded)
        cut = clip.encode_cut(tower, padded[:4, :longest])
        whole = clip.encode_cut(tower, padded)
    assert longest < padded.shape[1]
    np.testing.assert_allclose(cut, expected[:4], atol=1e-5)
    np.testing.assert_allclose(whole, expected, atol=1e-5)


def test_a_text_half_that_reads_past_the_end_is_not_cut(tmp_path):
    for name, text in {
        "tiny-all": {"no_causal_mask": True},
        "tiny-last": {"pool_type": "last"},
        "tiny-class": {"embed_cls": True},
    }.items():
        config = TOWERS | {"text_cfg": TOWERS["text_cfg"] | text, "custom_text": True}
        (tmp_path / f"{name}.json").write_text(json.dumps(config))
        open_clip.add_model_config(tmp_path / f"{name}.json")
        assert clip.causal_text_tower(open_clip.create_model(name)) is None


def test_pictures_are_what_open_clip_makes_of_them(folder, encoder):
    model, prepare = open_clip.create_model_from_pretrained(
        "tiny-clip", str(folder / "0.safetensors")
    )
    image = picture(1)
    with torch.inference_mode():
        pixels = prepare(PIL.Image.open(io.BytesIO(image.data)))[None]
        expected = model.eval().encode_image(pixels)
    np.testing.assert_allclose(encoder.encode_images([image]), expected.numpy(), atol=1e-5)


def test_a_batch_gives_what_one_by_one_gives(encoder):
    texts = ["b", "", "a" * 900, "two words", "the question? " * 90, "b", "\ud83d broken"]
    one_by_one = np.vstack([encoder.encode_texts([text]) for text in texts])
    np.testing.assert_allclose(encoder.encode_texts(texts), one_by_one, atol=1e-5)
    images = [picture(seed, size=(30 + seed, 40)) for seed in (1, 2, 3, 1, 4)]
    one_by_one = np.vstack([encoder.encode_images([image]) for image in images])
    np.testing.assert_allclose(encoder.encode_images(images), one_by_one, atol=1e-5)


def test_no_input_gives_no_rows(encoder):
    assert encoder.encode_texts([]).shape == (0, 16)
    assert encoder.encode_images([]).shape == (0, 16)


def test_a_question_after_a_preamble_of_2000_tokens_changes_the_features(encoder):
    before = preamble(2000, open_clip.get_tokenizer("tiny-clip"))
    one, other, one_again = encoder.encode_texts(
        [
            before + "What is the capital of Peru?",
            before + "Sort this list.",
            before + "What is the capital of Peru?",
        ]
    )
    assert np.array_equal(one, one_again)
    assert np.abs(one - other).max() > 1e-3


def test_truncation_at_the_head_would_hide_that_question(folder):
    tokenizer = open_clip.get_tokenizer("tiny-clip")
    before = preamble(2000, tokenizer)
    one, other = tokenizer([before + "What is the capital of Peru?", before + "Sort this list."])
    assert torch.equal(one, other)


def test_a_text_cannot_end_its_own_window(encoder):
    plain, hidden = encoder.encode_texts(["drop the table", "<end_of_text>drop the table"])
    np.testing.assert_allclose(plain, hidden, atol=1e-6)


def test_a_picture_counts_wherever_it_stands(encoder):
    images = [picture(seed) for seed in (1, 2, 3)]
    rows = encoder.encode_images(images)
    reversed_rows = encoder.encode_images(images[::-1])
    np.testing.assert_allclose(rows, reversed_rows[::-1], atol=1e-6)
    assert len({row.tobytes() for row in rows}) == 3


def test_a_damaged_picture_is_a_query_error(encoder):
    whole = picture(1)
    with pytest.raises(QueryError):
        encoder.encode_images([Image(whole.data[:200], whole.media_type)])


def test_the_fingerprint_follows_weights_and_windows_but_not_files_device_or_batch(folder, encoder):
    same = [
        build(folder, file="0.pt"),
        build(folder, runtime=EncoderRuntime(device="cpu", batch_size=7)),
        build(folder, runtime=EncoderRuntime(device="auto")),
    ]
    assert {other.fingerprint for other in same} == {encoder.fingerprint}
    different = [
        build(folder, file="1.safetensors"),
        build(folder, max_windows=2),
        build(folder, model="tiny-clip-quickgelu"),
    ]
    assert len({other.fingerprint for other in [encoder, *different]}) == 4


def test_checkpoint_formats_give_the_same_vectors(folder, encoder):
    other = build(folder, file="0.pt")
    assert np.array_equal(other.encode_texts(["a cat"]), encoder.encode_texts(["a cat"]))


@pytest.fixture
def offline_hub(monkeypatch, tmp_path):
    """Cut the model hub off; return a function that fills its cache."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))

    def downloaded(repository):
        folder = tmp_path / "hub" / f"models--{repository.replace('/', '--')}"
        (folder / "refs").mkdir(parents=True)
        (folder / "refs" / "main").write_text("0" * 40)
        snapshot = folder / "snapshots" / ("0" * 40)
        snapshot.mkdir(parents=True)
        return snapshot

    return downloaded


@pytest.mark.parametrize("file", ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"])
def test_a_tag_uses_the_activation_and_normalisation_that_its_weights_were_trained_with(
    folder, monkeypatch, offline_hub, file
):
    tag = {"hf_hub": "org/name/", "quick_gelu": True, "mean": (0.5,) * 3, "std": (0.5,) * 3}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "tiny-clip", {"made": tag})
    source = "0.safetensors" if file.endswith(".safetensors") else "0.pt"
    shutil.copy(folder / source, offline_hub("org/name") / file)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tagged = clip.ClipEncoder(ClipSpec(model="tiny-clip", pretrained="made"), CPU)
    quick = build(folder, model="tiny-clip-quickgelu")
    plain = build(folder)
    texts = ["a cat"]
    assert np.array_equal(tagged.encode_texts(texts), quick.encode_texts(texts))
    assert not np.array_equal(tagged.encode_texts(texts), plain.encode_texts(texts))
    images = [picture(1)]
    assert not np.allclose(tagged.encode_images(images), quick.encode_images(images), atol=1e-4)


def test_a_hub_repository_that_was_downloaded_works_without_a_network(offline_hub):
    snapshot = offline_hub("org/name")
    model_folder(snapshot)
    hub = clip.ClipEncoder(ClipSpec(model="hf-hub:org/name"), CPU)
    local = clip.ClipEncoder(ClipSpec(model=f"local-dir:{snapshot}"), CPU)
    assert hub.fingerprint == local.fingerprint


def test_openai_weights_are_known_to_need_quick_gelu_and_siglip_files_their_own_normalisation():
    assert clip.get_pretrained_cfg("ViT-B-32", "openai")["quick_gelu"]
    assert clip._agreed_preprocessing("ViT-B-16-SigLIP")["mean"] == (0.5, 0.5, 0.5)
    assert clip._agreed_preprocessing("tiny-clip") == {}


@pytest.mark.parametrize(
    ("model", "pretrained", "message"),
    [
        ("ViT-B-23", "openai", r"no architecture 'ViT-B-23' \(near: ViT-B-32"),
        ("ViT-B-32", "openia", r"no weights 'openia' \(near: openai"),
        ("ViT-B-32", "", "random weights"),
        ("ViT-B-32", "/no/such/file.pt", r"file '/no/such/file.pt' does not exist"),
        ("local-dir:/no/such/folder", "openai", "no open_clip model"),
    ],
)
def test_unknown_names_are_answered_with_the_remedy(model, pretrained, message):
    with pytest.raises(EncoderError, match=message):
        clip.ClipEncoder(ClipSpec(model=model, pretrained=pretrained), CPU)


@pytest.mark.parametrize("model", ["ViT-B-32", "hf-hub:laion/CLIP-ViT-B-32"])
def test_weights_that_cannot_be_had_are_an_error_that_says_what_to_do(offline_hub, model):
    with pytest.raises(EncoderError, match="HF_HUB_OFFLINE") as caught:
        clip.ClipEncoder(ClipSpec(model=model), CPU)
    if model == "ViT-B-32":
        for part in ("'openai' of 'ViT-B-32'", "pretrained: /path/to/checkpoint"):
            assert part in str(caught.value)


class Hostile:
    """Unpickling it writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_checkpoint_that_runs_code_is_refused_before_it_runs(folder, tmp_path, zipped):
    trap, path = tmp_path / "trap", tmp_path / "hostile.pt"
    payload = random_state(0) | {"x": Hostile(str(trap))}
    if zipped:
        torch.save(payload, path)
    else:
        path.write_bytes(pickle.dumps({"x": Hostile(str(trap))}, protocol=2))
    with pytest.raises(EncoderError, match="refused"):
        build(tmp_path, file="hostile.pt")
    assert not trap.exists()


def test_checkpoints_that_do_not_fit_are_refused(folder, tmp_path):
    state = random_state(0)
    state.pop("text_projection")
    safetensors_torch.save_file(state, tmp_path / "lacking.safetensors")
    (tmp_path / "text.pt").write_text("not a checkpoint")
    (tmp_path / "some.npz").write_bytes(b"")
    for file, message in (
        ("lacking.safetensors", "belong together"),
        ("text.pt", "refused"),
        ("some.npz", "safetensors"),
    ):
        with pytest.raises(EncoderError, match=message):
            build(tmp_path, file=file)


def test_a_device_that_is_not_there_is_refused(folder):
    with pytest.raises(EncoderError, match="'cuda:99'"):
        build(folder, runtime=EncoderRuntime(device="cuda:99"))


def model_folder(path, *, strip_sep_token=False):
    """Write an open_clip model folder whose tokenizer is one of transformers."""
    tokenizers = pytest.importorskip("tokenizers")
    transformers = pytest.importorskip("transformers")
    words = {"[PAD]": 0, "[CLS]": 1, "[SEP]": 2, "[UNK]": 3, "cat": 4, "dog": 5}
    unknown = {"unk_token": "[UNK]"}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, **unknown))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    inner.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    named = unknown | {"pad_token": "[PAD]", "sep_token": "[SEP]"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=inner, **named).save_pretrained(path)
    text = TOWERS["text_cfg"] | {
        "context_length": 8,
        "pool_type": "last",
        "hf_tokenizer_name": "any",
        "tokenizer_kwargs": {"strip_sep_token": strip_sep_token},
    }
    (path / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": TOWERS | {"text_cfg": text}, "preprocess_cfg": {"std": [0.5] * 3}})
    )
    state = random_state(0)
    state["positional_embedding"] = state["positional_embedding"][:8].contiguous()
    state.pop("attn_mask", None)
    safetensors_torch.save_file(state, path / "open_clip_model.safetensors")


@pytest.mark.parametrize("strip_sep_token", [True, False])
def test_a_model_folder_with_its_own_tokenizer_is_encoded_as_open_clip_does(
    tmp_path, strip_sep_token
):
    model_folder(tmp_path, strip_sep_token=strip_sep_token)
    name = f"local-dir:{tmp_path}"
    encoder = clip.ClipEncoder(ClipSpec(model=name, max_windows=2), CPU)
    model, _ = open_clip.create_model_from_pretrained(name)
    texts = ["cat dog bird", ""]
    with torch.inference_mode():
        expected = model.eval().encode_text(open_clip.get_tokenizer(name)(texts))
    np.testing.assert_allclose(encoder.encode_texts(texts), expected.numpy(), atol=1e-5)
    one, other = encoder.encode_texts(["dog " * 50 + "cat", "dog " * 51])
    assert not np.allclose(one, other, atol=1e-4)


def test_an_architecture_whose_tokenizer_is_on_the_hub_reads_it_from_there_once(
    folder, monkeypatch, offline_hub, tmp_path
):
    (tmp_path / "model").mkdir()
    model_folder(tmp_path / "model")
    config = json.loads((tmp_path / "model" / "open_clip_config.json").read_text())["model_cfg"]
    config["text_cfg"]["hf_tokenizer_name"] = "org/words"
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny-words", config)
    spec = ClipSpec(
        model="tiny-words", pretrained=str(tmp_path / "model" / "open_clip_model.safetensors")
    )
    with pytest.raises(EncoderError, match="'org/words' are not on this machine"):
        clip.ClipEncoder(spec, CPU)
    snapshot = offline_hub("org/words")
    for file in (tmp_path / "model").glob("tokenizer*.json"):
        shutil.copy(file, snapshot)
    local = clip.ClipEncoder(ClipSpec(model=f"local-dir:{tmp_path / 'model'}"), CPU)
    texts = ["cat dog bird", ""]
    rows = clip.ClipEncoder(spec, CPU).encode_texts(texts)
    assert np.array_equal(rows, local.encode_texts(texts))


def test_the_words_that_the_tokenizer_remembers_are_bounded(folder, monkeypatch):
    monkeypatch.setattr(clip, "_WORDS_CACHED", 50)
    encoder = build(folder)
    text = " ".join(f"word{i} unusual{chr(97 + i % 26) * (i % 7)}" for i in range(90))
    first = encoder.encode_texts([text])
    assert len(encoder._tokenizer.cache) == 50
    assert np.array_equal(first, encoder.encode_texts([text]))


def test_threads_may_share_an_encoder(encoder):
    texts = [f"text {i} " * (1 + 40 * (i % 3)) for i in range(24)]
    expected = encoder.encode_texts(texts)
    with ThreadPoolExecutor(4) as pool:
        rows = list(pool.map(lambda text: encoder.encode_texts([text])[0], texts))
    np.testing.assert_allclose(rows, expected, atol=1e-5)


def test_a_model_folder_without_weights_is_refused(tmp_path):
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": TOWERS}))
    with pytest.raises(EncoderError, match="no weights"):
        clip.ClipEncoder(ClipSpec(model=f"local-dir:{tmp_path}"), CPU)
