import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router_runtime.errors import EncoderError
from router_runtime.prediction.encoders.windows import (
    TextWindows,
    bounded,
    huggingface_windows,
    padded,
    pool_windows,
    spans,
)


def letters(length=6, max_windows=3):
    """Return windows over a tokenizer of one token a character, 1 before and 2 behind."""
    return TextWindows(
        lambda text: [ord(c) for c in text], (1,), (2,), length=length, max_windows=max_windows
    )


def shown(windows):
    return ["".join(map(chr, window[1:-1])) for window in windows]


def test_short_text_is_one_window():
    assert spans(0, 4, 3) == [(0, 0)]
    assert spans(4, 4, 3) == [(0, 4)]


def test_long_text_keeps_the_first_window_and_the_last_ones():
    assert spans(100, 4, 3) == [(0, 4), (92, 96), (96, 100)]


def test_when_all_fits_only_the_first_two_windows_overlap():
    assert spans(9, 4, 3) == [(0, 4), (1, 5), (5, 9)]


def test_a_single_window_is_the_last_one():
    assert spans(9, 4, 1) == [(5, 9)]


@given(st.integers(0, 300), st.integers(1, 40), st.integers(1, 12))
@settings(deadline=None, max_examples=200)
def test_windows_are_full_few_and_end_where_the_text_ends(n, capacity, max_windows):
    kept = spans(n, capacity, max_windows)
    assert 1 <= len(kept) <= max_windows
    assert kept[-1][1] == n
    assert {stop - start for start, stop in kept} == {min(n, capacity)}
    assert kept == sorted(kept)
    if max_windows > 1:
        assert kept[0][0] == 0
    if n <= capacity * max_windows:
        assert {i for start, stop in kept for i in range(start, stop)} == set(range(n))


def test_cut_surrounds_every_window_with_the_special_tokens():
    assert letters().cut("abcdefghij") == [
        (1, *b"abcd", 2),
        (1, *b"cdef", 2),
        (1, *b"ghij", 2),
    ]
    assert letters().cut("") == [(1, 2)]


def test_special_tokens_written_in_the_text_are_dropped():
    assert shown(letters().cut("a\x02b\x01c")) == ["abc"]


def test_half_of_a_surrogate_pair_does_not_reach_the_tokenizer():
    assert shown(letters().cut("a\ud83d")) == ["a?"]


def test_an_endless_word_is_bounded_before_it_is_tokenized_and_keeps_both_ends():
    seen = []
    windows = TextWindows(
        lambda text: seen.append(len(text)) or [ord(c) for c in text], (1,), (2,), 6, 3
    )
    assert shown(windows.cut("begin" + "x" * 1_000_000 + "end.")) == ["begi", "xxxx", "end."]
    assert seen == [4 * 8 + 1 + 4 * 8 * 2]


def test_bounded_leaves_text_alone_that_can_be_kept():
    assert bounded("a" * 96, capacity=4, max_windows=3) == "a" * 96
    assert len(bounded("a" * 97, capacity=4, max_windows=3)) == 97
    assert bounded("a" * 99 + "b", capacity=4, max_windows=1) == "\n" + "a" * 31 + "b"


def test_pooling_gives_every_window_the_same_weight_whatever_its_norm():
    vectors = np.array([[3, 0], [0, 9], [0, 5], [0, 0]], dtype=np.float32)
    # Directions (1, 0) and (0, 1) have the mean (.5, .5), norms 3 and 9 the mean 6.
    assert pool_windows(vectors, [2, 1, 1]).tolist() == [[3, 3], [0, 5], [0, 0]]
    assert pool_windows(np.zeros((0, 2), dtype=np.float32), []).shape == (0, 2)


def test_a_window_that_texts_share_is_encoded_once():
    seen = []

    def encode(windows):
        seen.extend(shown(windows))
        return np.array([[window[-2], 1] for window in windows], dtype=np.float32)

    out = letters(max_windows=2).encode(
        ["samequestion", "same_another", "samequestion"], encode, dim=2, batch_size=8
    )
    assert sorted(seen) == ["same", "ther", "tion"]
    assert np.array_equal(out[0], out[2])
    assert not np.array_equal(out[0], out[1])


def test_a_model_without_room_for_text_is_refused():
    with pytest.raises(EncoderError, match="no room"):
        letters(length=2)


def test_special_tokens_of_a_tokenizer_are_found_by_what_it_does():
    def tokenizer(text, add_special_tokens, verbose):
        ids = [ord(c) for c in text]
        return {"input_ids": [7, 8, *ids, 9] if add_special_tokens else ids}

    windows = huggingface_windows(tokenizer, length=5, max_windows=2)
    assert (windows.prefix, windows.suffix, windows.capacity) == ((7, 8), (9,), 2)


def test_a_tokenizer_that_rewrites_the_text_with_its_special_tokens_is_refused():
    def tokenizer(text, add_special_tokens, verbose):
        return {"input_ids": [1, 2] if add_special_tokens else [3]}

    with pytest.raises(EncoderError, match="cannot be cut"):
        huggingface_windows(tokenizer, length=5, max_windows=2)


def test_padding_fills_the_asked_side_and_is_masked():
    ids, mask = padded([(5, 6), (7,)], pad_id=0)
    assert (ids.tolist(), mask.tolist()) == ([[5, 6], [7, 0]], [[1, 1], [1, 0]])
    ids, mask = padded([(5, 6), (7,)], pad_id=9, length=3, side="left")
    assert (ids.tolist(), mask.tolist()) == ([[9, 5, 6], [9, 9, 7]], [[0, 1, 1], [0, 0, 1]])


def test_the_description_names_all_that_changes_the_vectors():
    assert letters().describe() != letters(max_windows=4).describe()
    assert letters().describe() != letters(length=7).describe()
