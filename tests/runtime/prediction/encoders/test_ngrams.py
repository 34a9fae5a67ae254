import re

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from router_runtime.prediction.encoders.ngrams import code_points, count_ngrams, text_hashes

ANY_TEXT = st.text(alphabet=st.characters(), max_size=60)  # lone surrogates included


def naive_char_grams(text):
    padded = re.sub(r"\s+", " ", f" {text.casefold()} ")
    return [padded[i : i + n] for n in (3, 4, 5) for i in range(len(padded) - n + 1)]


def test_code_points_are_the_ordinals_also_of_lone_surrogates():
    assert code_points("aé\U0001f600\ud800").tolist() == [0x61, 0xE9, 0x1F600, 0xD800]


def test_words_give_one_hash_each_and_one_per_pair():
    words, _ = text_hashes("The cat, the dog")
    assert len(words) == 4 + 3
    assert words[0] == words[2]  # "The" and "the"
    assert len(set(words.tolist())) == 6


def test_the_order_of_a_pair_matters():
    assert (
        text_hashes("dog bites man")[0][-2:].tolist()
        != text_hashes("man bites dog")[0][-2:].tolist()
    )


def test_a_word_has_the_same_hash_wherever_it_stands():
    start = text_hashes("needle in hay")[0][0]
    late = text_hashes("some hay " * 40 + "needle")[0][80]
    assert start == late


def test_characters_give_as_many_hashes_as_there_are_distinct_grams():
    text = "the theatre: 3 + 4 = 7, is it?\tYES"
    _, characters = text_hashes(text)
    grams = naive_char_grams(text)
    assert len(characters) == len(grams)
    assert len(set(characters.tolist())) == len(set(grams))


def test_case_and_kind_of_white_space_do_not_matter():
    plain, odd = text_hashes("what is it"), text_hashes("  WHAT \n\t is\u00a0it ")
    for one, other in zip(plain, odd, strict=True):
        np.testing.assert_array_equal(one, other)


def test_punctuation_matters_to_characters_only():
    plain, marked = text_hashes("is it so"), text_hashes("is it so?")
    np.testing.assert_array_equal(plain[0], marked[0])
    assert len(marked[1]) > len(plain[1])


def test_words_of_other_scripts_are_words():
    assert len(text_hashes("что это — такое")[0]) == 3 + 2
    assert len(text_hashes("「質問」、回答。")[0]) == 2 + 1


def test_texts_without_words_give_no_words():
    for text in ("", " ", "\n\n", "?!", "+"):
        assert text_hashes(text)[0].size == 0


def test_empty_text_gives_no_buckets():
    buckets, frequencies = count_ngrams("", hash_bits=10)
    assert buckets.size == frequencies.size == 0


def test_words_use_the_lower_half_of_the_buckets_and_characters_the_upper():
    words, characters = text_hashes("alpha beta gamma")
    buckets, _ = count_ngrams("alpha beta gamma", hash_bits=20)
    assert np.count_nonzero(buckets < 2**19) == len(words)
    assert np.count_nonzero(buckets >= 2**19) == len(set(characters.tolist()))


def test_frequencies_grow_with_the_logarithm_of_the_count():
    # With 2**20 buckets nothing collides: "ab" three times is three words and two pairs.
    buckets, frequencies = count_ngrams("ab ab ab", hash_bits=20)
    words = np.abs(frequencies[buckets < 2**19])
    np.testing.assert_allclose(np.sort(words), [1 + np.log(2), 1 + np.log(3)], rtol=1e-6)


def test_about_half_of_the_buckets_count_negatively():
    _, frequencies = count_ngrams(" ".join(f"word{i}" for i in range(2000)), hash_bits=20)
    assert 0.47 < np.mean(frequencies < 0) < 0.53


def test_buckets_are_filled_evenly():
    buckets = [
        count_ngrams(" ".join(f"w{i}x" for i in range(start, start + 50)), hash_bits=8)[0]
        for start in range(0, 5000, 50)
    ]
    counts = np.bincount(np.concatenate(buckets), minlength=256)[:128]
    assert counts.min() > 0.5 * counts.mean()
    assert counts.max() < 1.5 * counts.mean()


def test_hashes_of_this_version_are_pinned():
    # Artifacts of every machine and process depend on them: whoever changes these numbers raises
    # embedded.ALGORITHM.
    words, characters = text_hashes("Is it?")
    assert words.tolist() == [12998571506960039562, 2370907677187597947, 6315729102867997783]
    assert characters[:2].tolist() == [5007318287922023166, 7598955716431321404]


@settings(deadline=None, max_examples=80)
@given(ANY_TEXT)
def test_every_text_can_be_counted(text):
    buckets, frequencies = count_ngrams(text, hash_bits=12)
    assert buckets.dtype == np.int64
    assert frequencies.dtype == np.float32
    assert len(buckets) == len(frequencies)
    assert np.all(np.diff(buckets) > 0)
    assert np.all(np.abs(frequencies) >= 1)


@settings(deadline=None, max_examples=50)
@given(st.text(alphabet="ab ?é\n", max_size=40))
def test_equal_hashes_mean_equal_character_grams(text):
    _, characters = text_hashes(text)
    grams = naive_char_grams(text)
    assert len(characters) == len(grams)
    assert len({*zip(grams, characters.tolist(), strict=True)}) == len(set(grams))
