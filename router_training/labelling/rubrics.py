"""What the LLM judge is asked: versioned templates, and data that stays data.

A template is a Markdown file with a YAML front matter (``name``, ``version``, ``verdict``:
``yes_no``, ``score`` or ``winner``, and the ``scale`` of a score), a ``[system]`` part and a
``[user]`` part. In the user part stand placeholders; each is replaced once, by a block, and what
was put in is never looked at again, so a placeholder inside an answer is only text:

``{{prompt}}``, ``{{reference}}``, ``{{answer}}``, ``{{answer_a}}``, ``{{answer_b}}``
    ::

        <data-0123456789abcdef name="answer">
        the text as it is
        </data-0123456789abcdef>

    ``name`` is the placeholder's. The sixteen hex digits are a digest of everything that is put
    into this call (pictures too): equal calls are equal to the byte, and no text can hold the
    closing tag of the call that it is in (checked; the digest is taken again if it did).
``{{pictures}}``
    ``<data-… name="pictures">``, a line break, the pictures, a line break, ``</data-…>``. Pictures
    are ``image_url`` parts with data URIs, so that the user message's ``content`` is then a list:
    a text part up to the opening tag, the pictures, a text part from the closing tag on. Without
    pictures the block is the word ``none`` without tags, or ``N, not shown`` where the judge may
    not see them, and ``content`` is one string. The texts of a list, joined by nothing, read the
    same but for the pictures.

A call has exactly two messages, ``system`` and ``user``. The user message ends with how to reply,
behind all data, which depends on the mode:

``json_schema``, ``json_object``
    ``Reply with one JSON object and nothing else: {...}``, and the call's ``response_format`` is
    ``{"type": "json_schema", "json_schema": {"name": "verdict", "strict": true, "schema": ...}}``
    or ``{"type": "json_object"}``. The object has ``explanation`` (text) and, by the kind of
    verdict, ``verdict`` (``"yes"`` or ``"no"``), ``score`` (a whole number of the scale) or
    ``winner`` (``"A"``, ``"B"`` or ``"tie"``).
``text``
    The reply's last line is to be ``Verdict: yes`` (``no``; ``7``; ``A``, ``B``, ``tie``).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Final, Literal, TypeAlias

import yaml
from pydantic import Field, model_validator

from router_runtime.errors import ConfigError
from router_runtime.targets.base import ChatCall
from router_runtime.types import Image, Json
from router_runtime.yaml_config import StrictModel, validate
from router_training.labelling.samples import image_part

Mode: TypeAlias = Literal["json_schema", "json_object", "text"]

BUILT_IN: Final = ("correctness", "quality", "pairwise")
PICTURES: Final = "pictures"
FIELDS: Final = ("prompt", "reference", "answer", "answer_a", "answer_b", PICTURES)
NONCE_DIGITS: Final = 16

_PLACEHOLDER: Final = re.compile(r"\{\{([^{}]*)\}\}")
_FILE: Final = re.compile(r"---\n(.*?)\n---\n\s*\[system\]\n(.*?)\n\[user\]\n(.*)", re.DOTALL)


class _Front(StrictModel):
    """The front matter of a template."""

    name: str = Field(pattern=r"^[\w.-]{1,64}$")
    version: int = Field(ge=1)
    verdict: Literal["yes_no", "score", "winner"]
    scale: tuple[int, int] | None = None

    @model_validator(mode="after")
    def _scaled(self) -> _Front:
        if (self.scale is not None) != (self.verdict == "score"):
            raise ValueError("'scale: [lowest, highest]' and 'verdict: score' go together")
        if self.scale is not None and not 1 <= self.scale[1] - self.scale[0] <= 100:
            raise ValueError("'scale' must rise by 1 to 100")
        return self


@dataclass(frozen=True)
class Rubric:
    """A template that a judge is asked by.

    Parameters
    ----------
    name : str
    version : int
        Raised with every change of a template that is in use.
    verdict : str
        ``yes_no``, ``score`` or ``winner``.
    system, user : str
        The two messages, the second with placeholders.
    scale : tuple of int, or None
        Lowest and highest score, linear to 0 and 1; None unless ``verdict`` is ``score``.
    """

    name: str
    version: int
    verdict: Literal["yes_no", "score", "winner"]
    system: str
    user: str
    scale: tuple[int, int] | None = None

    @cached_property
    def needs(self) -> frozenset[str]:
        """Names of the placeholders."""
        return frozenset(_PLACEHOLDER.findall(self.user))

    @cached_property
    def digest(self) -> str:
        """Hex SHA-256 of the whole template."""
        content = [self.name, self.version, self.verdict, self.scale, self.system, self.user]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    @cached_property
    def values(self) -> tuple[str | int, ...]:
        """The verdicts that there are, as they stand in a reply."""
        if self.scale is not None:
            return tuple(range(self.scale[0], self.scale[1] + 1))
        return ("yes", "no") if self.verdict == "yes_no" else ("A", "B", "tie")

    @property
    def key(self) -> str:
        """The verdict's key in a structured reply."""
        return {"yes_no": "verdict", "score": "score", "winner": "winner"}[self.verdict]

    @property
    def combine(self) -> Literal["majority", "mean"]:
        """How votes are joined unless the config says: scores of a scale seldom have a majority."""
        return "majority" if self.scale is None else "mean"

    @property
    def schema(self) -> dict[str, Json]:
        """JSON schema of a structured reply; the explanation comes before what follows from it."""
        kind = "integer" if self.scale is not None else "string"
        return {
            "type": "object",
            "properties": {
                "explanation": {"type": "string"},
                self.key: {"type": kind, "enum": list(self.values)},
            },
            "required": ["explanation", self.key],
            "additionalProperties": False,
        }


@dataclass(frozen=True)
class JudgeData:
    """What is put into a template.

    Parameters
    ----------
    texts : mapping
        By placeholder; at least those that the rubric needs, save ``pictures``.
    pictures : tuple of Image
        Of the sample, in order.
    show : bool
        Whether the judge sees them; where it does not, it is told how many there are.
    """

    texts: Mapping[str, str]
    pictures: tuple[Image, ...] = ()
    show: bool = True


def load(name_or_path: str) -> Rubric:
    """Return a template of the package, or of a file.

    Raises
    ------
    ConfigError
        There is no such template, or the file is none.
    """
    if name_or_path in BUILT_IN:
        template = files("router_training.labelling") / "templates" / f"{name_or_path}.md"
        return parse_template(template.read_text(encoding="utf-8"), source=name_or_path)
    try:
        text = Path(name_or_path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ConfigError(
            f"The rubric '{name_or_path}' is neither one of {', '.join(BUILT_IN)} nor a file that "
            f"can be read ({why})."
        ) from None
    return parse_template(text, source=name_or_path)


def parse_template(text: str, *, source: str) -> Rubric:
    """Return the rubric that a template's text describes.

    Raises
    ------
    ConfigError
        Naming ``source`` and what is wrong.
    """
    found = _FILE.fullmatch(text.replace("\r\n", "\n").removeprefix("\ufeff"))
    if found is None:
        raise ConfigError(
            f"{source}: a rubric is '---', YAML, '---', then a line '[system]' with its text and a "
            "line '[user]' with its text."
        )
    try:
        content = yaml.safe_load(found[1])
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: not valid YAML: {' '.join(str(error).split())}") from error
    front = validate(_Front, content, source=source)
    rubric = Rubric(
        name=front.name,
        version=front.version,
        verdict=front.verdict,
        system=found[2].strip(),
        user=found[3].strip(),
        scale=front.scale,
    )
    _check_placeholders(rubric, source)
    return rubric


def _check_placeholders(rubric: Rubric, source: str) -> None:
    if unknown := sorted(rubric.needs - set(FIELDS)):
        raise ConfigError(
            f"{source}: there is no placeholder {{{{{unknown[0]}}}}} (known: {', '.join(FIELDS)})."
        )
    if _PLACEHOLDER.search(rubric.system):
        raise ConfigError(f"{source}: placeholders belong into [user]; [system] has one.")
    names = _PLACEHOLDER.findall(rubric.user)
    if twice := sorted(name for name in rubric.needs if names.count(name) > 1):
        raise ConfigError(f"{source}: {{{{{twice[0]}}}}} stands twice; once is enough.")
    answers = {"answer_a", "answer_b"} if rubric.verdict == "winner" else {"answer"}
    if rubric.needs & {"answer", "answer_a", "answer_b"} != answers:
        wanted = " and ".join(f"{{{{{name}}}}}" for name in sorted(answers))
        raise ConfigError(
            f"{source}: of the answers, 'verdict: {rubric.verdict}' takes exactly {wanted}."
        )


def judge_call(
    rubric: Rubric, data: JudgeData, *, mode: Mode, parameters: Mapping[str, Json]
) -> ChatCall:
    """Return the call that asks for one verdict; equal arguments give equal calls.

    Parameters
    ----------
    rubric : Rubric
    data : JudgeData
    mode : str
        How the reply is to be structured.
    parameters : mapping
        Sent along; a ``response_format`` among them is left out, the mode decides it.
    """
    head, tail = _filled(rubric, data)
    reply = f"\n\n{_reply(rubric, mode)}"
    content: Json = head + reply
    if tail is not None:
        parts = [image_part(image) for image in data.pictures]
        content = [_text_part(head), *parts, _text_part(tail + reply)]
    return ChatCall(
        messages=(
            {"role": "system", "content": rubric.system},
            {"role": "user", "content": content},
        ),
        parameters={
            **{name: value for name, value in parameters.items() if name != "response_format"},
            **_response_format(rubric, mode),
        },
    )


def _text_part(text: str) -> dict[str, Json]:
    return {"type": "text", "text": text}


def _filled(rubric: Rubric, data: JudgeData) -> tuple[str, str | None]:
    """Return the user message up to the pictures and from there on; None: none are shown.

    The template is cut at its placeholders once, so that what is put in is not searched.
    """
    tag = f"data-{_nonce(rubric, data)}"
    pieces: list[str] = []
    split: int | None = None
    for at, piece in enumerate(_PLACEHOLDER.split(rubric.user)):
        if at % 2 == 0:
            pieces.append(piece)
        elif piece == PICTURES and data.pictures and data.show:
            pieces.append(f'<{tag} name="{PICTURES}">\n')
            split = len(pieces)
            pieces.append(f"\n</{tag}>")
        elif piece == PICTURES:
            pieces.append(f"{len(data.pictures)}, not shown" if data.pictures else "none")
        else:
            pieces.append(f'<{tag} name="{piece}">\n{data.texts[piece]}\n</{tag}>')
    if split is None:
        return "".join(pieces), None
    return "".join(pieces[:split]), "".join(pieces[split:])


def _nonce(rubric: Rubric, data: JudgeData) -> str:
    """Return hex digits that depend on all data and stand in none of it."""
    texts = [data.texts[name] for name in sorted(rubric.needs - {PICTURES})]
    seen = data.pictures if data.show and PICTURES in rubric.needs else ()
    content = json.dumps([texts, [image.sha256 for image in seen]])
    number = 0
    while True:
        digest = hashlib.sha256(f"{number}{content}".encode()).hexdigest()[:NONCE_DIGITS]
        if not any(digest in text for text in texts):
            return digest
        number += 1


def _reply(rubric: Rubric, mode: Mode) -> str:
    values = [json.dumps(value) for value in rubric.values]
    if mode == "text":
        lines = [f"Verdict: {value}" for value in rubric.values]
        choice = (
            " or ".join(f"'{line}'" for line in lines)
            if rubric.scale is None
            else f"'{lines[0]}' to '{lines[-1]}', a whole number"
        )
        return (
            "Say why in one to three sentences. Then end with a line of its own that is nothing "
            f"but your verdict: {choice}."
        )
    choice = (
        " or ".join(values)
        if rubric.scale is None
        else f"a whole number {values[0]} to {values[-1]}"
    )
    return (
        "Reply with one JSON object and nothing else: "
        f'{{"explanation": "why, in one to three sentences", "{rubric.key}": {choice}}}'
    )


def _response_format(rubric: Rubric, mode: Mode) -> dict[str, Json]:
    if mode == "json_schema":
        schema = {"name": "verdict", "strict": True, "schema": rubric.schema}
        return {"response_format": {"type": "json_schema", "json_schema": schema}}
    return {"response_format": {"type": "json_object"}} if mode == "json_object" else {}
