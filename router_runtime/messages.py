"""OpenAI chat messages become a ``Query``: the only definition of what is routed on.

Training data and requests both pass through here, so a router never sees at serving time a text
that was assembled otherwise in training.

The routed text is, joined by blank lines::

    [first ``system_chars`` of the system prompt]
    [other turns, newest first as far as ``context_chars`` allow, in chronological order]
    [last user turn, whole]

The question stands last and is never cut; a long system prompt or history cannot hide it. A system
prompt without any other turn is itself the question. The turn at which the context budget ends
keeps its end. Turns after the last user turn (tool calls and results of an agent at work) are
context like the others. Every picture of every turn counts, in order. Text is only ever text: a
prompt that ends in ``.png`` or looks like a URL opens nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

from router_runtime.errors import QueryError
from router_runtime.images import DEFAULT_LIMITS, ImageLimits, load_image
from router_runtime.types import Image, Json, Query, Requirements

ImageLoader: TypeAlias = Callable[[Any], Image]

_ROLES: Final = ("system", "developer", "user", "assistant", "tool", "function")
_TEXT_PARTS: Final = ("text", "input_text", "output_text", "refusal")
_IMAGE_PARTS: Final = ("image_url", "input_image", "image")
_IMAGE_FIELDS: Final = ("image_url", "image", "url", "base64", "path")
_SEPARATOR: Final = "\n\n"


class TextRule(BaseModel):
    """How much of a conversation is routed on, in characters; kept in the artifact.

    Parameters
    ----------
    context_chars : int
        Budget for all turns but the system prompt and the last user turn.
    system_chars : int
        How much of the beginning of the system prompt is kept. It says what kind of task it is,
        and is mostly the same for every request of an application.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    context_chars: int = Field(default=2000, ge=0)
    system_chars: int = Field(default=200, ge=0)


@dataclass(frozen=True, slots=True)
class _Turn:
    role: str
    text: str
    extra_chars: int


def query_from_messages(
    messages: Sequence[Mapping[str, Any]],
    *,
    images: Sequence[Any] = (),
    rule: TextRule = TextRule(),
    limits: ImageLimits = DEFAULT_LIMITS,
    allow_paths: bool = False,
    requirements: Requirements = Requirements(),
    load: ImageLoader | None = None,
) -> Query:
    """Return what is routed on for one conversation.

    Parameters
    ----------
    messages : sequence of mapping
        OpenAI chat turns. ``content`` is text, a list of parts, or None in assistant and tool
        turns. Parts: ``text``/``input_text``/``output_text``, ``image_url`` (object or string),
        ``input_image``, ``image`` (with ``image``, ``url``, ``base64``, ``path`` or ``source``).
        ``developer`` is another name of ``system``.
    images : sequence
        A separate column of pictures, as in TRL and Hugging Face data: paired in order with the
        ``{"type": "image"}`` parts that carry none, or simply added when there are no such parts.
    rule : TextRule
        Budgets of the routed text.
    limits, allow_paths
        As in ``images.load_image``; paths are refused unless asked for.
    requirements : Requirements
        Carried into the query; see ``request_requirements``.
    load : callable or None
        Turns a picture's source into an ``Image`` instead of ``load_image`` with these settings.

    Raises
    ------
    QueryError
        The messages have another shape, a picture is unusable or the count of pictures and
        placeholders differs, or there is neither text nor picture.
    """
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence):
        raise QueryError(
            f"messages is {type(messages).__name__}; give a list of "
            '{"role": "user", "content": ...} objects.'
        )
    if not messages:
        raise QueryError("messages is empty; there is nothing to route on.")
    load = load or partial(load_image, limits=limits, allow_paths=allow_paths)
    sources: list[Any] = []
    turns = [_turn(message, at, sources) for at, message in enumerate(messages)]
    loaded = tuple(load(source) for source in _paired(sources, images))
    text = _routed_text(turns, rule)
    if not text.strip() and not loaded:
        raise QueryError("The messages hold neither text nor a picture to route on.")
    chars = sum(len(turn.text) + turn.extra_chars for turn in turns)
    return Query(text, loaded, requirements, prompt_chars=chars)


def query_from_prompt(
    prompt: str,
    images: Sequence[Any] = (),
    *,
    rule: TextRule = TextRule(),
    limits: ImageLimits = DEFAULT_LIMITS,
    allow_paths: bool = False,
    requirements: Requirements = Requirements(),
    load: ImageLoader | None = None,
) -> Query:
    """Return the query of one user turn with ``prompt`` and ``images``.

    Equal to ``query_from_messages([{"role": "user", "content": prompt}], images=images, ...)``.

    Raises
    ------
    QueryError
        As ``query_from_messages``.
    """
    if not isinstance(prompt, str):
        raise QueryError(f"The prompt is {type(prompt).__name__}; give text.")
    if isinstance(images, str | bytes) or not isinstance(images, Sequence):
        raise QueryError("images must be a list of pictures, even for a single one.")
    return query_from_messages(
        [{"role": "user", "content": prompt}],
        images=images,
        rule=rule,
        limits=limits,
        allow_paths=allow_paths,
        requirements=requirements,
        load=load,
    )


def request_requirements(body: Mapping[str, Json]) -> Requirements:
    """Return what an OpenAI request body asks of a candidate besides its modalities.

    ``tools`` (or the older ``functions``) count unless ``tool_choice`` is ``none``;
    ``response_format`` of type ``json_object`` or ``json_schema`` asks for JSON;
    ``max_completion_tokens`` goes before its older name ``max_tokens``.

    Raises
    ------
    QueryError
        A token cap that is not a whole number of at least 1, or a malformed ``response_format``.
    """
    wants_tools = bool(body.get("tools") or body.get("functions"))
    response_format = body.get("response_format") or {}
    if not isinstance(response_format, Mapping):
        raise QueryError('response_format must be an object like {"type": "json_object"}.')
    return Requirements(
        tools=wants_tools and body.get("tool_choice") != "none",
        json_mode=response_format.get("type") in ("json_object", "json_schema"),
        max_output_tokens=_token_cap(body),
    )


def _token_cap(body: Mapping[str, Json]) -> int | None:
    for name in ("max_completion_tokens", "max_tokens"):
        value = body.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise QueryError(f"{name} is {_shown(value)}; it must be a whole number of at least 1.")
        return value
    return None


def _turn(message: Any, at: int, sources: list[Any]) -> _Turn:
    """Read one message; its pictures' sources are appended, None for a placeholder."""
    where = f"messages[{at}]"
    if not isinstance(message, Mapping):
        raise QueryError(f"{where} is {type(message).__name__}; it must be an object.")
    role = message.get("role")
    if role not in _ROLES:
        raise QueryError(f"{where}.role is {_shown(role)}; known: {', '.join(_ROLES)}.")
    content = message.get("content")
    if content is None and role == "assistant":
        content = message.get("refusal")
    if content is None:
        if role not in ("assistant", "tool", "function"):
            raise QueryError(f"{where}.content is missing in a {role} turn.")
        content = ""
    text = content if isinstance(content, str) else _parts_text(content, where, sources)
    role = "system" if role == "developer" else role
    return _Turn(role, _encodable(text), _call_chars(message))


def _parts_text(content: Any, where: str, sources: list[Any]) -> str:
    if isinstance(content, bytes | Mapping) or not isinstance(content, Sequence):
        raise QueryError(f"{where}.content is {type(content).__name__}; give text or a list.")
    texts: list[str] = []
    for at, item in enumerate(content):
        place = f"{where}.content[{at}]"
        part: Any = {"type": "text", "text": item} if isinstance(item, str) else item
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind in _TEXT_PARTS:
            text = part.get("refusal" if kind == "refusal" else "text")
            if not isinstance(text, str):
                raise QueryError(f"{place} is a {kind} part without its text.")
            texts.append(text)
        elif kind in _IMAGE_PARTS:
            sources.append(_image_source(part))
            if sources[-1] is None and kind != "image":
                raise QueryError(f"{place} is an {kind} part without its picture.")
        else:
            known = ", ".join((*_TEXT_PARTS, *_IMAGE_PARTS))
            raise QueryError(
                f"{place} has type {_shown(kind)}, which cannot be routed (known: {known})."
            )
    return "\n".join(text for text in texts if text)


def _image_source(part: Mapping[str, Any]) -> Any:
    """Return what holds the picture, or None for a placeholder."""
    source = part.get("source")
    if isinstance(source, Mapping):  # Anthropic's shape
        return source.get("data", source.get("url"))
    for name in _IMAGE_FIELDS:
        value = part.get(name)
        if value is not None:
            return value.get("url", value) if isinstance(value, Mapping) else value
    return None


def _paired(sources: list[Any], column: Sequence[Any]) -> Iterator[Any]:
    """Fill placeholders from the separate column, in order."""
    placeholders = sum(source is None for source in sources)
    if not placeholders:
        return iter([*sources, *column])
    if placeholders != len(column):
        raise QueryError(
            f"The messages have {placeholders} picture placeholders and the images column has "
            f"{len(column)} pictures; they must agree."
        )
    rest = iter(column)
    return (next(rest) if source is None else source for source in sources)


def _call_chars(message: Mapping[str, Any]) -> int:
    """Count the characters of tool calls: they cost tokens, but say little about the task."""
    calls = message.get("tool_calls")
    called = [message.get("function_call")]  # the older form of a single call
    for call in calls if isinstance(calls, Sequence) else ():
        if isinstance(call, Mapping):
            called.append(call.get("function", call.get("custom")))
    return sum(
        len(str(function.get(name) or ""))
        for function in called
        if isinstance(function, Mapping)
        for name in ("name", "arguments", "input")
    )


def _routed_text(turns: Sequence[_Turn], rule: TextRule) -> str:
    system = _SEPARATOR.join(turn.text for turn in turns if turn.role == "system" and turn.text)
    others = [turn for turn in turns if turn.role != "system"]
    last = max((at for at, turn in enumerate(others) if turn.role == "user"), default=None)
    question = "" if last is None else others[last].text
    if not others:
        system, question = "", system
    context = [turn.text for at, turn in enumerate(others) if at != last]
    pieces = [system[: rule.system_chars], *_newest(context, rule.context_chars), question]
    return _SEPARATOR.join(piece for piece in pieces if piece)


def _newest(texts: Sequence[str], budget: int) -> list[str]:
    """Keep the newest texts within ``budget`` characters; the one that crosses it keeps its end."""
    kept: list[str] = []
    for text in reversed(texts):
        if budget <= 0:
            break
        kept.append(text[-budget:])
        budget -= len(text)
    return kept[::-1]


def _encodable(text: str) -> str:
    """Replace lone surrogates, which JSON can carry and UTF-8 cannot."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace").decode("utf-8")
    return text


def _shown(value: Any) -> str:
    """Show what was given, as far as it fits into an error."""
    text = repr(value)
    return text if len(text) <= 80 else text[:60] + "..."
