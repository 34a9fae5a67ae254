import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router_runtime.errors import EncoderError
from router_runtime.prediction.encoders.base import (
    absent_half,
    checked,
    encode_distinct,
    file_digest,
    files_digest,
    fingerprint_of,
    well_formed,
)


def lengths(calls):
    """Return an encoder of strings: their length and first code point; it records its batches."""

    def encode(batch):
        calls.append(list(batch))
        return np.array([[len(t), ord(t[0]) if t else 0] for t in batch], dtype=np.float32)

    return encode


def run(texts, *, batch_size=2, calls=None, budget=None):
    encode = lengths([] if calls is None else calls)
    options = {"batch_size": batch_size, "key": lambda text: text, "size": len, "budget": budget}
    return encode_distinct(texts, encode, dim=2, **options)


def test_fingerprint_ignores_the_order_of_keys_and_sees_every_value():
    assert fingerprint_of({"a": 1, "b": [2, None]}) == fingerprint_of({"b": [2, None], "a": 1})
    assert fingerprint_of({"a": 1, "b": [2, None]}) != fingerprint_of({"a": 1, "b": [2, 0]})
    assert len(fingerprint_of({})) == 64


@pytest.mark.parametrize("value", [float("nan"), object(), {1, 2}])
def test_what_is_not_json_cannot_be_fingerprinted(value):
    with pytest.raises(EncoderError, match="JSON"):
        fingerprint_of({"a": value})


def test_files_digest_depends_on_names_and_contents_but_not_on_place_or_order(tmp_path):
    for place in ("here", "there"):
        (tmp_path / place / "sub").mkdir(parents=True)
        (tmp_path / place / "a.bin").write_bytes(b"1")
        (tmp_path / place / "sub" / "b.bin").write_bytes(b"2")
    here, there = (
        [tmp_path / p / "a.bin", tmp_path / p / "sub" / "b.bin"] for p in ("here", "there")
    )
    digest = files_digest(here, root=tmp_path / "here")
    assert digest == files_digest(reversed(there), root=tmp_path / "there")
    there[1].write_bytes(b"3")
    assert digest != files_digest(there, root=tmp_path / "there")
    assert digest != files_digest(here)


def test_file_digest_is_plain_sha256(tmp_path):
    (tmp_path / "empty").write_bytes(b"")
    assert file_digest(tmp_path / "empty").startswith("e3b0c44298fc1c149afbf4c8996fb924")


def test_half_of_a_surrogate_pair_becomes_a_question_mark_and_nothing_else_changes():
    assert well_formed("a\ud83d b") == "a? b"
    assert well_formed("naïve \N{GRINNING FACE} 日本") == "naïve \N{GRINNING FACE} 日本"


def test_equal_inputs_are_encoded_once_and_batches_go_from_long_to_short():
    calls = []
    out = run(["b", "aaa", "b", "", "aaa", "cc"], calls=calls)
    assert calls == [["aaa", "cc"], ["b", ""]]
    assert out.tolist() == [[1, 98], [3, 97], [1, 98], [0, 0], [3, 97], [2, 99]]


def test_a_budget_bounds_what_a_batch_measures_padded():
    calls = []
    texts = ["bb", "c", "aaaaaaa", "", "dd", "e"]
    out = run(texts, calls=calls, batch_size=9, budget=5)
    assert calls == [["aaaaaaa"], ["bb", "dd"], ["c", "e", ""]]
    assert out.tolist() == run(texts, batch_size=1).tolist()


def test_no_input_gives_no_rows_and_no_call():
    calls = []
    assert run([], calls=calls).shape == (0, 2)
    assert calls == []


def test_an_absent_half_has_rows_but_no_columns():
    assert absent_half(3).shape == (3, 0)
    assert absent_half(3).dtype == np.float32


@given(st.lists(st.text(max_size=4), max_size=20), st.integers(1, 7))
@settings(deadline=None, max_examples=50)
def test_any_batch_size_gives_what_one_by_one_gives(texts, batch_size):
    expected = [run([text])[0].tolist() for text in texts]
    assert run(texts, batch_size=batch_size).tolist() == expected


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (np.zeros((2, 3)), "shape"),
        (np.zeros((1, 2)), "shape"),
        (np.array([[0, np.nan], [0, 0]]), "NaN"),
        (np.array([[0, np.inf], [0, 0]]), "infinite"),
    ],
)
def test_a_wrong_shape_or_a_value_that_is_no_number_is_refused(vectors, message):
    with pytest.raises(EncoderError, match=message):
        checked(vectors, rows=2, dim=2)
