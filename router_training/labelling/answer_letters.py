"""Answers as the letter of a multiple choice.

People and models say a letter in many ways, so the ways are tried from the most to the least
explicit. The first that is found decides; where it names two letters, the answer is ambiguous and
has none. The weak ways (a letter in parentheses, an option's own text) are not tried where the
answer denies or excludes something, for then they may name what is excluded.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

from router_training.labelling.answer_words import words

_LOOKED_AT: Final = 20_000  # characters, of the end: there the conclusion stands
_WORDED: Final = r"(?i:answer|choice|option|solution|selection|response)"
_GOOD: Final = r"(?i:correct|right|best|true|the (?:correct|right|best|answer))"
_DENIED: Final = re.compile(
    r"\b(?:not|no|none|neither|nor|never|cannot|except|exclud\w*|eliminat\w*|incorrect|wrong|false|"
    r"rul(?:e|ed|ing) out|unlike|rather than|instead of)\b|n['\u2019]t\b",
    re.IGNORECASE,
)
# every repetition is bounded: answers are anybody's, and none may take long to search
_OPENING: Final = r"[\s*_`\"'(\[{$]{0,8}(?:\\(?:text|mathrm|textbf|mathbf)\{)?"
_CLOSING: Final = r"[*_`\"')\]}$.]{0,8}"
_ALONE: Final = r"[ \t*_(\[]{0,8}"
_ALONE_END: Final = r"[*_)\].]{0,8}[ \t]{0,8}"


@lru_cache(maxsize=32)
def _ways(letters: str) -> tuple[re.Pattern[str], ...]:
    """Return the explicit ways to name a letter, strongest first; a group ``x`` is the letter."""
    lower = letters.lower()
    # "A" and "I" are words as well: not before a word in lower case, save one that goes on from it
    # and none goes on as another word does: C++, C#, A-level
    ahead = (
        r"(?![\w'\u2019]|[-\u2010-\u2013&]\w|[+#\u00b0%])"
        r"(?!(?<=[AI]) {1,3}(?!(?:because|since|as|is|due|for|with|which)\b)[a-z])"
    )
    letter = rf"(?P<x>[{letters}]{ahead}|[{lower}](?={_CLOSING}\s{{0,8}}(?:\n|$)))"
    option = rf"{_OPENING}(?:(?i:option|choice|letter|answer)\s{{1,3}})?[\s*_(\[]{{0,4}}"
    surely = r"(?:\s{1,3}(?i:(?:most )?\w{2,12}ly))?"
    says = (
        rf"(?:\s{{1,3}}(?i:is|would be|must be|should be|=){surely}\s?:?|"
        r"[\s*_\"'\u201d\u2019]{0,4}:)[*_]{0,3}"
    )
    return tuple(
        re.compile(pattern)
        for pattern in (
            rf"\\(?:boxed|fbox)\s?\{{{_OPENING}(?P<x>[{letters}{lower}])(?!\w)",
            rf"(?i:<answer>){_OPENING}(?P<x>[{letters}{lower}])(?!\w)",
            rf"(?i:final\s{{1,3}}{_WORDED})(?:{says})?{option}{letter}",
            rf"{_WORDED}{says}{option}{letter}",
            rf"\b(?P<x>[{letters}]){_CLOSING}\s{{1,3}}(?i:is)\s{{1,3}}(?:(?i:the)\s{{1,3}})?"
            rf"(?:{_GOOD}|(?i:final|overall)\s{{1,3}}{_WORDED})",
            r"\b(?i:choose|chose|select|pick|go with|going with|correct is|it is|it's|must be)"
            rf"\s{{0,3}}:?{option}{letter}",
        )
    )


def find_letter(answer: str, *, letters: str, choices: Sequence[str] = ()) -> str | None:
    """Return the letter that an answer decides on, None where it names none or several.

    Parameters
    ----------
    answer : str
    letters : str
        The letters that there are, in order, upper case.
    choices : sequence of str
        Texts of the options in the same order, where they are known.
    """
    text = unicodedata.normalize("NFKC", answer[-_LOOKED_AT:]).strip()
    if whole := re.fullmatch(rf"{_OPENING}([{letters}{letters.lower()}])[\s:]*{_CLOSING}", text):
        return whole[1].upper()
    for way in _ways(letters):
        if found := _named(way, text, letters, choices):
            return found.pop() if len(found) == 1 else None
    if alone := _all(rf"(?m)^{_ALONE}([{letters}]){_ALONE_END}$", text):
        return alone.pop() if len(alone) == 1 else None
    listed = _all(rf"(?m)^[ \t]*[*_(\[]*([{letters}])[*_]*[).:\]][*_]*(?=\s|$)", text)
    if listed:
        return listed.pop() if len(listed) == 1 else None
    if _DENIED.search(text):
        return _whole_choice(text, letters, choices)
    marked = _all(rf"\(([{letters}])\)|\*\*([{letters}])\*\*", text)
    if marked:
        return marked.pop() if len(marked) == 1 else None
    return _whole_choice(text, letters, choices) or _choice_within(text, letters, choices)


def reference_letter(reference: str, *, letters: str, choices: Sequence[str] = ()) -> str | None:
    """Return the right letter: the reference, its beginning, or the option that it repeats."""
    found = re.match(rf"[\s(\[]*([{letters}{letters.lower()}])(?:[).:\]]|\s*$)", reference)
    return found[1].upper() if found else _whole_choice(reference, letters, choices)


def _all(pattern: str, text: str) -> set[str]:
    return {group for match in re.finditer(pattern, text) for group in match.groups() if group}


def _named(way: re.Pattern[str], text: str, letters: str, choices: Sequence[str]) -> set[str]:
    """Return the letters that one way names, alternatives (``A or B``) included.

    What begins like an option's text (``C major``, ``B cells``) names that option.
    """
    found = set()
    also = re.compile(
        rf"{_CLOSING}\s{{0,3}}(?:or|and|/|,|&)\s?{_OPENING}([{letters}])(?![\w'\u2019])"
    )
    for match in way.finditer(text):
        if option := _begun_choice(text, match.start("x"), letters, choices):
            found.add(option)
            continue
        found.add(match["x"].upper())
        end = match.end("x")
        while other := also.match(text, end):
            found.add(other[1])
            end = other.end()
    return found


def _begun_choice(text: str, start: int, letters: str, choices: Sequence[str]) -> str | None:
    """Return the option whose text stands at a place, where it is longer than a letter."""
    for x, choice in sorted(zip(letters, choices, strict=False), key=lambda pair: -len(pair[1])):
        here = text[start : start + len(choice)]
        if len(choice) > 1 and here.casefold() == choice.casefold():
            if not text[start + len(choice) : start + len(choice) + 1].isalnum():
                return x
    return None


def _whole_choice(text: str, letters: str, choices: Sequence[str]) -> str | None:
    said = words(text)
    same = [x for x, choice in zip(letters, choices, strict=False) if words(choice) == said]
    return same[0] if len(same) == 1 else None


def _choice_within(text: str, letters: str, choices: Sequence[str]) -> str | None:
    """Return the only option whose words stand in the text, not counting those within a longer."""
    said = f" {' '.join(words(text))} "
    found = {}
    options = [(x, f" {' '.join(words(c))} ") for x, c in zip(letters, choices, strict=False)]
    for x, option in sorted(options, key=lambda pair: -len(pair[1])):
        if option.strip() and option in said:
            found[x] = option
            said = said.replace(option, " | ")
    return next(iter(found)) if len(found) == 1 else None
