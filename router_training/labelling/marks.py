"""What people marked: the audit's CSV, out to a spreadsheet and back.

Cells that a spreadsheet would take for a formula get an apostrophe before them (OWASP, "CSV
injection"), which reading takes away again, so that ids match whatever they begin with.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final, TypeAlias

from router_runtime.errors import DataError

AnswerId: TypeAlias = tuple[str, str]
"""Which answer: (sample id, model id)."""

_OPENS: Final = r"[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]"  # the last four are full-width = + - @
_FORMULA: Final = re.compile(rf"'*{_OPENS}")
_ESCAPED: Final = re.compile(rf"'+{_OPENS}")
_YES: Final = frozenset({"yes", "y", "true", "good", "right", "correct"})
_NO: Final = frozenset({"no", "n", "false", "bad", "wrong", "incorrect"})
_UNSURE: Final = frozenset({"", "unsure", "?", "-"})
_IDS: Final = ("id", "idx", "sample_id")
_MODELS: Final = ("model", "model_id")
_HUMAN: Final = "human"


@dataclass(frozen=True)
class Marks:
    """Human scores of answers.

    Parameters
    ----------
    scores : mapping
        Score in [0, 1] by (sample id, model id); answers without a mark are not in it.
    n_unsure : int
        Answers that somebody looked at and would not decide, or left blank.
    """

    scores: Mapping[AnswerId, float]
    n_unsure: int = 0


def write_csv(header: Iterable[str], rows: Iterable[Iterable[str]]) -> bytes:
    """Return a table as CSV that spreadsheets open as text: UTF-8 with a mark, no formula."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    for row in (header, *rows):
        writer.writerow([guarded(cell) for cell in row])
    return text.getvalue().encode("utf-8-sig", errors="replace")


def guarded(cell: str) -> str:
    """Return a cell's text with an apostrophe before what would be a formula."""
    return f"'{cell}" if _FORMULA.match(cell) else cell


def unguarded(cell: str) -> str:
    """Return what ``guarded`` was given."""
    return cell[1:] if _ESCAPED.match(cell) else cell


def read_marks(path: str | Path) -> Marks:
    """Read the audit CSV after somebody filled its column ``human``.

    The columns are found by their names, ``id``, ``model`` and ``human``; all others are left
    aside, and so is the separator that a spreadsheet chose (comma, semicolon or tab). A mark is
    ``yes`` or ``no`` (also true, false, 1, 0, right, wrong), a number in [0, 1], or blank or
    ``unsure`` for none.

    Raises
    ------
    DataError
        The file cannot be read, has no such columns, a mark is none of these, or one answer has
        two different marks.
    """
    path = Path(path)
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"The file cannot be read: {error.strerror}.", file=str(path)) from error
    except UnicodeDecodeError as error:
        raise DataError("The file is not UTF-8; save it as UTF-8.", file=str(path)) from error
    first = text.partition("\n")[0]
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter=max(",;\t", key=first.count), strict=True
    )
    try:
        return _marks_of(reader, str(path))
    except csv.Error as error:
        raise DataError(
            f"Invalid CSV near line {reader.line_num}: {error}.", file=str(path)
        ) from error


def _marks_of(rows: Iterable[list[str]], file: str) -> Marks:
    scores: dict[AnswerId, float] = {}
    n_unsure = 0
    lines = iter(rows)
    header = [name.strip().lower() for name in next(lines, [])]
    places = [_place(header, names, file) for names in (_IDS, _MODELS, (_HUMAN,))]
    for number, row in enumerate(lines, start=1):
        if not any(cell.strip() for cell in row):
            continue
        if len(row) <= max(places):
            raise DataError(f"The row has {len(row)} cells.", file=file, row=number)
        sample, model, mark = (unguarded(row[place]) for place in places)
        score = _score(mark, file, number)
        if score is None:
            n_unsure += 1
        elif scores.setdefault((sample, model), score) != score:
            raise DataError(
                f"The answer of '{model}' to '{sample}' has another mark in an earlier row; keep "
                "one.",
                file=file,
                row=number,
            )
    return Marks(MappingProxyType(scores), n_unsure)


def _place(header: list[str], names: tuple[str, ...], file: str) -> int:
    for name in names:
        if name in header:
            return header.index(name)
    found = ", ".join(repr(name) for name in header[:20]) or "none"
    raise DataError(f"There is no column '{names[0]}' (columns: {found}).", file=file)


def _score(mark: str, file: str, row: int) -> float | None:
    word = mark.strip().lower()
    if word in _UNSURE:
        return None
    if word in _YES or word in _NO:
        return float(word in _YES)
    try:
        value = float(word.replace(",", "."))
    except ValueError:
        value = math.nan
    if not 0.0 <= value <= 1.0:
        raise DataError(
            f"The mark {word[:40]!r} is none; write yes, no, a number from 0 to 1, or unsure.",
            file=file,
            row=row,
            field=_HUMAN,
        )
    return value
