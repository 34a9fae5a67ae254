"""Which columns of a data set hold what: as configured, else by the names that are usual.

A column is looked for under a key's own name and its synonyms, in the order of ``_USUAL``. ``a.b``
reaches into structs where no column is called ``a.b``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

from router_runtime.errors import DataError
from router_training.labelling.config import ColumnsConfig, SourceConfig

Shape: TypeAlias = Literal["prompt", "messages", "texts", "conversations"]

_USUAL: Final[Mapping[str, tuple[str, ...]]] = {
    "id": ("id", "idx", "question_id", "sample_id", "qid", "uid"),
    "prompt": ("prompt", "question", "query", "problem", "instruction", "input", "text"),
    "system": ("system", "system_prompt"),
    "answer": (
        "answer",
        "reference",
        "answerKey",
        "answer_key",
        "correct_answer",
        "ground_truth",
        "solution",
        "target",
        "gold",
        "response",
        "completion",
        "output",
    ),
    "images": ("images", "image"),
    "messages": ("messages",),
    "texts": ("texts",),
    "conversations": ("conversations", "conversation"),
    "choices": ("choices", "options"),
    "group": ("group", "group_id"),
    "dataset": ("dataset", "data_source"),
    "scorer": ("scorer", "scorers"),
}
_SHAPES: Final[tuple[Shape, ...]] = ("messages", "texts", "conversations", "prompt")
_NUMBERED: Final = re.compile(r"image_?(\d+)")


@dataclass(frozen=True)
class Columns:
    """Where each thing stands in a row; None where the data set has no such thing.

    Parameters
    ----------
    shape : str
        How a row holds the conversation; ``prompt`` also serves rows whose turns are null.
    images : tuple of str
        All their pictures count, in this order.
    """

    shape: Shape
    id: str | None
    prompt: str | None
    system: str | None
    answer: str | None
    images: tuple[str, ...]
    turns: str | None
    choices: str | None
    group: str | None
    dataset: str | None
    scorer: str | None


def find_columns(config: SourceConfig, rows: Iterable[Mapping[str, Any]]) -> Columns:
    """Return the columns of a data set.

    Parameters
    ----------
    config : SourceConfig
    rows : iterable of mapping
        Rows, of which one at least has each column; gone through once.

    Raises
    ------
    DataError
        A column that the config names is in none of the rows, nothing tells what to ask, or several
        columns do; listing the columns that there are.
    """
    given = config.columns
    names, missing = _seen(rows, _named(given))
    if missing:
        key, column = missing[0]
        raise _unknown(f"data.columns.{key} names {column!r}, which is no column", names)
    shape = _shape(config, names)
    if shape is None:
        raise _unknown(
            "No column is known to hold a prompt, messages, texts or conversations; name one under "
            "data.columns",
            names,
        )
    turns = None if shape == "prompt" else _found(given, shape, names)
    prompt = _found(given, "prompt", names)
    if turns is None and (shape != "prompt" or prompt is None):
        raise _unknown(f"data.shape is '{shape}' and no column holds that; name it", names)
    if turns is None and given.prompt is None and prompt == "instruction" and "input" in names:
        raise _unknown(
            "'instruction' and 'input' may both belong to the question; name the one column that "
            "holds all of it as data.columns.prompt",
            names,
        )
    return Columns(
        shape=shape,
        id=_found(given, "id", names),
        prompt=prompt,
        system=_found(given, "system", names),
        answer=_found(given, "answer", names, but=(prompt, turns)),
        images=given.images or _pictures(names),
        turns=turns,
        choices=_found(given, "choices", names),
        group=_found(given, "group", names),
        dataset=_found(given, "dataset", names),
        scorer=_found(given, "scorer", names),
    )


def value_at(row: Mapping[str, Any], column: str | None) -> Any:
    """Return what a row holds under a column, None where it holds nothing."""
    if column is None:
        return None
    if column in row:
        return row[column]
    value: Any = row
    for name in column.split("."):
        if not isinstance(value, Mapping):
            return None
        value = value.get(name)
    return value


def _seen(
    rows: Iterable[Mapping[str, Any]], wanted: list[tuple[str, str]]
) -> tuple[tuple[str, ...], list[tuple[str, str]]]:
    """Return the names of all columns, and which of the wanted (key, column) no row has."""
    names: dict[str, None] = {}
    for row in rows:
        names.update(dict.fromkeys(row))
        wanted = [(key, column) for key, column in wanted if not _has(row, column)]
    return tuple(names), wanted


def _named(columns: ColumnsConfig) -> list[tuple[str, str]]:
    """Return (key, column) of every column that the config names."""
    given = [(key, value) for key, value in columns if isinstance(value, str)]
    return given + [("images", column) for column in columns.images]


def _has(row: Mapping[str, Any], column: str) -> bool:
    if column in row:
        return True
    head, dot, rest = column.partition(".")
    inner = row.get(head)
    return bool(dot) and isinstance(inner, Mapping) and _has(inner, rest)


def _shape(config: SourceConfig, names: Sequence[str]) -> Shape | None:
    if config.shape != "auto":
        return config.shape
    given = [shape for shape in _SHAPES if getattr(config.columns, shape) is not None]
    found = [shape for shape in _SHAPES if any(name in names for name in _USUAL[shape])]
    return next(iter(given + found), None)


def _found(
    given: ColumnsConfig, key: str, names: Sequence[str], *, but: Sequence[str | None] = ()
) -> str | None:
    named: str | None = getattr(given, key)
    if named is not None:
        return named
    return next((name for name in _USUAL[key] if name in names and name not in but), None)


def _pictures(names: Sequence[str]) -> tuple[str, ...]:
    """Return the usual columns of pictures: one, or ``image_1``, ``image_2`` and so on.

    Of several such, which may hold the same pictures or further ones, none is left out silently.
    """
    usual = [name for name in _USUAL["images"] if name in names]
    numbered = [(int(found[1]), name) for name in names if (found := _NUMBERED.fullmatch(name))]
    every = (*usual, *(name for _, name in sorted(numbered)))
    if usual and len(every) > 1:
        both = " and ".join(map(repr, every[:2]))
        raise _unknown(f"{both} may both hold pictures; name data.columns.images", names)
    return every


def _unknown(message: str, names: Sequence[str]) -> DataError:
    shown = ", ".join(map(repr, names)) or "(none)"
    return DataError(f"{message}. The columns are {shown}.")
