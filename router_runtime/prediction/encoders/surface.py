"""What a text looks like, apart from what it says: length, digits, operators, choices, code.

Such counts tell how hard a request is and of which kind, and they hold for words never seen in
training. Counts enter as ``log(1 + count)`` and shares as their square root, so that a few marks in
a short text and many in a long one are both visible.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from functools import cache

import numpy as np
import numpy.typing as npt

from router_runtime.prediction.encoders.ngrams import code_points
from router_runtime.types import F64

_SHARES = {  # share of characters, in the order of the features
    "digit_share": "0123456789",
    "capital_share": "ABCDEFGHIJKLMNOPQRSTUVWXYZ",
    "operator_share": "+-*/=<>^%|&~",
    "bracket_share": "()[]{}",
    "quote_share": "\"'`",
    "pause_share": ",;:",
    "math_share": "\\$_#@",
    "space_share": " \t",
}
_COUNTS = {  # log(1 + number of occurrences)
    "lines": "\n",
    "question_marks": "?",
    "stops": ".!",
}
_WORDS = {  # log(1 + number of these words, in any case)
    "code_words": "def class return function import print assert python java script regex sql "
    "select lambda const array string var void int null code list tuple",
    "question_words": "what which who whom whose when where why how",
    "negations": "not no never none except neither nor without false isn doesn don didn won cannot",
    "logic_words": "if then because therefore since each every all total more less than",
}
_PATTERNS = {  # log(1 + number of matches)
    "numbers": re.compile(r"\d+(?:[.,]\d+)*"),
    "choice_markers": re.compile(r"^[ \t]*\(?[A-Ja-j0-9][.):]", re.MULTILINE),
}
_WORD = re.compile(r"\w+")
_LONG_WORD_CHARS = 7

_KNOWN_WORDS = tuple(tuple(known.split()) for known in _WORDS.values())

SURFACE_NAMES = (
    "chars",
    "words",
    "mean_word_length",
    "long_word_share",
    "distinct_word_share",
    "non_ascii_share",
    *_SHARES,
    *_COUNTS,
    *_WORDS,
    *_PATTERNS,
)


def surface_features(text: str) -> F64:
    """Return the features named in ``SURFACE_NAMES``, float64 (len(SURFACE_NAMES),), all >= 0.

    Parameters
    ----------
    text : str
        Any text; an empty one gives zeros.
    """
    codes = code_points(text)
    tally = np.bincount(_categories()[np.minimum(codes, 128)], minlength=_N_CATEGORIES)
    words = Counter(_WORD.findall(text.lower()))
    n_words = words.total()
    divisor = max(n_words, 1)
    letters = sum(len(word) * count for word, count in words.items())
    long = sum(count for word, count in words.items() if len(word) >= _LONG_WORD_CHARS)
    shares = tally[: 1 + len(_SHARES)] / max(len(codes), 1)
    return np.array(
        [
            math.log1p(len(codes)),
            math.log1p(n_words),
            math.log1p(letters / divisor),
            math.sqrt(long / divisor),
            len(words) / divisor,
            *np.sqrt(shares),
            *np.log1p(tally[1 + len(_SHARES) : -1]),
            *(math.log1p(sum(words.get(word, 0) for word in known)) for known in _KNOWN_WORDS),
            *(math.log1p(len(pattern.findall(text))) for pattern in _PATTERNS.values()),
        ]
    )


_N_CATEGORIES = 1 + len(_SHARES) + len(_COUNTS) + 1  # non-ASCII, shares, counts, the rest


@cache
def _categories() -> npt.NDArray[np.int64]:
    """Category of the code points below 128, and in the last place of all others."""
    table = np.full(129, _N_CATEGORIES - 1)
    table[128] = 0
    for category, marks in enumerate((*_SHARES.values(), *_COUNTS.values()), start=1):
        table[[ord(mark) for mark in marks]] = category
    return table
