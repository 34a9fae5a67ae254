"""Rows of any of the known shapes become records without scores, as ``samples`` reads them.

prompt
    A column of text, with pictures before it; or of turns, as TRL writes prompts (and the answer,
    as ``completion``). ``<image>`` in a user's text stands for the next picture where there are as
    many as pictures and no picture parts.
messages
    OpenAI's turns. Trailing assistant turns are the reference. ``<image>`` as in prompts.
texts
    FineVision's list of ``{"user", "assistant"}``: the turns of one conversation, of which the last
    assistant's is the reference. Pictures stand before the first turn.
conversations
    Turns with ``from`` and ``value`` (or ``role`` and ``content``); ``<image>`` is a picture.

Where a row has choices, they are written below the question as lettered lines, unless it shows
them already, and the reference becomes the letter of the right one: of a letter, a label, a
choice's text or a position counted from 0.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any, Final

from router_runtime.errors import DataError
from router_runtime.types import Json
from router_training.labelling.source_choices import Choices, read_choices
from router_training.labelling.source_columns import Columns, value_at
from router_training.pictures import PLACEHOLDER, parts_of

_OTHER_ROLES: Final = {"human": "user", "gpt": "assistant", "model": "assistant"}
_ROLES: Final = {
    **_OTHER_ROLES,
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
}
_PICTURE_PARTS: Final = ("image", "image_url", "input_image")
_TURN: Final = {"role", "content"}
_TEXT_PART: Final = {"type", "text"}
_SEPARATORS: Final = re.compile(r"[,\s]+")


def to_record(row: Mapping[str, Any], columns: Columns, *, dataset: str | None) -> dict[str, Json]:
    """Return one row as a record.

    Parameters
    ----------
    row : mapping
    columns : Columns
    dataset : str or None
        The data set's name for rows that give none.

    Returns
    -------
    dict
        ``idx``, ``prompt`` or ``messages``, ``images`` (bytes, paths or mappings, as they came),
        ``answer``, ``group``, ``dataset``, ``choices`` and ``scorer`` (lists of text).

    Raises
    ------
    DataError
        Naming the field.
    """
    images = _images(row, columns)
    turns = _turns(row, columns, len(images))
    answer = value_at(row, columns.answer)
    while turns and turns[-1].get("role") == "assistant":
        said = _text(turns.pop().get("content"))
        answer = said if answer is None else answer
    choices = read_choices(value_at(row, columns.choices))
    if choices is not None:
        _show(choices, turns)
        answer = choices.letter_of(answer)
    system = value_at(row, columns.system)
    if system and not any(turn.get("role") in ("system", "developer") for turn in turns):
        turns.insert(0, {"role": "system", "content": system})
    named = value_at(row, columns.dataset)
    return {
        "idx": _identity(value_at(row, columns.id)),
        **_asked(turns, len(images)),
        "images": images,
        "answer": _plain(answer),
        "group": _identity(value_at(row, columns.group)),
        "dataset": dataset if named is None else str(named),
        "choices": [] if choices is None else list(choices.texts),
        "scorer": _names(value_at(row, columns.scorer)),
    }


def _asked(turns: list[dict[str, Any]], n_images: int) -> dict[str, Json]:
    """Return a single user turn as a prompt, and anything else as messages."""
    if not turns:
        raise DataError("The row asks nothing.", field="messages")
    content = turns[0].get("content")
    if len(turns) == 1 and turns[0].get("role") == "user" and set(turns[0]) == _TURN:
        if isinstance(content, str):
            return {"prompt": content}
        if isinstance(content, list) and len(content) == n_images + 1:
            *pictures, last = content
            if all(part == {"type": "image"} for part in pictures) and set(last) == _TEXT_PART:
                return {"prompt": last["text"]}
    return {"messages": turns}


def _turns(row: Mapping[str, Any], columns: Columns, n_images: int) -> list[dict[str, Any]]:
    value = value_at(row, columns.turns)
    if columns.turns is None or (value is None and columns.prompt is not None):
        prompt = value_at(row, columns.prompt)
        if not isinstance(prompt, list | tuple):
            if not isinstance(prompt, str):
                kind = "missing" if prompt is None else type(prompt).__name__
                raise DataError(f"The prompt is {kind}; it must be text.", field=columns.prompt)
            prompt = [{"role": "user", "content": prompt}]
        turns = _chat(prompt, columns.prompt)
    elif columns.shape == "texts":
        return _fine_vision(_listed(value, columns.turns), columns.turns, n_images)
    else:
        turns = _chat(_listed(value, columns.turns), columns.turns)
    return _with_placeholders(turns, n_images, always=columns.shape == "conversations")


def _listed(value: Any, field: str | None) -> Sequence[Any]:
    if isinstance(value, str) and value.lstrip().startswith("["):  # as Parquet and CSV hold them
        try:
            value = json.loads(value)
        except ValueError:
            raise DataError("The text is not a JSON list of turns.", field=field) from None
    if not isinstance(value, list | tuple) or not value:
        raise DataError("It must be a list of turns.", field=field)
    return value


def _chat(turns: Sequence[Any], field: str | None) -> list[dict[str, Any]]:
    return [_turn(turn, field) for turn in turns]


def _turn(turn: Any, field: str | None) -> dict[str, Any]:
    if not isinstance(turn, Mapping):
        raise DataError(f"A turn is {type(turn).__name__}; it must be an object.", field=field)
    if (named := turn.get("role")) is not None:
        kept = {key: value for key, value in turn.items() if value is not None}
        return {**kept, "role": _OTHER_ROLES.get(str(named), named)}
    role = _ROLES.get(str(turn.get("from")))
    if role is None or not isinstance(turn.get("value"), str):
        raise DataError(
            "A turn must have 'role' and 'content', or 'from' (system, human or gpt) and a text "
            "'value'.",
            field=field,
        )
    return {"role": role, "content": turn["value"]}


def _fine_vision(pairs: Sequence[Any], field: str | None, n_images: int) -> list[dict[str, Any]]:
    turns: list[dict[str, Any]] = []
    for pair in pairs:
        said = {} if not isinstance(pair, Mapping) else pair
        if not isinstance(said.get("user"), str):
            raise DataError("A turn must have a text 'user' and 'assistant'.", field=field)
        turns.append({"role": "user", "content": said["user"]})
        if isinstance(said.get("assistant"), str):
            turns.append({"role": "assistant", "content": said["assistant"]})
    placed = _with_placeholders(turns, n_images, always=False)
    if n_images and not any(isinstance(turn["content"], list) for turn in placed):
        text = {"type": "text", "text": placed[0]["content"]}
        placed[0] = {**placed[0], "content": [*[{"type": "image"}] * n_images, text]}
    return placed


def _with_placeholders(
    turns: list[dict[str, Any]], n_images: int, *, always: bool
) -> list[dict[str, Any]]:
    """Split users' texts at ``<image>``: always, or where that places all pictures of the row."""
    texts = [turn for turn in turns if turn.get("role") == "user"]
    if not always:
        if any(_has_picture(turn) for turn in turns):
            return turns
        marks = sum(_text(turn.get("content")).count(PLACEHOLDER) for turn in texts)
        if not n_images or marks != n_images:
            return turns
    return [_split(turn) if turn.get("role") == "user" else turn for turn in turns]


def _has_picture(turn: Mapping[str, Any]) -> bool:
    content = turn.get("content")
    parts = content if isinstance(content, list) else []
    return any(isinstance(part, Mapping) and part.get("type") in _PICTURE_PARTS for part in parts)


def _split(turn: dict[str, Any]) -> dict[str, Any]:
    content = turn.get("content")
    if not isinstance(content, str) or PLACEHOLDER not in content:
        return turn
    return {**turn, "content": parts_of(content)}


def _show(choices: Choices, turns: list[dict[str, Any]]) -> None:
    """Write the choices below the last user turn, where it does not show them."""
    at = max((at for at, turn in enumerate(turns) if turn.get("role") == "user"), default=None)
    if at is None:
        raise DataError("A row with choices has no user turn to show them in.", field="choices")
    content = turns[at].get("content")
    if choices.shown_in(_text(content)):
        return
    if isinstance(content, list):
        content = [*content, {"type": "text", "text": choices.lines}]
    else:
        content = f"{str(content or '').rstrip()}\n\n{choices.lines}".lstrip()
    turns[at] = {**turns[at], "content": content}


def _text(content: Any) -> str:
    """Return the text of a turn's content."""
    if isinstance(content, list | tuple):
        texts = [part.get("text") if isinstance(part, Mapping) else part for part in content]
        return "\n".join(text for text in texts if isinstance(text, str) and text)
    return content if isinstance(content, str) else ""


def _images(row: Mapping[str, Any], columns: Columns) -> list[Any]:
    found: list[Any] = []
    for column in columns.images:
        value = value_at(row, column)
        many = isinstance(value, list | tuple)
        found += [item for item in (value if many else [value]) if item not in (None, "")]
    return found


def _identity(value: Any) -> Any:
    return str(value) if isinstance(value, float | Decimal) and value == value else value


def _names(value: Any) -> list[str]:
    """Return the scorers that a row names: a list, or text with commas or blanks between them."""
    if isinstance(value, list | tuple):
        return [str(name) for name in value if name]
    return [name for name in _SEPARATORS.split(str(value or "")) if name]


def _plain(value: Any) -> Json:
    """Return an answer as text or JSON; a column of dates arrives as times."""
    if isinstance(value, datetime.datetime):
        midnight = value.time() == datetime.time() and value.tzinfo is None
        return (value.date() if midnight else value).isoformat()
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, Decimal):
        return str(value)
    if isinstance(value, bytes):
        raise DataError("The answer is bytes; it must be text.", field="answer")
    if isinstance(value, float) and value != value:  # how tables of numbers say missing
        return None
    if isinstance(value, list | tuple) and any(_is_said(turn) for turn in value):
        return _text(_chat(value, "answer")[-1].get("content"))
    return value


def _is_said(turn: Any) -> bool:
    return isinstance(turn, Mapping) and _TURN <= set(turn)
