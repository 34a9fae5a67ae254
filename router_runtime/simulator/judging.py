"""Simulated judges: they read a judge's prompt and compare, and err as often as they are told to.

A judge's prompt holds its data between tags ``<data-XXXX name="answer">`` and ``</data-XXXX>``, the
names being ``prompt``, ``reference``, ``answer``, ``answer_a`` and ``answer_b``. What stands inside
is compared and never obeyed. An answer is good if it contains the reference; where the prompt has
none, the one that the simulator knows or makes up for the prompt.

The reply is what the caller asks for: an object of the schema in ``response_format``, a JSON
object, or text that ends with a line ``Verdict: yes``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from router_runtime.simulator.chat_request import ChatRequest
from router_runtime.simulator.config import JudgingConfig
from router_runtime.simulator.draws import Draws
from router_runtime.simulator.skills import says
from router_runtime.simulator.structured import instance_of
from router_runtime.types import Json

_BLOCK: Final = re.compile(r'<(data-[0-9a-f]+) name="([a-z_]+)">\n?(.*?)\n?</\1>', re.DOTALL)
_SCALE: Final = re.compile(r"(-?\d+)'? to (?:'Verdict: )?(-?\d+)")
_INVALID: Final = "Both sides have their merits, and I would rather not commit myself."

Kind = Literal["verdict", "score", "winner"]


@dataclass(frozen=True)
class _Task:
    """What is to be judged: ``data`` by name, and how the verdict is spelled."""

    data: Mapping[str, str]
    kind: Kind
    scale: tuple[int, int] = (1, 10)


def judged(
    request: ChatRequest,
    settings: JudgingConfig,
    *,
    draws: Draws,
    reference_of: Callable[[str], str],
) -> str:
    """Return a judge's reply.

    Parameters
    ----------
    request : ChatRequest
        Holds the judge's prompt.
    settings : JudgingConfig
    draws : Draws
        Of this call.
    reference_of : callable
        Gives the right answer of a prompt that comes without a reference.
    """
    task = _task(request)
    if task is None:
        return "There is nothing to judge: the prompt delimits no answer."
    if draws.uniform("invalid") < settings.invalid_rate:
        return _INVALID
    reference = task.data.get("reference") or reference_of(task.data.get("prompt", "").strip())
    right = draws.uniform("judging") < settings.accuracy
    verdict: str | int
    if task.kind == "winner":
        verdict, why = _winner(task, reference, settings, draws, right)
    else:
        good = says(task.data.get("answer", ""), reference) == right
        verdict, why = _grade(task, good, draws), _reason(good)
    return _spelled(request, task.kind, verdict, why)


def _task(request: ChatRequest) -> _Task | None:
    blocks = list(_BLOCK.finditer(request.data))
    data = {block[2]: block[3] for block in blocks}
    if not data.keys() & {"answer", "answer_a", "answer_b"}:
        return None
    instruction = request.data[blocks[-1].end() :]
    if request.schema is not None:
        return _task_of_schema(request.schema, data)
    if "answer_a" in data:
        return _Task(data, "winner")
    if (found := _SCALE.search(instruction)) and "whole number" in instruction:
        return _Task(data, "score", (int(found[1]), int(found[2])))
    return _Task(data, "verdict")


def _task_of_schema(schema: Mapping[str, Json], data: Mapping[str, str]) -> _Task:
    properties = schema.get("properties")
    properties = properties if isinstance(properties, Mapping) else {}
    if "winner" in properties:
        return _Task(data, "winner")
    score = properties.get("score")
    if not isinstance(score, Mapping):
        return _Task(data, "verdict")
    values = score.get("enum") or [score.get("minimum", 1), score.get("maximum", 10)]
    if not isinstance(values, list) or not all(isinstance(value, int) for value in values):
        return _Task(data, "score")
    return _Task(data, "score", (min(values), max(values)))


def _winner(
    task: _Task, reference: str, settings: JudgingConfig, draws: Draws, right: bool
) -> tuple[str, str]:
    if draws.uniform("position") < settings.position_bias:
        return "A", "The first answer reads better."
    a, b = (says(task.data.get(name, ""), reference) for name in ("answer_a", "answer_b"))
    truth = "tie" if a == b else "A" if a else "B"
    if not right:
        truth = draws.pick("mistake", [each for each in ("A", "B", "tie") if each != truth])
    return truth, f"Compared with what is right, it is {truth}."


def _grade(task: _Task, good: bool, draws: Draws) -> str | int:
    """Return yes or no, or a score in the upper or the lower third of the scale."""
    if task.kind == "verdict":
        return "yes" if good else "no"
    low, high = task.scale
    third = (high - low) // 3
    within = draws.integer("grade") % (third + 1)
    return high - within if good else low + within


def _reason(good: bool) -> str:
    return (
        "The answer states what the reference states."
        if good
        else "The answer does not state what the reference states."
    )


def _spelled(request: ChatRequest, kind: Kind, verdict: str | int, why: str) -> str:
    if request.response_format == "text" and "Verdict:" in request.data:
        return f"{why}\nVerdict: {verdict}"
    values: dict[str, Json] = {"explanation": why, kind: verdict}
    if request.schema is None:
        return json.dumps(values)
    properties = request.schema.get("properties")
    names = properties if isinstance(properties, Mapping) else ()
    known = {name: value for name, value in values.items() if name in names}
    return json.dumps(instance_of(request.schema, why, values=known))
