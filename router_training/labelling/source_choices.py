"""The choices of a multiple-choice row: read from any of the usual forms, lettered, looked up."""

from __future__ import annotations

import ast
import json
import re
import string
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from router_runtime.errors import DataError

_LETTERS = string.ascii_uppercase


@dataclass(frozen=True)
class Choices:
    """Texts to choose from.

    Parameters
    ----------
    texts : tuple of str
        In the order of their letters, A first.
    labels : tuple of str
        What the source calls them, which may be other letters or numbers; empty where it does not.
    """

    texts: tuple[str, ...]
    labels: tuple[str, ...] = ()

    @property
    def lines(self) -> str:
        """The choices as the prompt shows them."""
        return "\n".join(f"{at}. {text}" for at, text in zip(_LETTERS, self.texts, strict=False))

    def shown_in(self, prompt: str) -> bool:
        """Return whether the prompt already shows every choice beside its letter."""
        return all(
            re.search(rf"(?<!\w)\(?{at}\s?[.):]\s*{re.escape(text.strip())}", prompt)
            for at, text in zip(_LETTERS, self.texts, strict=False)
        )

    def letter_of(self, answer: Any) -> str | None:
        """Return the letter of the right choice; None where no answer is given.

        Raises
        ------
        DataError
            The answer is none of the choices.
        """
        if answer is None or answer == "":
            return None
        at = self._position(answer)
        if at is None or not 0 <= at < len(self.texts):
            raise DataError(
                "The answer is none of the choices; it must be a letter, a label, a choice's text "
                "or its position from 0.",
                field="answer",
            )
        return _LETTERS[at]

    def _position(self, answer: Any) -> int | None:
        if isinstance(answer, int) and not isinstance(answer, bool) and not self.labels:
            return answer
        text = str(answer).strip()
        if text in (labels := [label.strip() for label in self.labels]):
            return labels.index(text)
        bare = text.strip("().").upper()
        letters = _LETTERS[: len(self.texts)]
        letter = letters.index(bare) if len(bare) == 1 and bare in letters else None
        if text in (texts := [choice.strip() for choice in self.texts]):
            if letter not in (None, texts.index(text)):
                raise DataError(
                    "The answer is the letter of one choice and the text of another; give its "
                    "position from 0.",
                    field="answer",
                )
            return texts.index(text)
        if letter is None and text.isascii() and text.isdigit():
            return int(text)
        return letter


def read_choices(value: Any) -> Choices | None:
    """Return a row's choices; None where it has none.

    Parameters
    ----------
    value : list, mapping or str
        Texts; ``{"text": [...], "label": [...]}``; ``{"A": text, ...}``; or the text of a JSON or
        Python list.

    Raises
    ------
    DataError
        Another form, or fewer than 2 or more than 26 choices.
    """
    if isinstance(value, str) and value.strip():
        value = _parsed(value.strip())
    if value is None or value in ("", [], {}):
        return None
    labels: list[Any] = []
    if isinstance(value, Mapping):
        if isinstance(value.get("text"), list | tuple):
            labels, texts = list(value.get("label") or ()), list(value["text"])
        else:  # Parquet fills the letters that only other rows have with nulls
            kept = {key: text for key, text in value.items() if text is not None}
            labels, texts = list(kept), list(kept.values())
    elif isinstance(value, list | tuple):
        texts = list(value)
    else:
        raise DataError(f"It is {type(value).__name__}; it must be a list.", field="choices")
    if not 2 <= len(texts) <= len(_LETTERS) or len(labels) not in (0, len(texts)):
        raise DataError(
            f"There are {len(texts)} choices and {len(labels)} labels; 2 to {len(_LETTERS)} choices"
            ", each with a label or none, can be lettered.",
            field="choices",
        )
    return Choices(tuple(map(str, texts)), tuple(map(str, labels)))


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        pass
    try:
        with warnings.catch_warnings(action="ignore"):  # of backslashes in a text
            return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        raise DataError(
            "The text is neither a JSON nor a Python list of choices.", field="choices"
        ) from None
