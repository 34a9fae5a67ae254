"""What the simulator knows: right answers by prompt and pictures.

A file of answers has one JSON object a line::

    {"prompt": "What is 2 + 3?", "answer": "5", "topic": "arithmetic", "difficulty": 0.1}
    {"prompt_sha256": "…", "images_sha256": ["…"], "answer": "7", "topic": "chart", …}

``prompt`` is the text of the last user turn (or ``prompt_sha256`` its digest), ``images_sha256``
the digests of all pictures' bytes in order, ``difficulty`` between 0 and 1, and ``output_tokens``
what an answer needs (by default a token for four characters).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Final

from pydantic import Field, ValidationError, model_validator

from router_runtime.config import Probability
from router_runtime.errors import ConfigError, DataError
from router_runtime.yaml_config import StrictModel

_POOL: Final = 500  # answers kept per topic, to err with

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _AnswerRow(StrictModel):
    """One line of the file."""

    prompt: str | None = None
    prompt_sha256: Digest | None = None
    images_sha256: tuple[Digest, ...] = ()
    answer: str = Field(min_length=1)
    topic: str = Field(min_length=1)
    difficulty: Probability = 0.5
    output_tokens: float | None = Field(default=None, gt=0, allow_inf_nan=False)

    @model_validator(mode="after")
    def _one_name(self) -> _AnswerRow:
        if (self.prompt is None) == (self.prompt_sha256 is None):
            raise ValueError("give one of 'prompt' and 'prompt_sha256'")
        return self


@dataclass(frozen=True, slots=True)
class KnownAnswer:
    """A right answer.

    Parameters
    ----------
    text : str
    topic : str
    difficulty : float
        From 0, easy, to 1.
    output_tokens : float or None
        What an answer needs; None: by the answer's length.
    """

    text: str
    topic: str
    difficulty: float
    output_tokens: float | None = None


@dataclass(frozen=True)
class KnownAnswers:
    """All that is known.

    Parameters
    ----------
    by_call : mapping
        Answers by ``call_digest``.
    by_topic : mapping
        Some answers of each topic, to answer wrongly with.
    """

    by_call: Mapping[bytes, KnownAnswer] = field(default_factory=dict)
    by_topic: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def find(self, prompt: str, images_sha256: Sequence[str]) -> KnownAnswer | None:
        """Return what is known of a prompt with these pictures."""
        return self.by_call.get(call_digest(text_digest(prompt), images_sha256))


def text_digest(text: str) -> str:
    """Return the digest that names a prompt; blanks around it do not count."""
    return hashlib.sha256(text.strip().encode("utf-8", "surrogatepass")).hexdigest()


def call_digest(prompt_sha256: str, images_sha256: Sequence[str]) -> bytes:
    """Return what names a prompt together with its pictures."""
    return hashlib.sha256("\n".join([prompt_sha256, *images_sha256]).encode()).digest()


def read_answers(path: Path) -> KnownAnswers:
    """Read a file of answers; of two for the same prompt and pictures the first counts.

    Raises
    ------
    ConfigError
        There is no such file.
    DataError
        A line is not as described above; names file, line and field.
    """
    by_call: dict[bytes, KnownAnswer] = {}
    by_topic: dict[str, list[str]] = {}
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    digest, known = _read(line, str(path), number)
                    by_call.setdefault(digest, known)
                    pool = by_topic.setdefault(known.topic, [])
                    if len(pool) < _POOL:
                        pool.append(known.text)
    except FileNotFoundError:
        raise ConfigError(
            f"The file of answers '{path}' does not exist; write one with: "
            f"router-train simulate {path.parent} --unlabelled"
        ) from None
    except UnicodeDecodeError as error:
        raise DataError("The file is not UTF-8.", file=str(path)) from error
    return KnownAnswers(by_call, by_topic)


def _read(line: str, file: str, number: int) -> tuple[bytes, KnownAnswer]:
    try:
        row = _AnswerRow.model_validate_json(line)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, problem["loc"])) or None
        raise DataError(problem["msg"], file=file, row=number, field=place) from None
    prompt = text_digest(row.prompt) if row.prompt is not None else str(row.prompt_sha256)
    known = KnownAnswer(row.answer, row.topic, row.difficulty, row.output_tokens)
    return call_digest(prompt, row.images_sha256), known


def answer_line(prompt: str, known: KnownAnswer, *, images_sha256: Sequence[str] = ()) -> str:
    """Return the line of a file of answers, with its line break."""
    row = {
        "prompt": prompt,
        "images_sha256": list(images_sha256),
        "answer": known.text,
        "topic": known.topic,
        "difficulty": known.difficulty,
    }
    if known.output_tokens is not None:
        row["output_tokens"] = known.output_tokens
    return json.dumps(row, ensure_ascii=False) + "\n"
