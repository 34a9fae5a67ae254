"""Answers as words: a normal form to compare them in, and how much of a reference they share."""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import Final

_ARTICLES: Final = frozenset(("a", "an", "the"))
_THOUSANDS: Final = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_DELETED: Final = frozenset(".'`\"\u2018\u2019\u201c\u201d")
_KEPT: Final = frozenset("%#&@")
_MINUS: Final = frozenset("-\u2212")  # the second is the minus sign, a symbol to Unicode
# Han with its marks, kana, Thai, Lao, Burmese and Khmer are written without blanks between words.
_UNSPACED: Final = re.compile(
    "([\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3041-\u30ff\u31f0-\u31ff\u3400-\u4dbf"
    "\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff])"
)
_RAISED: Final = re.compile("[\u207a\u207b]?[\u00b2\u00b3\u00b9\u2070\u2074-\u2079]+")


def accepted(reference: str) -> tuple[str, ...]:
    """Return the answers that a reference accepts: itself, or the texts of a JSON list of texts."""
    if reference.lstrip().startswith("["):
        try:
            content = json.loads(reference)
        except (ValueError, RecursionError):
            content = None
        if isinstance(content, list) and content and all(isinstance(v, str) for v in content):
            return tuple(content)
    return (reference,)


def words(text: str) -> list[str]:
    """Return the words of a text in the normal form of SQuAD, mended where it errs.

    Case, articles, blanks, full stops and apostrophes do not count, and other punctuation parts
    words. Unlike there, a number keeps its sign, its decimal point and its fraction bar (``1.5`` is
    not ``15``), thousands separators go, symbols stay (``C++`` is not ``C``), Unicode's compatible
    forms are one but for raised digits (``10²`` is ``10^2``), a text of nothing but articles keeps
    them (the letter ``A`` of a choice), and where a script puts no blanks between words, every
    character is one, as is usual for overlap in Chinese and Japanese.
    """
    text = unicodedata.normalize("NFKC", raised_written_out(text)).casefold()
    # characters of format (zero-width blanks, marks of direction) are seen by nobody
    text = _THOUSANDS.sub("", "".join(c for c in text if unicodedata.category(c) != "Cf"))
    kept = "".join(_kept(text, at) for at in range(len(text)))
    found = _UNSPACED.sub(r" \1 ", kept).split()
    return [word for word in found if word not in _ARTICLES] or found


def raised_written_out(text: str) -> str:
    """Return a text with raised digits as a power: ``10²`` as ``10^2``, and not as ``102``."""
    return _RAISED.sub(lambda found: f"^{unicodedata.normalize('NFKC', found[0])}", text)


def _kept(text: str, at: int) -> str:
    char = text[at]
    if not unicodedata.category(char).startswith("P") and char not in _MINUS:
        return char
    before = text[at - 1] if at else " "
    after = text[at + 1] if at + 1 < len(text) else " "
    if char in "./" and before.isdigit() and after.isdigit():
        return char
    if char in _MINUS and after.isdigit() and not before.isalnum():
        return "-"
    if char in _KEPT:
        return char
    return "" if char in _DELETED else " "


def f1(answer: Sequence[str], reference: Sequence[str]) -> float:
    """Return the harmonic mean of precision and recall of the bags of words, as SQuAD does."""
    shared = (Counter(answer) & Counter(reference)).total()
    return _harmonic(shared, len(answer), len(reference))


def rouge_l(answer: Sequence[str], reference: Sequence[str]) -> float:
    """Return ROUGE-L's F measure with equal weights: by the longest common subsequence."""
    return _harmonic(_longest_common(answer, reference), len(answer), len(reference))


def _harmonic(shared: int, answered: int, wanted: int) -> float:
    if answered == 0 or wanted == 0:
        return float(answered == wanted)
    return 2 * shared / (answered + wanted)


def _longest_common(one: Sequence[str], other: Sequence[str]) -> int:
    """Return the length of the longest common subsequence.

    The bit-parallel algorithm of Hyyrö (2004): a column of the dynamic programme is one integer
    whose zero bits count, so that two texts of 20,000 words take a fraction of a second.
    """
    places: dict[str, int] = {}
    for at, word in enumerate(one):
        places[word] = places.get(word, 0) | 1 << at
    full = (1 << len(one)) - 1
    column = full
    for word in other:
        hits = column & places.get(word, 0)
        column = ((column + hits) | (column - hits)) & full
    return len(one) - column.bit_count()
