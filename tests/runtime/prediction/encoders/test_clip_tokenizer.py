from __future__ import annotations

import gzip
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from router_runtime.errors import EncoderError
from router_runtime.prediction.encoders.windows import huggingface_windows

pytest.importorskip("router_runtime.weights.torch_setup")
open_clip = pytest.importorskip("open_clip")
ours = pytest.importorskip("router_runtime.prediction.encoders.clip_tokenizer")

ClipTokenizer, JsonTokenizer = ours.ClipTokenizer, ours.JsonTokenizer
MERGES = Path(open_clip.__file__).parent / ours.MERGES_FILE
REFERENCE = open_clip.get_tokenizer("ViT-B-32")
OURS = ClipTokenizer.from_merges(MERGES)

PIECES = [
    *(
        "'s",
        "'LL",
        "don't",
        "'\u017f",
        "1,200.50",
        "\uff11\uff12",
        "½",
        "x²",
        "a_b",
        "...",
        "!!!?",
        "--",
    ),
    *("<start_of_text>", "<END_OF_TEXT>", "<|endoftext|>", "</w>", "a</w>"),
    *("&amp;lt;", "&#1;", "&#x1c;", "&nbsp;", "&", "& ", "&&", "&amp", "&copy", "&notit;", "&\r"),
    *("â€™", "Ã©", "ï»¿", "ﬁ", "\x1b[31m", "\x00", "\x07", "\x1c", "\x7f", "\x85", "\xa0"),
    *("\u200b", "\u200d", "\ufe0f", "\u2028", "\r\n", "\t", "  ", "\ufeff", "\ufffd", "\U000e0001"),
    *(
        "ß",
        "ẞ",
        "İ",
        "\u0131",
        "K",
        "Å",
        "é",
        "e\u0301",
        "日本語",
        "नमस्ते",
        "مرحبا",
        "한국어",
        "\uff46\uff55",
    ),
    *("\N{GRINNING FACE}", "👩‍👩‍👧‍👦", "🇩🇪", "👍🏽", "a" * 40, "supercalifragilistic", "Œuvre"),
]
TEXTS = st.lists(
    st.one_of(
        st.sampled_from(PIECES),
        st.text(st.characters(exclude_categories=["Cs"]), max_size=6),
        st.text(st.characters(max_codepoint=127), max_size=12),
        st.sampled_from(["the", " river ", "Brings", " 3 ", "CATS,"]),
    ),
    max_size=12,
).map("".join)


@settings(deadline=None, max_examples=600)
@given(TEXTS)
@example("")
@example("   \n ")
@example("A photo of 3 CATS, naïve \N{GRINNING FACE}")
def test_tokens_are_those_of_open_clip(text):
    assert OURS.tokenize(text) == REFERENCE.encode(text)
    padded = REFERENCE(text)[0].tolist()
    cut = OURS.encode(text, length=77)
    assert cut == padded[: len(cut)]
    assert not any(padded[len(cut) :])


@settings(deadline=None, max_examples=150)
@given(text=TEXTS, kind=st.sampled_from(["lower", "whitespace", "canonicalize"]))
def test_every_cleaning_is_that_of_open_clip(text, kind):
    assert ours.clean(text, kind) == open_clip.tokenizer.get_clean_fn(kind)(text)


@pytest.mark.parametrize(
    "text",
    [
        "Erkläre, wie der Fluß strömt 😀",
        "Объясните, как река приносит воду\nв город",
        "请解释河流\uff0c为什么\uff1f",
        "It\u2019s the \u201cbest\u201d river \u2014 isn\u2019t it\u2026",
    ],
)
def test_text_in_which_ftfy_changes_at_most_quotes_and_widths_goes_past_it(text, monkeypatch):
    expected = open_clip.tokenizer.get_clean_fn("lower")(text)
    monkeypatch.setattr(ours.ftfy, "fix_text", lambda _: pytest.fail("asked ftfy"))
    assert ours.clean(text, "lower") == expected


@settings(deadline=None, max_examples=400)
@given(
    st.lists(
        st.sampled_from("ÃÂâà€™œŒ√≈вЂГРС°\u201a\u2019\u301c\uff06\uff76\uff9e\u3099\nx &;<amp"),
        max_size=9,
    )
)
@example(list("vit\u0301e"))
@example(["\uff06", "l", "t", ";"])
def test_wrongly_decoded_text_is_mended_as_by_ftfy(pieces):
    text = "".join(pieces)
    assert ours._mended(text) == ours.ftfy.fix_text(text)


@pytest.mark.parametrize("kind", ["whitespace", "canonicalize"])
def test_other_cleanings_give_open_clips_tokens(kind):
    reference = open_clip.SimpleTokenizer(str(MERGES), clean=kind)
    ours = ClipTokenizer.from_merges(MERGES, cleaning=kind)
    for text in ("It'S a_Test, isn't it? ÉTÉ &amp; 42 " + piece for piece in PIECES):
        assert ours.tokenize(text) == reference.encode(text)


def test_every_character_of_the_basic_planes_gives_open_clips_tokens():
    characters = [chr(i) for i in range(0x20000) if not 0xD800 <= i < 0xE000]
    step = 64
    for start in range(0, len(characters), step):
        text = " a".join(characters[start : start + step])
        assert OURS.tokenize(text) == REFERENCE.encode(text)


@pytest.mark.parametrize("length", [2, 3, 7, 8, 9, 77])
def test_a_long_text_is_cut_as_open_clip_cuts_it(length):
    text = "what does the river bring internationalisation \N{GRINNING FACE}" * 20
    assert OURS.encode(text, length=length) == REFERENCE(text, length)[0].tolist()


def test_without_a_length_nothing_is_cut_and_start_and_end_are_there():
    ids = OURS.encode("word " * 200)
    assert (ids[0], ids[-1], len(ids)) == (OURS.start, OURS.end, 202)
    assert (OURS.start, OURS.end, OURS.size) == (49406, 49407, 49408)


def test_the_plain_text_of_the_merges_serves_as_well_as_the_compressed_file():
    plain = gzip.decompress(MERGES.read_bytes())
    assert ClipTokenizer.from_merges(plain).encode("naïve") == OURS.encode("naïve")


def test_windows_are_those_of_open_clips_tokenizer():
    text = "the beginning " * 70 + "the end"
    windows = OURS.windows(length=77, max_windows=3).cut(text)
    assert [len(window) for window in windows] == [77, 77]
    assert list(windows[0]) == REFERENCE(text)[0].tolist()


@pytest.mark.parametrize("unit", ["a", "é", "word ", "x1 ", "\N{GRINNING FACE}", "&lt;"])
def test_a_huge_text_takes_little_memory_and_leaves_none_behind(unit):
    tokenizer = ClipTokenizer.from_merges(MERGES)
    text = unit * (300_000 // len(unit))
    tracemalloc.start()
    assert len(tokenizer.encode(text)) > 10
    left, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 60 * 2**20
    assert left < 2**20


def test_many_distinct_words_do_not_fill_the_memory(monkeypatch):
    monkeypatch.setattr("router_runtime.prediction.encoders.clip_tokenizer._MAX_CACHED_WORDS", 100)
    tokenizer = ClipTokenizer.from_merges(MERGES)
    letters = "abcdefghij"
    text = " ".join(f"{a}{b}{c}" for a in letters for b in letters for c in letters)
    assert tokenizer.tokenize(text) == REFERENCE.encode(text)
    assert len(tokenizer._known) <= 100


def test_threads_share_one_tokenizer():
    tokenizer = ClipTokenizer.from_merges(MERGES)
    texts = [f"sentence {i} of ünusual wörds{i}" for i in range(200)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(tokenizer.tokenize, texts * 3))
    assert found == [REFERENCE.encode(text) for text in texts] * 3


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "0 merges"),
        (b"#version\na b\n", "2 merges"),
        (b"\x1f\x8bdamaged", "cannot be read"),
        (gzip.compress(b"v\n" + b"a b\n" * 50_000)[:-40], "cannot be read"),
        (b"v\n" + b"a bcd\n" * 50_000, "line 2 is no pair"),
        (b"\xff\xfe", "cannot be read"),
    ],
)
def test_a_file_that_is_not_clips_vocabulary_is_refused(data, words):
    with pytest.raises(EncoderError, match=words):
        ClipTokenizer.from_merges(data)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(EncoderError, match=r"nothing\.gz' does not exist"):
        ClipTokenizer.from_merges(tmp_path / "nothing.gz")
    with pytest.raises(EncoderError, match=r"nothing\.json"):
        JsonTokenizer(tmp_path / "nothing.json")


def test_a_tokenizer_json_gives_the_ids_and_windows_of_transformers(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    transformers = pytest.importorskip("transformers")
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "what",
        "does",
        "the",
        "river",
        "bring",
        "##s",
        "?",
    ]
    vocabulary = {word: i for i, word in enumerate(words)}
    inner = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]"))  # noqa: S106
    inner.normalizer = tokenizers.normalizers.BertNormalizer()
    inner.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    inner.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    inner.enable_truncation(4)
    inner.enable_padding(length=32)
    path = tmp_path / "tokenizer.json"
    inner.save(str(path))
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(path), pad_token="[PAD]")  # noqa: S106
    ours = JsonTokenizer(path)
    text = "What does the RIVER bring? Rivers bring the river. " * 5
    assert ours.tokenize(text) == theirs(text, add_special_tokens=False)["input_ids"]
    assert ours.encode(text) == [2, *ours.tokenize(text), 3]
    options = {"length": 12, "max_windows": 3}
    assert ours.windows(**options).cut(text) == huggingface_windows(theirs, **options).cut(text)
    cleaned = JsonTokenizer(path, cleaning="canonicalize")
    assert vocabulary["?"] not in cleaned.tokenize(text)  # punctuation is gone
