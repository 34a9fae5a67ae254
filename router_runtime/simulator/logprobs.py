"""Log-probabilities of a simulated answer, in OpenAI's form.

A word is a token. One that is a letter, as multiple choice is answered, has the letters of the
alphabet's start as alternatives, with drawn probabilities of which its own is the highest; any
other word has none but a drawn share of its own.
"""

from __future__ import annotations

import math
import re
from typing import Final

from router_runtime.simulator.draws import Draws
from router_runtime.types import Json

_WORD: Final = re.compile(r"\s*\S+")
_LETTER: Final = re.compile(r"\s*\(?([A-J])[).]*")
_LETTERS: Final = "ABCDEFGHIJ"


def logprobs_json(text: str, *, top: int, draws: Draws) -> Json:
    """Return ``{"content": [...]}`` with at most ``top`` alternatives of each token."""
    words = _WORD.findall(text)
    return {"content": [_token(word, top, Draws.of(draws.key.hex(), word)) for word in words]}


def _token(word: str, top: int, draws: Draws) -> Json:
    found = _LETTER.fullmatch(word)
    own = 0.55 + 0.4 * draws.uniform("own")
    shares = {word: own}
    if found:
        others = [letter for letter in _LETTERS if letter != found[1]]
        weights = [draws.uniform(letter) + 0.01 for letter in others]
        rest = (1.0 - own) / sum(weights)
        pairs = zip(others, weights, strict=True)
        shares |= {word.replace(found[1], other): weight * rest for other, weight in pairs}
    ranked = sorted(shares.items(), key=lambda entry: -entry[1])[:top]
    return {
        **_entry(word, own),
        "top_logprobs": [_entry(token, share) for token, share in ranked],
    }


def _entry(token: str, share: float) -> dict[str, Json]:
    return {"token": token, "logprob": math.log(share), "bytes": list(token.encode())}
