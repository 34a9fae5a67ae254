"""What a judge replied becomes a verdict, or nothing: a verdict is never guessed.

A reply that does not have exactly the asked form is no verdict, even where a reader would see one:
"yes" in the middle of a sentence may be quoted from the answer that is judged. Only what changes no
meaning is forgiven: blanks around, case, a code fence around the whole reply, and a leading
``<think>`` block that a server did not take off.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from router_runtime.types import Json
from router_training.labelling.rubrics import Mode, Rubric

_THOUGHT: Final = re.compile(r"\s*<think>.*?</think>", re.DOTALL)
_FENCED: Final = re.compile(r"```(?:json)?[ \t]*\n(.*)\n```", re.DOTALL)
_LINE: Final = re.compile(
    r"[ \t*_>#]*verdict[ \t*_]*:[ \t*_]*['\"`]?([\w-]+)['\"`]?[ \t*_.]*", re.I
)
_WINNERS: Final = {"A": 1.0, "B": 0.0, "tie": 0.5}


@dataclass(frozen=True)
class Verdict:
    """One judge's verdict.

    Parameters
    ----------
    label : str
        As the rubric names it: ``yes``, ``7``, ``A``.
    score : float
        In [0, 1]; of a comparison that of answer A.
    explanation : str
        As the judge gave it; empty where it gave none.
    """

    label: str
    score: float
    explanation: str


def parse(text: str, rubric: Rubric, *, mode: Mode) -> Verdict | None:
    """Return the verdict of a reply, None where it is none.

    Parameters
    ----------
    text : str
        The reply.
    rubric : Rubric
        Whose verdicts are known.
    mode : str
        What form was asked for.
    """
    text = _THOUGHT.sub("", text, count=1) if text.lstrip().startswith("<think>") else text
    return _of_lines(text, rubric) if mode == "text" else _of_json(text, rubric)


def _of_json(text: str, rubric: Rubric) -> Verdict | None:
    text = text.strip()
    if fenced := _FENCED.fullmatch(text):
        text = fenced[1]
    try:
        content = json.loads(text, object_pairs_hook=_object, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None
    if not isinstance(content, dict):
        return None
    explanation = content.get("explanation", "")
    value = content.get(rubric.key)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(explanation, str) or isinstance(value, bool | float | dict | list | None):
        return None
    return _verdict(str(value), explanation, rubric)


def _object(pairs: Sequence[tuple[str, Json]]) -> dict[str, Json]:
    """Return a JSON object; one with a key twice says two things."""
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError("a key stands twice")
    return content


def _refuse(name: str) -> Json:
    raise ValueError(f"{name} is no JSON")


def _of_lines(text: str, rubric: Rubric) -> Verdict | None:
    lines = text.strip().splitlines()
    found = [match[1].casefold() for line in lines if (match := _LINE.fullmatch(line))]
    if not lines or _LINE.fullmatch(lines[-1]) is None or len(set(found)) != 1:
        return None
    said = [line for line in lines if _LINE.fullmatch(line) is None]
    return _verdict(found[0], "\n".join(said).strip(), rubric)


def _verdict(value: str, explanation: str, rubric: Rubric) -> Verdict | None:
    labels = {str(known).casefold(): str(known) for known in rubric.values}
    label = labels.get(value.strip().casefold())
    if label is None:
        return None
    return Verdict(label, _score(label, rubric), explanation.strip())


def _score(label: str, rubric: Rubric) -> float:
    if rubric.scale is not None:
        lowest, highest = rubric.scale
        return (int(label) - lowest) / (highest - lowest)
    return _WINNERS[label] if rubric.verdict == "winner" else float(label == "yes")
