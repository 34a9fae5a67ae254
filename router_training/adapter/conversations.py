"""Classification conversations: what ``convert-routing-to-classification`` writes, read to learn.

``{"id", "image" (or "images"), "conversations": [system, human, gpt]}``: the system turn is the
same in every row, the human turn is a question and, below a blank line, the request's text; the gpt
turn is a name and nothing else. What is the same in all rows is how a request is put, and is kept
in the artifact; the rest is the request, and meets requests as they come when it serves. Pictures
stand before the text, wherever their placeholders were.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from router_runtime.errors import DataError
from router_runtime.images import DEFAULT_LIMITS
from router_runtime.prediction.adapter import AdapterPrompt, Shown
from router_training.formats import Row, read_rows
from router_training.importers import adapters_of
from router_training.labels import Evaluations, OnBadRow, evaluations_from_rows
from router_training.pictures import PLACEHOLDER, Pictures, parts_of
from router_training.splits import split_evaluations

TRAIN: Final = "train-classification.jsonl"
VALIDATION: Final = ("val-classification.jsonl", "eval-classification.jsonl")
_HELD_OUT = (0.9, 0.1, 0.0, 0.0)


@dataclass(frozen=True, eq=False)
class Conversations:
    """Rows to learn from and to stop by, and how requests are put.

    Parameters
    ----------
    prompt : AdapterPrompt
    train, validation : Evaluations
        Columns are the names.
    divided : bool
        The validation rows were taken from the training file.
    """

    prompt: AdapterPrompt
    train: Evaluations
    validation: Evaluations
    divided: bool


@dataclass(frozen=True)
class _Parsed:
    """A row's turns: the system's, how many pictures, the paragraphs of the question, the name."""

    value: Mapping[str, Any]
    system: str
    n_pictures: int
    first: str
    rest: str
    answer: str


def read_conversations(
    data: Path,
    eval_data: Path | None = None,
    *,
    image_root: Path | None = None,
    on_bad_row: OnBadRow = "error",
    seed: int = 0,
) -> Conversations:
    """Read training and validation conversations.

    Parameters
    ----------
    data : Path
        A file, or the folder that holds ``train-classification.jsonl``.
    eval_data : Path, optional
        By default ``val-classification.jsonl`` or ``eval-classification.jsonl`` of such a folder;
        without any a tenth of the rows is held out, rows with a common picture together.
    image_root : Path, optional
        Where pictures are; default: beside the file.
    on_bad_row : {"error", "skip"}
    seed : int
        Of what is held out.

    Raises
    ------
    DataError
        Naming file, row and field.
    """
    file = data / TRAIN if data.is_dir() else data
    if eval_data is None and data.is_dir():
        found = [data / name for name in VALIDATION if (data / name).is_file()]
        eval_data = found[0] if found else None
    rows = list(_parsed(file))
    prompt = _prompt_of(rows, file)
    names = adapters_of(file.parent)
    answers = sorted({row.answer for _, row in rows if isinstance(row, _Parsed)} - {""})
    if not set(answers) <= set(names):
        names = tuple(answers)
    train = _evaluations(rows, file, prompt, names, image_root, on_bad_row)
    if eval_data is None:
        split = split_evaluations(train, fractions=_HELD_OUT, seed=seed)
        learned = replace(train.take(split.train), skipped=train.skipped)
        return Conversations(prompt, learned, train.take(split.validation), True)
    validation = _evaluations(
        _parsed(eval_data), eval_data, prompt, train.model_ids, image_root, on_bad_row
    )
    return Conversations(prompt, train, validation, False)


def _parsed(file: Path) -> Iterator[tuple[int, _Parsed | DataError]]:
    for row in read_rows(file):
        try:
            if isinstance(row.value, DataError):
                raise row.value
            yield row.number, _turns(row.value)
        except DataError as error:
            yield row.number, error


def _turns(value: Mapping[str, Any]) -> _Parsed:
    turns = value.get("conversations")
    said = [
        (turn.get("from"), turn.get("value")) if isinstance(turn, Mapping) else (None, None)
        for turn in (turns if isinstance(turns, list) else ())
    ]
    system = ""
    if said and said[0][0] == "system" and isinstance(said[0][1], str):
        system = str(said.pop(0)[1])
    speakers = [speaker for speaker, _ in said]
    texts = [text for _, text in said if isinstance(text, str)]
    if speakers != ["human", "gpt"] or len(texts) != len(said):
        raise DataError(
            "It must be one question and its answer: [system,] human, gpt, each with a text "
            "'value'. Make such rows with: router-train convert-routing-to-classification",
            field="conversations",
        )
    parts = parts_of(texts[0])
    text = "\n".join(part["text"] for part in parts if part["type"] == "text")
    first, _, rest = text.partition("\n\n")
    n_pictures = sum(part["type"] == "image" for part in parts)
    return _Parsed(value, system, n_pictures, first, rest, texts[1].strip())


def _prompt_of(rows: Iterable[tuple[int, _Parsed | DataError]], file: Path) -> AdapterPrompt:
    usable = [row for _, row in rows if isinstance(row, _Parsed)]
    if not usable:
        raise DataError("No row is a conversation of a question and its answer.", file=str(file))
    seeing = [row for row in usable if row.n_pictures]
    reading = [row for row in usable if not row.n_pictures]
    question, text_question = asked = _common(seeing), _common(reading)
    texts = any(_request(row, asked[not row.n_pictures]) for row in usable)
    shows: Shown = "both"
    if not seeing:
        shows = "request"
    elif not texts:
        shows = "picture"
    return AdapterPrompt(
        system=usable[0].system,
        question=question if question is not None else text_question or "",
        text_question=text_question if text_question is not None else question or "",
        shows=shows,
    )


def _common(rows: Sequence[_Parsed]) -> str | None:
    """Return the first paragraph that all rows share; empty where they share none."""
    if not rows:
        return None
    return rows[0].first if all(row.first == rows[0].first for row in rows) else ""


def _request(row: _Parsed, question: str | None) -> str:
    """Return the text below the question."""
    if not question:
        return "\n\n".join(part for part in (row.first, row.rest) if part)
    return row.rest


def _evaluations(
    rows: Iterable[tuple[int, _Parsed | DataError]],
    file: Path,
    prompt: AdapterPrompt,
    names: Sequence[str],
    image_root: Path | None,
    on_bad_row: OnBadRow,
) -> Evaluations:
    return evaluations_from_rows(
        (_converted(number, row, prompt) for number, row in rows),
        source=str(file),
        pictures=Pictures(file.parent if image_root is None else image_root, limits=DEFAULT_LIMITS),
        model_ids=names,
        on_bad_row=on_bad_row,
    )


def _converted(number: int, row: _Parsed | DataError, prompt: AdapterPrompt) -> Row:
    """Return a row as one conversation of the request alone and the name."""
    if isinstance(row, DataError):
        return Row(number, row)
    if row.system != prompt.system:
        return Row(
            number,
            DataError(
                "Its system turn differs from that of the first row; an adapter is told one thing.",
                field="conversations",
            ),
        )
    question = prompt.question if row.n_pictures else prompt.text_question
    if question and row.first != question:
        return Row(
            number,
            DataError(
                f"Its question is not the training rows' ({question!r:.80}).", field="conversations"
            ),
        )
    human = PLACEHOLDER * row.n_pictures + _request(row, question)
    kept = {key: row.value[key] for key in ("id", "image", "images") if key in row.value}
    turns = [{"from": "human", "value": human}, {"from": "gpt", "value": row.answer}]
    return Row(number, {**kept, "conversations": turns})
