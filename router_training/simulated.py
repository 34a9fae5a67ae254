"""A SIMULATED multimodal workload for the quickstart and for tests.

Prompts are filled in from templates, pictures are drawn, and the four models do not exist: whether
one "answers well" is a coin whose bias follows from the topic and from how difficult the task is,
which can be seen in its text or picture (long numbers, many shapes, wide tables). So there is
something to learn, its size is known, and nobody's data is shipped. Figures reached on it say that
the machinery works, and nothing about real models.

Text-only models get no score, usage or cost on rows with a picture: they cannot be asked.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import numpy as np

from router_runtime.errors import ConfigError
from router_runtime.pricing import Price, Usage, estimate_tokens
from router_runtime.simulator.draws import Draws
from router_runtime.simulator.known import KnownAnswer, answer_line
from router_runtime.simulator.skills import success_chance
from router_runtime.types import Modality
from router_training.drawing import SHAPES, draw_chart, draw_shapes, draw_table
from router_training.formats import Row, atomic_file
from router_training.labels import Evaluations, evaluations_from_rows, write_evaluations
from router_training.pictures import Pictures

_IMAGE_TOKENS: Final = 800
_WORDS: Final = tuple(
    "river stone market window garden engine letter bridge winter copper signal harbour "
    "meadow lantern orchard valley machine picture silver village teacher council theatre "
    "journal battery kitchen mountain library ocean ticket".split()
)


@dataclass(frozen=True)
class SimulatedModel:
    """A model that does not exist.

    Parameters
    ----------
    price : Price
        Simulated USD.
    modalities : frozenset of Modality
        What it accepts.
    verbosity : float
        Output tokens relative to the others.
    skills : mapping
        Per topic the chance of a good answer at difficulty 0 and at difficulty 1.
    """

    price: Price
    modalities: frozenset[Modality]
    verbosity: float
    skills: Mapping[str, tuple[float, float]]


@dataclass(frozen=True)
class _Task:
    prompt: str
    answer: str
    difficulty: float  # 0 to 1
    output_tokens: float  # of a model with verbosity 1
    picture: bytes | None = None


def _model(
    input_mtok: str, output_mtok: str, verbosity: float, **skills: tuple[float, float]
) -> SimulatedModel:
    sees = any(topic in skills for topic in ("chart", "shapes", "table"))
    return SimulatedModel(
        Price(Decimal(input_mtok), Decimal(output_mtok)),
        frozenset(Modality) if sees else frozenset({Modality.TEXT}),
        verbosity,
        skills,
    )


SIMULATED_MODELS: Final[Mapping[str, SimulatedModel]] = {
    "sim-large-vl": _model(
        "3.00",
        "12.00",
        1.2,
        arithmetic=(0.96, 0.70),
        code=(0.93, 0.60),
        translation=(0.97, 0.90),
        trivia=(0.97, 0.80),
        summary=(0.93, 0.72),
        chart=(0.98, 0.85),
        shapes=(0.97, 0.70),
        table=(0.98, 0.88),
    ),
    "sim-small-vl": _model(
        "0.20",
        "0.60",
        0.9,
        arithmetic=(0.95, 0.10),
        code=(0.80, 0.15),
        translation=(0.94, 0.60),
        trivia=(0.92, 0.25),
        summary=(0.90, 0.55),
        chart=(0.97, 0.15),
        shapes=(0.97, 0.05),
        table=(0.96, 0.35),
    ),
    "sim-large-text": _model(
        "2.00",
        "8.00",
        1.1,
        arithmetic=(0.98, 0.90),
        code=(0.97, 0.86),
        translation=(0.95, 0.75),
        trivia=(0.94, 0.55),
        summary=(0.97, 0.90),
    ),
    "sim-small-text": _model(
        "0.10",
        "0.30",
        0.8,
        arithmetic=(0.93, 0.05),
        code=(0.72, 0.06),
        translation=(0.90, 0.35),
        trivia=(0.88, 0.15),
        summary=(0.88, 0.35),
    ),
}
"""The four simulated models by name, in the order of the label columns."""

SIMULATED_PRICES: Final = {name: model.price for name, model in SIMULATED_MODELS.items()}
"""Their simulated prices, for configs that must match the recorded costs."""

SIMULATED_MODALITIES: Final = {name: model.modalities for name, model in SIMULATED_MODELS.items()}
"""What they accept."""


def simulate_workload(n: int = 1200, *, seed: int = 0) -> Evaluations:
    """Return ``n`` simulated rows; equal arguments give equal bytes.

    Topics are arithmetic, code, translation, trivia and summary (of a long text) and, for 40 % of
    the rows, chart, shapes and table with a PNG picture each. The data set of a row is
    ``simulated-<topic>``.

    Parameters
    ----------
    n : int
        Rows, at least 1.
    seed : int
        Of everything random.

    Raises
    ------
    ConfigError
        ``n`` is below 1.
    """
    if n < 1:
        raise ConfigError(f"n is {n}; simulate at least 1 row.")
    rng = np.random.default_rng(seed)
    rows = (Row(at + 1, _row(rng, at, topic)) for at, topic in enumerate(_topics(rng, n)))
    return evaluations_from_rows(
        rows,
        source="simulated workload",
        pictures=Pictures(Path()),
        model_ids=tuple(SIMULATED_MODELS),
    )


def write_workload(folder: str | Path, *, rows: int = 3000, seed: int = 0) -> Path:
    """Write a simulated workload as a user would have it, and return the records' path.

    ``records.jsonl`` holds the records with their pictures; ``example.png`` is the picture of the
    first row about shapes, to route by hand.
    """
    folder = Path(folder)
    evaluations = simulate_workload(rows, seed=seed)
    folder.mkdir(parents=True, exist_ok=True)
    for sample in evaluations.samples:
        if sample.dataset == "simulated-shapes":
            (folder / "example.png").write_bytes(sample.query.images[0].data)
            break
    write_evaluations(evaluations, folder / "records.jsonl")
    return folder / "records.jsonl"


def write_unlabelled(folder: str | Path, *, rows: int = 300, seed: int = 0) -> Path:
    """Write simulated samples without scores, to be labelled, and return their path.

    ``samples.jsonl`` holds prompts, pictures (base64) and reference answers; ``answers.jsonl`` is
    what the simulated provider must know to answer them (``model-router simulate``). Topics without
    a real answer (code, translation, trivia, summary) get a made-up reference.

    Raises
    ------
    ConfigError
        ``rows`` is below 1.
    """
    if rows < 1:
        raise ConfigError(f"rows is {rows}; simulate at least 1 row.")
    folder = Path(folder)
    path = folder / "samples.jsonl"
    with atomic_file(path) as samples, atomic_file(folder / "answers.jsonl") as answers:
        for sample, answer in _unlabelled(rows, seed):
            samples.write(sample.encode())
            answers.write(answer.encode())
    return path


def _unlabelled(n: int, seed: int) -> Iterator[tuple[str, str]]:
    """Yield each sample's line and that of its answer."""
    rng = np.random.default_rng(seed)
    for at, topic in enumerate(_topics(rng, n)):
        task = _TASKS[topic](rng, float(rng.random()))
        pictures = [] if task.picture is None else [task.picture]
        right = task.answer or _reference(topic, task.prompt)
        sample = {
            "idx": at,
            "dataset": f"simulated-{topic}",
            "prompt": task.prompt,
            "images": [base64.b64encode(picture).decode() for picture in pictures],
            "answer": right,
        }
        known = KnownAnswer(right, topic, round(task.difficulty, 4), round(task.output_tokens, 1))
        digests = [hashlib.sha256(picture).hexdigest() for picture in pictures]
        yield (
            json.dumps(sample, ensure_ascii=False) + "\n",
            answer_line(task.prompt, known, images_sha256=digests),
        )


def _reference(topic: str, prompt: str) -> str:
    """Make a reference up; equal prompts have equal ones."""
    draws = Draws.of("reference", topic, prompt)
    words = [draws.pick(f"word {at}", _WORDS) for at in range(3)]
    forms = {
        "code": "It is the function {}_{}_{}.",
        "translation": "{} {} {}",
        "trivia": "the {} {} {}",
        "summary": "It is about a {}, a {} and a {}.",
    }
    return forms[topic].format(*words)


def _topics(rng: np.random.Generator, n: int) -> Iterator[str]:
    """Yield the topics of ``n`` rows in a drawn order that repeats."""
    return map(str, np.resize(rng.permutation(_CYCLE), n))


def _row(rng: np.random.Generator, at: int, topic: str) -> dict[str, Any]:
    task = _TASKS[topic](rng, float(rng.random()))
    row: dict[str, Any] = {
        "idx": at,
        "dataset": f"simulated-{topic}",
        "prompt": task.prompt,
        "answer": task.answer,
        "images": [] if task.picture is None else [task.picture],
        "model_scores": {},
        "model_costs": {},
        "model_usage": {},
    }
    for name, model in SIMULATED_MODELS.items():
        # Draw for every model, so that one model's skills never move another's coins.
        coin, length = float(rng.random()), float(rng.lognormal(0.0, 0.25))
        if topic not in model.skills:
            row["model_scores"][name] = None
            continue
        usage = _usage(task, model, length)
        row["model_scores"][name] = int(coin < success_chance(model.skills[topic], task.difficulty))
        row["model_costs"][name] = float(model.price.cost(usage))
        row["model_usage"][name] = {
            "input_tokens": usage.input_tokens,
            "output_tokens": usage.output_tokens,
        }
    return row


def _usage(task: _Task, model: SimulatedModel, length: float) -> Usage:
    n_images = int(task.picture is not None)
    return Usage(
        input_tokens=round(float(estimate_tokens(len(task.prompt)))) + n_images * _IMAGE_TOKENS,
        output_tokens=max(1, round(task.output_tokens * model.verbosity * length)),
        images=n_images,
    )


def _between(low: float, high: float, difficulty: float) -> int:
    return round(low + (high - low) * difficulty)


def _pick(rng: np.random.Generator, *options: str) -> str:
    return options[int(rng.integers(len(options)))]


def _sentence(rng: np.random.Generator, n_words: int) -> str:
    words = [_WORDS[at] for at in rng.integers(len(_WORDS), size=n_words)]
    return f"The {' '.join(words)}."


def _arithmetic(rng: np.random.Generator, difficulty: float) -> _Task:
    digits = _between(2, 9, difficulty)
    a, b = (int(rng.integers(10 ** (digits - 1), 10**digits)) for _ in range(2))
    sign = _pick(rng, "+", "-", "*")
    answer = {"+": a + b, "-": a - b, "*": a * b}[sign]
    prompt = _pick(
        rng, "What is {}?", "Compute {}.", "Please calculate {} and give only the number."
    )
    return _Task(prompt.format(f"{a} {sign} {b}"), str(answer), difficulty, 20 + 60 * difficulty)


def _code(rng: np.random.Generator, difficulty: float) -> _Task:
    language = _pick(rng, "Python", "Rust", "Go", "JavaScript")
    wishes = [
        "handle empty input",
        "run in O(n log n)",
        "be safe for concurrent callers",
        "stream results lazily",
        "recover from partial failures",
        "never allocate more than twice the input",
        "include property-based tests",
    ]
    chosen = rng.permutation(wishes)[: _between(0, len(wishes), difficulty)]
    task = _pick(rng, "reverses a list", "merges two sorted files", "parses dates", "counts words")
    extra = "".join(f"\n- It must {wish}." for wish in chosen)
    prompt = f"Write a {language} function that {task} of {_pick(rng, *_WORDS)} records.{extra}"
    return _Task(prompt, "", difficulty, 150 + 500 * difficulty)


def _translation(rng: np.random.Generator, difficulty: float) -> _Task:
    tongues = ("Spanish", "French", "German", "Polish", "Finnish", "Georgian", "Amharic", "Navajo")
    tongue = tongues[min(int(difficulty * len(tongues)), len(tongues) - 1)]
    sentence = _sentence(rng, int(rng.integers(5, 14)))
    prompt = _pick(rng, "Translate into {}: {}", "How does one say this in {}? {}")
    return _Task(prompt.format(tongue, sentence), "", difficulty, 40)


def _trivia(rng: np.random.Generator, difficulty: float) -> _Task:
    asked = (
        "What is the capital of the country known for its {}?",
        "Which animal is often drawn beside a {}?",
        "In which century was the {} first described?",
        "Which obscure treaty mentions a {}?",
        "Who was the second deputy keeper of the royal {}?",
    )
    question = asked[min(int(difficulty * len(asked)), len(asked) - 1)]
    thing = f"{_pick(rng, *_WORDS)} {_pick(rng, *_WORDS)}"
    return _Task(question.format(thing), "", difficulty, 25)


def _summary(rng: np.random.Generator, difficulty: float) -> _Task:
    body = " ".join(
        _sentence(rng, int(rng.integers(6, 16))) for _ in range(_between(8, 90, difficulty))
    )
    prompt = f"{body}\n\n{_pick(rng, 'Summarise the text above.', 'Give the gist in one line.')}"
    return _Task(prompt, "", difficulty, 90)


def _chart(rng: np.random.Generator, difficulty: float) -> _Task:
    names = [chr(ord("A") + at) for at in range(_between(3, 16, difficulty))]
    values = [int(value) for value in rng.integers(5, 100, size=len(names))]
    asked = names[int(rng.integers(len(names)))]
    prompt = _pick(
        rng, "Which value does {} have in the chart?", "Read the value of {} off this chart."
    )
    answer = str(values[names.index(asked)])
    return _Task(prompt.format(asked), answer, difficulty, 30, draw_chart(rng, names, values))


def _shapes(rng: np.random.Generator, difficulty: float) -> _Task:
    kinds = [_pick(rng, *SHAPES) for _ in range(_between(3, 45, difficulty))]
    asked = _pick(rng, *SHAPES)
    prompt = _pick(rng, "How many {}s are there?", "Count the {}s in the picture.")
    answer = str(kinds.count(asked))
    return _Task(prompt.format(asked), answer, difficulty, 15, draw_shapes(rng, kinds))


def _table(rng: np.random.Generator, difficulty: float) -> _Task:
    n_rows, n_columns = _between(2, 14, difficulty), _between(2, 6, difficulty)
    header = ["item", *(f"Q{at + 1}" for at in range(n_columns))]
    items = [f"{word[:8]}" for word in rng.permutation(_WORDS)[:n_rows]]
    cells = rng.integers(10, 1000, size=(n_rows, n_columns))
    row, column = int(rng.integers(n_rows)), int(rng.integers(n_columns))
    rows = [header, *([item, *map(str, line)] for item, line in zip(items, cells, strict=True))]
    prompt = _pick(
        rng, "What does the table say for {} in {}?", "In the screenshot, what is {} under {}?"
    )
    text = prompt.format(items[row], header[column + 1])
    return _Task(text, str(cells[row, column]), difficulty, 20, draw_table(rng, rows))


_TASKS: Final[Mapping[str, Callable[[np.random.Generator, float], _Task]]] = {
    "arithmetic": _arithmetic,
    "code": _code,
    "translation": _translation,
    "trivia": _trivia,
    "summary": _summary,
    "chart": _chart,
    "shapes": _shapes,
    "table": _table,
}
# Five text topics at 12 % and three picture topics at 13.3 %: 40 % of the rows have a picture.
_CYCLE: Final = np.repeat(list(_TASKS), [9, 9, 9, 9, 9, 10, 10, 10])
