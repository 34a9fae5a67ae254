"""Signed feature hashing of word and character n-grams, vectorised over the code points of a text.

There is no vocabulary: an n-gram is known by the bucket its hash falls into (Weinberger et al.,
"Feature Hashing for Large Scale Multitask Learning", ICML 2009), half of them counted negatively
so that collisions cancel on average. The hash is a polynomial in the code points modulo 2**64
followed by the finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014). It depends neither on
the process nor on the platform, and every step is an array operation: no Python loop runs over
n-grams.
"""

from __future__ import annotations

from functools import cache
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from router_runtime.types import F32, Int

U64: TypeAlias = npt.NDArray[np.uint64]

CHAR_ORDERS = (3, 4, 5)

_BASE = 0x9E3779B97F4A7C15  # odd, hence invertible modulo 2**64
_INVERSE = pow(_BASE, -1, 2**64)
_WORD_SALT = np.uint64(0xD6E8FEB86659FD93)
_PAIR_SALT = np.uint64(0xA0761D6478BD642F)
_CHAR_SALTS = {n: np.uint64(0xE7037ED1A0B428DB * n % 2**64) for n in CHAR_ORDERS}

_WORD, _SPACE, _OTHER = np.uint8(0), np.uint8(1), np.uint8(2)
_SPACES = (*range(0x09, 0x0E), *range(0x1C, 0x21), 0x85, 0xA0, *range(0x2000, 0x200B), 0x3000)
_MARKS = (  # ranges of punctuation and symbols, ends included; everything else writes words
    (0x00, 0x2F), (0x3A, 0x40), (0x5B, 0x5E), (0x60, 0x60), (0x7B, 0xA9), (0xAB, 0xB4),
    (0xB6, 0xB9), (0xBB, 0xBF), (0xD7, 0xD7), (0xF7, 0xF7), (0x2010, 0x206F), (0x2190, 0x2BFF),
    (0x3001, 0x3004), (0x3008, 0x3020), (0xFF00, 0xFF0F), (0xFF1A, 0xFF20), (0xFF3B, 0xFF40),
    (0xFF5B, 0xFF65),
)  # fmt: skip


def code_points(text: str) -> npt.NDArray[np.uint32]:
    """Return the code points of ``text``, uint32 (n_chars,); lone surrogates pass as they are."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")


def text_hashes(text: str) -> tuple[U64, U64]:
    """Hash every word 1- and 2-gram and every character 3- to 5-gram of a text.

    The text is case-folded, runs of white space count as one blank, and a blank is put before and
    after it. Character n-grams run across words and keep punctuation; words are runs of letters,
    digits and underscores (every code point outside a fixed table of blanks and marks, so that a
    newer Unicode version changes nothing).

    Parameters
    ----------
    text : str
        Any text, also empty.

    Returns
    -------
    words, characters : ndarray, uint64
        One well mixed hash per occurrence, in no particular order.
    """
    codes = code_points(f" {text.casefold()} ")
    classes = _class_table()[np.minimum(codes, 0xFFFF)]
    blank = classes == _SPACE
    keep = np.ones(len(codes), dtype=bool)
    keep[1:] = ~(blank[1:] & blank[:-1])
    letters = np.where(blank, np.uint32(0x20), codes)[keep].astype(np.uint64)
    words, pairs = _word_hashes(letters, classes[keep] == _WORD)
    characters = _char_hashes(letters)
    mixed = _mix(np.concatenate([pairs, *characters]))
    return np.concatenate([words, mixed[: len(pairs)]]), mixed[len(pairs) :]


def count_ngrams(text: str, *, hash_bits: int) -> tuple[Int, F32]:
    """Return which buckets a text's n-grams fall into, and how often, on a logarithmic scale.

    Words share the lower half of the ``2**hash_bits`` buckets, characters the upper half. The top
    bit of a hash gives its sign; a bucket's signed count ``c`` enters as ``sign(c) (1 + ln |c|)``,
    the sublinear term frequency.

    Parameters
    ----------
    text : str
        Any text.
    hash_bits : int
        Logarithm to base 2 of the number of buckets.

    Returns
    -------
    buckets : ndarray, int64 (n_occupied,)
        Ascending, each in [0, 2**hash_bits); buckets whose counts cancel are left out.
    frequencies : ndarray, float32 (n_occupied,)
        Never 0.
    """
    half = 1 << (hash_bits - 1)
    words, characters = text_hashes(text)
    hashes = np.concatenate([words, characters])
    places = (hashes & np.uint64(half - 1)).view(np.int64)
    places[len(words) :] += half
    signs = (hashes.view(np.int64) >> 63) | 1
    counts = np.bincount(places, weights=signs, minlength=2 * half)
    buckets = (counts != 0).nonzero()[0]  # of booleans, which is four times as fast
    occurring = counts[buckets]
    frequencies = 1.0 + np.log(np.abs(occurring))
    return buckets, np.copysign(frequencies, occurring).astype(np.float32)


def _word_hashes(letters: U64, is_word: npt.NDArray[np.bool_]) -> tuple[U64, U64]:
    """Return the hashes of words, and those of neighbouring ones, which are still to be mixed."""
    # The text begins and ends with a blank, so that edges come in pairs.
    edges = (is_word[1:] != is_word[:-1]).nonzero()[0] + 1
    starts, ends = edges[0::2], edges[1::2]
    powers, inverses = _powers(1 << len(letters).bit_length())
    sums = np.zeros(len(letters) + 1, dtype=np.uint64)
    np.cumsum(letters * powers[: len(letters)], out=sums[1:])
    words = _mix((sums[ends] - sums[starts]) * inverses[starts] + _WORD_SALT)
    return words, words[:-1] * _PAIR_SALT + words[1:]


def _char_hashes(letters: U64) -> list[U64]:
    """Return the hashes of characters by order, still to be mixed."""
    powers, _ = _powers(16)
    rolling = letters
    found = []
    for order in range(2, max(CHAR_ORDERS) + 1):
        if len(rolling) < 2:
            break
        rolling = rolling[:-1] + letters[order - 1 :] * powers[order - 1]
        if order in CHAR_ORDERS:
            found.append(rolling + _CHAR_SALTS[order])
    return found


def _mix(values: U64) -> U64:
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


@cache
def _powers(size: int) -> tuple[U64, U64]:
    """Powers 0 .. size - 1 of the base and of its inverse; ``size`` is a power of two."""

    def series(base: int) -> U64:
        factors = np.full(size, base, dtype=np.uint64)
        factors[0] = 1
        return np.multiply.accumulate(factors)

    return series(_BASE), series(_INVERSE)


@cache
def _class_table() -> npt.NDArray[np.uint8]:
    table = np.full(0x10000, _WORD)
    for first, last in _MARKS:
        table[first : last + 1] = _OTHER
    table[list(_SPACES)] = _SPACE
    return table
