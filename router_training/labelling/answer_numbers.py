r"""Answers as numbers: which number a text gives as its result, and whether it is the reference's.

The result is what stands in ``\boxed{}`` or after ``####``, else what a sentence that says "the
answer is" ends in, else the last number. What can be read in two ways is told apart from what is
wrong: a score of 0 is only for a number that is another one in every reading.
"""

from __future__ import annotations

import math
import re
import unicodedata
from dataclasses import dataclass, replace
from typing import Final

from router_training.labelling.answer_words import raised_written_out

_LOOKED_AT: Final = 20_000  # characters: an answer's result stands at its end
_MAX_POWER: Final = 308

_DIGITS: Final = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+"
_TEN: Final = r"\ ?(?:\u00d7|\*|\\times|\\cdot)\ ?10\^\ ?\{?(?P<ten>[-+]?[0-9]{1,4})\}?"
_POWER: Final = r"\^\ ?\{?(?P<power>[-+]?[0-9]{1,4})\}?"
_NUMBER: Final = re.compile(
    rf"""
    (?<![A-Za-z0-9_.^])(?<![A-Za-z]-)(?<!\^\{{)(?P<sign>[-+](?:\ ?[$€£])?|)
    (?:
        \\[dt]?frac\{{\ ?(?P<upper>-?[0-9.]+)\ ?\}}\{{\ ?(?P<lower>-?[0-9.]+)\ ?\}}
      | (?<!/)(?:(?P<whole>[0-9]+)\ )?(?P<over>[0-9]+)\ ?/\ ?(?P<under>[0-9]+)(?![0-9./])
      | (?P<digits>{_DIGITS})
        (?: [eE](?P<exponent>[-+]?[0-9]{{1,4}})(?![0-9A-Za-z])
          | {_TEN}
          | {_POWER} )?
    )
    (?:(?P<percent>\ ?(?:%|per\ ?cent\b))|\ ?(?P<scale>(?i:thousand|million|billion|trillion))\b)?
    """,
    re.VERBOSE,
)
_SCALES: Final = {"thousand": 1e3, "million": 1e6, "billion": 1e9, "trillion": 1e12}
_BOXED: Final = re.compile(r"\\(?:boxed|fbox)\s?\{")
_MARKED: Final = re.compile(r"####[ \t]*([^\n]*)")
# up to the sentence's end; every repetition is bounded or moves on
_SAID: Final = re.compile(
    r"\b(?i:answer|result)[*_]{0,3}(?:\s{1,3}is\b|\s{0,3}[:=])((?:[^.!?\n]|[.!?](?=\S))*)"
)
_EQUALS: Final = re.compile(r"=[^=0-9]{0,4}[0-9][^=]*$")  # its last number comes of those before
_SIGN_WORD: Final = re.compile(
    r"(?<![0-9)}] )(?<![0-9)}])\b(?i:minus|negative) {1,3}(?=[$€£]?[.0-9])"
)
_SHORT_FRAC: Final = re.compile(r"(\\[dt]?frac) ?([0-9])([0-9])(?![0-9])")
_OTHER_DIGIT: Final = re.compile(r"[^\W_a-zA-Z0-9]")
# 1.234.567 and 1.234,56: with two kinds of separators, or one kind twice, there is one reading
_POINTS: Final = re.compile(
    r"(?<![0-9.,])([0-9]{1,3}(?:\.[0-9]{3}){2,}|[0-9]{1,3}(?:\.[0-9]{3})+(?=,[0-9]))"
    r"(?:,([0-9]+))?(?![0-9]|[.,][0-9])"
)
_SYMBOLS: Final = r"(?:\\sqrt|\\pi\b|√|π)"
_BEFORE: Final = re.compile(rf"{_SYMBOLS}\s*[{{(]?\s*$")
_AFTER: Final = re.compile(rf"\s*{_SYMBOLS}")
_DECIMAL_COMMA: Final = re.compile(r"(-?(?<![0-9])[0-9]+),$")
_BLANKS_WITHIN: Final = re.compile(r"(-?(?<![0-9])[0-9]{1,3}(?: [0-9]{3})*) $")


@dataclass(frozen=True)
class Number:
    """A number as a text gives it.

    Parameters
    ----------
    value : float
        Of ``12 %`` that is 12, of ``1.5 million`` 1.5.
    percent : bool
    readings : tuple of float
        What else it may be: 3.5 where ``3,5`` was read as 5, 1200 where ``1 200`` was read as 200,
        and 7 where the sentence ``the answer is 7, about 12`` was read as 12.
    scale : float
        1e6 of ``1.5 million``, else 1.
    """

    value: float
    percent: bool
    readings: tuple[float, ...] = ()
    scale: float = 1.0


def reference_number(reference: str) -> Number | None:
    """Return a reference's number, None where it is not exactly one."""
    found = _numbers(_marked(_plain(reference)))
    sure = len(found) == 1 and not found[0].readings and not math.isnan(found[0].value)
    return found[0] if sure else None


def answer_number(answer: str) -> Number | None:
    """Return an answer's result, None where it gives no number."""
    text = _plain(answer[-_LOOKED_AT:])
    marked = _marked(text)
    if marked is text and (said := _said(text)) is not None:
        return said
    found = _numbers(marked)
    return found[-1] if found else None


def _said(text: str) -> Number | None:
    """Return the number of the last sentence that names one as the answer."""
    for sentence in reversed(_SAID.findall(text)):
        if found := _numbers(sentence):
            last = found[-1]
            if _EQUALS.search(sentence):
                return last
            others = tuple(number.value * number.scale for number in found[:-1])
            return replace(last, readings=(*last.readings, *others))
    return None


def same(answer: Number, reference: Number, *, relative: float, absolute: float) -> bool | None:
    """Return whether two numbers agree within a tolerance; None where that cannot be told.

    With a percent sign on one side only, ``50 %`` agrees with 50 and with 0.5; likewise ``2
    million`` agrees with 2 and with 2,000,000.

    Parameters
    ----------
    answer, reference : Number
    relative, absolute : float
        Either is enough; ``relative`` is of the reference.
    """

    def near(one: float, other: float) -> bool:
        return math.isclose(one, other, rel_tol=0, abs_tol=max(absolute, relative * abs(other)))

    if near(answer.value * answer.scale, reference.value * reference.scale):
        return True
    if 1.0 in (answer.scale, reference.scale) and near(answer.value, reference.value):
        return True
    if answer.percent and not reference.percent and near(answer.value / 100, reference.value):
        return True
    if reference.percent and not answer.percent and near(answer.value, reference.value / 100):
        return True
    unknown = math.isnan(answer.value) or math.isnan(reference.value)
    wanted = (reference.value, reference.value * reference.scale)
    told = any(near(reading, value) for reading in answer.readings for value in wanted)
    return None if unknown or told else False


def _plain(text: str) -> str:
    r"""Return a text without LaTeX's and typography's ways to write the same number."""
    for written, meant in (
        ("\u2212", "-"),
        ("\u2013", "-"),
        ("\\%", "%"),
        ("\\$", "$"),
        ("{,}", ","),
        ("\\,", ""),
        ("\\!", ""),
        ("\\left", ""),
        ("\\right", ""),
        ("**", ""),
    ):
        text = text.replace(written, meant)
    text = _OTHER_DIGIT.sub(_ascii, raised_written_out(text))
    text = _SHORT_FRAC.sub(r"\1{\2}{\3}", text)
    text = _SIGN_WORD.sub("-", text)
    text = re.sub(r"(?<=[0-9])[\u00a0\u202f\u2009'_](?=[0-9]{3}(?![0-9]))", "", text)
    return _POINTS.sub(_without_points, text)


def _ascii(found: re.Match[str]) -> str:
    """Return a digit of another script as ours, and ``½`` as `` 1/2``."""
    char = found[0]
    if (digit := unicodedata.decimal(char, None)) is not None:
        return str(digit)
    if unicodedata.decomposition(char).startswith("<fraction>"):
        return f" {unicodedata.normalize('NFKC', char).replace(chr(0x2044), '/')}"
    return char


def _without_points(found: re.Match[str]) -> str:
    whole = found[1].replace(".", "")
    return whole if found[2] is None else f"{whole}.{found[2]}"


def _marked(text: str) -> str:
    """Return the part of a text that is marked as its result, else the text."""
    boxes = list(_BOXED.finditer(text))
    if boxes:
        return _braced(text, boxes[-1].end())
    marks: list[str] = _MARKED.findall(text)
    return marks[-1] if marks else text


def _braced(text: str, start: int) -> str:
    """Return the text up to the brace that closes one which opened before ``start``."""
    depth = 1
    for at in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[at], 0)
        if depth == 0:
            return text[start:at]
    return text[start:]


def _numbers(text: str) -> list[Number]:
    """Return the numbers of a text in order; one that a symbol changes (2π, √2) is NaN."""
    found = []
    for match in _NUMBER.finditer(text):
        value = _value(match)
        before, after = text[max(0, match.start() - 12) : match.start()], text[match.end() :][:12]
        if _BEFORE.search(before) or _AFTER.match(after):
            value = math.nan
        readings = _readings(before, match["digits"] or "")
        scale = _SCALES[match["scale"].lower()] if match["scale"] else 1.0
        found.append(Number(value, match["percent"] is not None, readings, scale))
    return found


def _readings(before: str, digits: str) -> tuple[float, ...]:
    """Return what digits may mean together with the text before them."""
    if digits.isdigit() and (whole := _DECIMAL_COMMA.search(before)):
        return (float(f"{whole[1]}.{digits}"),)
    if re.match(r"[0-9]{3}(?![0-9])", digits) and (head := _BLANKS_WITHIN.search(before)):
        return (float(head[1].replace(" ", "") + digits),)
    return ()


def _value(match: re.Match[str]) -> float:
    """Return a match's value, NaN where floats cannot hold it."""
    try:
        if match["upper"] is not None:
            value = float(match["upper"]) / float(match["lower"])
        elif match["over"] is not None:
            value = float(match["whole"] or 0) + float(match["over"]) / float(match["under"])
        else:
            value = float(match["digits"].replace(",", ""))
            if match["power"] is not None:
                value **= int(match["power"])
            value *= 10.0 ** max(-_MAX_POWER, int(match["exponent"] or match["ten"] or 0))
    except (ArithmeticError, ValueError):
        return math.nan
    value = -value if match["sign"].startswith("-") else value
    return value if math.isfinite(value) else math.nan
