"""How well simulated models do: topics, the chance of a good answer, and what they then say."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from router_runtime.simulator.config import (
    DEFAULT_TOPIC,
    SimulatedModelConfig,
    Skill,
    TopicConfig,
)
from router_runtime.simulator.draws import Draws
from router_runtime.simulator.known import KnownAnswer, KnownAnswers, text_digest

_SHORT: Final = (
    "The answer is {}.",
    "{}",
    "It is {}.",
    "Looking at it step by step, I get {}.",
    "I make it {}.",
)
_LONG: Final = ("{}", "Here is my answer: {}", "In short: {}")
_SHORT_WORDS: Final = 4
_HESITANT: Final = "I am afraid that I do not know."
_HESITANT_SHARE: Final = 0.1
_TRIES: Final = 16
_NUMBER: Final = re.compile(r"[-+]?\d+(?:\.\d+)?")
_TOKEN: Final = re.compile(r"[-+]?\d+(?:[.,]\d+)*|\w+")
_MADE_UP: Final = tuple(
    "amber basil cedar delta ember fjord grove heron iris jade kelp lotus maple north opal pearl "
    "quartz reed slate tulip umber vale willow yarrow zephyr".split()
)


@dataclass(frozen=True)
class Answer:
    """What a simulated model says.

    Parameters
    ----------
    text : str
    good : bool
        Whether it succeeded.
    output_tokens : float or None
        What the answer needs, where that is known.
    """

    text: str
    good: bool
    output_tokens: float | None = None


def success_chance(skill: Skill, difficulty: float) -> float:
    """Return the chance of a good answer: it falls with an S-curve from easy (0) to hard (1)."""
    easy, hard = skill
    fallen = 1.0 / (1.0 + math.exp(-10.0 * (difficulty - 0.5)))
    return easy + (hard - easy) * fallen


def find_or_make_up(
    prompt: str,
    images_sha256: Sequence[str],
    *,
    known: KnownAnswers,
    topics: Mapping[str, TopicConfig],
    seed: int,
) -> KnownAnswer:
    """Return the right answer to a prompt.

    Of an unknown prompt it is made up, with its difficulty, from the prompt and the pictures alone,
    so that all models that succeed agree.
    """
    found = known.find(prompt, images_sha256)
    if found is not None:
        return found
    draws = Draws.of(seed, "made up", text_digest(prompt), *images_sha256)
    words = " ".join(draws.pick(f"word {at}", _MADE_UP) for at in range(3))
    topic = next((n for n, t in topics.items() if re.search(t.match, prompt)), DEFAULT_TOPIC)
    return KnownAnswer(words, topic, draws.uniform("difficulty"))


def answer(
    right: KnownAnswer, model: SimulatedModelConfig, known: KnownAnswers, *, draws: Draws
) -> Answer:
    """Return what a model answers: the right answer, or by bad luck a wrong one."""
    skill = model.skills.get(right.topic, model.default_skill)
    good = draws.uniform("success") < success_chance(skill, right.difficulty)
    said = right.text if good else _wrong(right, known, draws)
    if said is None:
        return Answer(_HESITANT, good, right.output_tokens)
    forms = _SHORT if len(said.split()) <= _SHORT_WORDS else _LONG
    form = draws.pick("form", forms)
    if form.endswith("."):
        said = said.rstrip(".")
    return Answer(form.format(said), good, right.output_tokens)


def says(text: str, reference: str) -> bool:
    """Return whether ``text`` contains ``reference`` as whole words, whatever their case."""
    wanted = _words(reference)
    return bool(wanted.strip()) and wanted in _words(text)


def _words(text: str) -> str:
    return f" {' '.join(_TOKEN.findall(text.casefold()))} "


def _wrong(right: KnownAnswer, known: KnownAnswers, draws: Draws) -> str | None:
    """Return something that is not the right answer; None: it is not known."""
    if draws.uniform("hesitant") < _HESITANT_SHARE:
        return None
    text = right.text.strip()
    if _NUMBER.fullmatch(text):
        return _wrong_number(text, draws)
    if re.fullmatch(r"[A-J]", text):
        return draws.pick("letter", [letter for letter in "ABCD" if letter != text])
    pool = known.by_topic.get(right.topic, ())
    for at in range(_TRIES if pool else 0):
        other = draws.pick(f"other {at}", pool)
        if not says(other, text) and not says(text, other):
            return other
    made_up = " ".join(draws.pick(f"wrong {at}", _MADE_UP) for at in range(2))
    return None if says(made_up, text) else made_up


def _wrong_number(text: str, draws: Draws) -> str:
    decimals = len(text.partition(".")[2])
    off = (1 + draws.integer("off") % 9) * draws.pick("sign", (-1, 1))
    scaled = int(text.replace(".", "")) + off
    if not decimals:
        return str(scaled)
    digits = f"{abs(scaled):0{decimals + 1}d}"
    return f"{'-' if scaled < 0 else ''}{digits[:-decimals]}.{digits[-decimals:]}"
