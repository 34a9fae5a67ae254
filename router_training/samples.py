"""Rows of evaluation data become samples with what was recorded about each model.

Three shapes are told apart by a row's keys:

scored
    ``idx`` (or ``id``), ``prompt`` and/or ``messages``, ``images`` (or ``image``, ``image_sha``),
    ``model_scores`` (or ``scores``), and optionally ``answer`` (or ``reference``), ``group``,
    ``dataset``, ``model_costs`` (or ``costs``, USD of this call), ``model_usage``,
    ``model_seconds`` and ``contaminated``.
conversation
    ``conversations`` of ``{"from": "system" | "human" | "gpt", "value"}`` turns with ``image`` and
    the class as ``adapter`` and ``label``; without those, the last ``gpt`` turn names the class.
category
    ``query`` and ``category``.

The last two say only which model is right, and become one-hot scores in ``labels``. What the models
answered is never part of the routed text: a conversation's trailing assistant turns are the
reference.
"""

from __future__ import annotations

import hashlib
import json
import math
import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Final, NamedTuple

from router_runtime.errors import DataError, QueryError
from router_runtime.messages import TextRule, query_from_messages, query_from_prompt
from router_runtime.types import Image, Query
from router_training.pictures import PLACEHOLDER, Pictures, parts_of

_SHAPES: Final = (
    "'prompt' or 'messages' with 'model_scores' (or 'scores'); 'conversations' with 'adapter' or "
    "'label'; 'query' with 'category'"
)
_ROLES: Final = {"system": "system", "human": "user", "gpt": "assistant"}
_INPUT_NAMES: Final = ("input_tokens", "prompt_tokens")
_CACHED_NAMES: Final = ("cached_input_tokens", "cached_tokens")
_DETAILS: Final = ("input_tokens_details", "prompt_tokens_details")
_OUTPUT_NAMES: Final = ("output_tokens", "completion_tokens")
_COSTS: Final = (1e-15, 1e9)  # beyond, sums and ratios of floats overflow
_SHOWN: Final = reprlib.Repr()
_SHOWN.maxstring = _SHOWN.maxother = 80  # an error quotes a value, not a whole prompt


@dataclass(frozen=True)
class Sample:
    """One row of evaluation data without its labels.

    Parameters
    ----------
    id : str
        Unique in its file.
    query : Query
        What is routed on, made by ``messages`` exactly as for a request.
    reference : str or None
        The ground-truth answer.
    group : str
        Rows of one group never part between training and test; by default a digest of the routed
        text and the pictures, or of the pictures alone for rows with ``image_sha``.
    dataset : str or None
        Where the row comes from, for tables per data set.
    prompt : str
        The prompt as written in the row; of a conversation, the routed text.
    messages : tuple of mapping, or None
        The conversation to send to a candidate, pictures replaced by ``{"type": "image"}`` in the
        order of ``query.images``; None when it is the single user turn ``prompt``.
    contaminated : bool
        The row is marked as seen in some model's training data.
    """

    id: str
    query: Query
    reference: str | None
    group: str
    dataset: str | None
    prompt: str
    messages: tuple[Mapping[str, Any], ...] | None = None
    contaminated: bool = False


class Tokens(NamedTuple):
    """Tokens of one recorded call, ``cached`` being a part of ``input``; NaN where unknown."""

    input: float
    output: float
    cached: float


@dataclass(frozen=True)
class Record:
    """A sample with what its row says about models; exactly one of ``scores`` and ``label`` is set.

    Parameters
    ----------
    scores : mapping or None
        Score in [0, 1] per model, NaN where missing.
    label : str, int or None
        The right model's name, or its position when the row gives no name.
    costs, tokens, seconds : mapping
        USD, tokens and duration of the recorded calls.
    named_in, costs_in : str
        The row's fields that name models, for errors.
    """

    sample: Sample
    scores: Mapping[str, float] | None
    named_in: str
    label: str | int | None = None
    costs: Mapping[str, float] = field(default_factory=dict)
    tokens: Mapping[str, Tokens] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    costs_in: str = "model_costs"


def read_record(
    row: Mapping[str, Any], *, number: int, pictures: Pictures, rule: TextRule
) -> Record:
    """Return what one row says.

    Parameters
    ----------
    row : mapping
        Of one of the three shapes.
    number : int
        The row's number, the id of rows that have none.
    pictures : Pictures
        Finds and checks the row's pictures.
    rule : TextRule
        How much of a conversation is routed on.

    Raises
    ------
    DataError
        Naming the field; the caller adds file and row.
    """
    if "model_scores" in row or "scores" in row:
        return _scored(row, number, pictures, rule)
    if "conversations" in row:
        return _conversation(row, number, pictures, rule)
    if "query" in row and "category" in row:
        return _category(row, number, pictures, rule)
    raise DataError(
        f"The row's shape is unknown; it has the keys {', '.join(map(repr, row)) or '(none)'}. "
        f"Known shapes: {_SHAPES}."
    )


def score_value(value: Any) -> float:
    """Return a score as float in [0, 1], NaN for None and NaN.

    Raises
    ------
    DataError
        It is not a number or lies outside [0, 1].
    """
    number = _number(value, "score")
    if not math.isnan(number) and not 0.0 <= number <= 1.0:
        raise DataError(f"The score {_SHOWN.repr(value)} is outside [0, 1]; scale it.")
    return number


def _scored(row: Mapping[str, Any], number: int, pictures: Pictures, rule: TextRule) -> Record:
    name = "model_scores" if "model_scores" in row else "scores"
    costs = "model_costs" if "model_costs" in row else "costs"
    sample = _prompted(row, number, pictures, rule)
    return Record(
        sample,
        _per_model(row, name, score_value),
        named_in=name,
        costs=_per_model(row, costs, _cost_value),
        tokens=_per_model(row, "model_usage", _tokens),
        seconds=_per_model(row, "model_seconds", _seconds_value),
        costs_in=costs,
    )


def _prompted(row: Mapping[str, Any], number: int, pictures: Pictures, rule: TextRule) -> Sample:
    images = _images(row, pictures)
    prompt = _optional_text(row, "prompt")
    reference = _optional_text(row, "answer", "reference")
    if row.get("messages") is not None:
        return _from_messages(
            row, number, row["messages"], images, pictures, rule, prompt=prompt, reference=reference
        )
    if prompt is None or not (prompt.strip() or images):
        raise DataError("The row has no prompt.", field="prompt")
    query = query_from_prompt(prompt, images, load=pictures.load)
    return _sample(row, number, query, prompt=prompt, reference=reference)


def _category(row: Mapping[str, Any], number: int, pictures: Pictures, rule: TextRule) -> Record:
    prompt = _optional_text(row, "query")
    if prompt is None or not prompt.strip():
        raise DataError("The row has no query.", field="query")
    query = query_from_prompt(prompt, _images(row, pictures), load=pictures.load)
    sample = _sample(row, number, query, prompt=prompt, reference=None)
    label = _class_name(row["category"], "category")
    return Record(sample, None, named_in="category", label=label)


def _conversation(
    row: Mapping[str, Any], number: int, pictures: Pictures, rule: TextRule
) -> Record:
    turns = row["conversations"]
    if not isinstance(turns, Sequence) or isinstance(turns, str) or not turns:
        raise DataError("It must be a list of turns.", field="conversations")
    messages = [_chat_turn(turn) for turn in turns]
    label: str | int
    if row.get("adapter") is not None:
        named_in, label = "adapter", _class_name(row["adapter"], "adapter")
    elif row.get("label") is not None:
        named_in, label = "label", _class_position(row["label"])
    elif messages[-1]["role"] == "assistant":
        named_in, label = "conversations", _class_name(messages.pop()["content"], "conversations")
    else:
        raise DataError(
            "There is neither 'adapter' nor 'label', nor a last 'gpt' turn that names the class.",
            field="conversations",
        )
    sample = _from_messages(
        row, number, messages, _images(row, pictures), pictures, rule, prompt=None, reference=None
    )
    return Record(sample, None, named_in=named_in, label=label)


def _chat_turn(turn: Any) -> dict[str, Any]:
    value = turn.get("value") if isinstance(turn, Mapping) else None
    role = _ROLES.get(str(turn["from"])) if isinstance(value, str) and "from" in turn else None
    if role is None or not isinstance(value, str):
        raise DataError(
            "A turn must have 'from' (system, human or gpt) and a text 'value'.",
            field="conversations",
        )
    shows = role == "user" and PLACEHOLDER in value
    return {"role": role, "content": parts_of(value) if shows else value}


def _from_messages(
    row: Mapping[str, Any],
    number: int,
    messages: Any,
    images: Sequence[Image],
    pictures: Pictures,
    rule: TextRule,
    *,
    prompt: str | None,
    reference: str | None,
) -> Sample:
    place = "messages" if "messages" in row else "conversations"
    if isinstance(messages, str) and messages.startswith("["):  # as Parquet holds them
        try:
            messages = json.loads(messages)
        except ValueError:
            raise DataError("The text is not a JSON list of turns.", field=place) from None
    if not isinstance(messages, Sequence) or isinstance(messages, str):
        raise DataError("It must be a list of turns.", field=place)
    # Parquet fills the keys that only other turns have with nulls.
    turns = [_without_nulls(turn) for turn in messages]
    while turns and isinstance(turns[-1], dict) and turns[-1].get("role") == "assistant":
        answer = turns.pop().get("content")
        if reference is None and isinstance(answer, str):
            reference = answer
    try:
        query = query_from_messages(turns, images=images, rule=rule, load=pictures.load)
    except QueryError as error:
        raise DataError(str(error), field=place) from error
    return _sample(
        row,
        number,
        query,
        prompt=query.text if prompt is None else prompt,
        reference=reference,
        messages=tuple(_with_placeholders(turns, len(query.images), len(images))),
    )


def _without_nulls(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [_without_nulls(item) for item in value]
    return value


def _with_placeholders(
    turns: Sequence[dict[str, Any]], n_pictures: int, n_column: int
) -> list[dict[str, Any]]:
    """Replace pictures by placeholders; a column without placeholders joins the last turn."""
    shown: list[dict[str, Any]] = []
    placed = 0
    for turn in turns:
        content = turn.get("content")
        if isinstance(content, list):
            parts = [_placeholder_part(part) for part in content]
            placed += sum(part == {"type": "image"} for part in parts)
            turn = {**turn, "content": parts}
        shown.append(turn)
    missing = n_pictures - placed
    if missing and n_column:
        at = len(shown) - 1
        content = shown[at].get("content") or ""
        parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
        shown[at] = {**shown[at], "content": [*parts, *[{"type": "image"}] * missing]}
    return shown


def _placeholder_part(part: Any) -> Any:
    is_text = isinstance(part, str) or "text" in part or "refusal" in part
    return part if is_text else {"type": "image"}


def _sample(
    row: Mapping[str, Any],
    number: int,
    query: Query,
    *,
    prompt: str,
    reference: str | None,
    messages: tuple[Mapping[str, Any], ...] | None = None,
) -> Sample:
    return Sample(
        id=_identity(row, number),
        query=query,
        reference=reference,
        group=_group(row, query),
        dataset=_optional_text(row, "dataset"),
        prompt=prompt,
        messages=messages,
        contaminated=_contaminated(row.get("contaminated")),
    )


def _contaminated(value: Any) -> bool:
    if value not in (None, False, True):  # 0 and 1 equal these
        raise DataError(
            f"It is {_SHOWN.repr(value)}; it must be true or false.", field="contaminated"
        )
    return bool(value)


def _identity(row: Mapping[str, Any], number: int) -> str:
    for name in ("idx", "id"):
        value = row.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
            raise DataError(
                f"The id {_SHOWN.repr(value)} must be text or a whole number.", field=name
            )
        return str(value)
    return f"row-{number}"


def _group(row: Mapping[str, Any], query: Query) -> str:
    value = row.get("group")
    if value is not None:
        if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
            raise DataError(
                f"The group {_SHOWN.repr(value)} must be text or a whole number; leave it out (or "
                "null) to group by prompt and pictures.",
                field="group",
            )
        return str(value)
    by_picture = row.get("image_sha") is not None  # such tables ask several things of one picture
    digest = hashlib.sha256(b"" if by_picture else query.text.encode())
    for image in query.images:
        digest.update(b"\0" + image.sha256.encode())
    return digest.hexdigest()


def picture_sources(row: Mapping[str, Any]) -> tuple[str, list[Any]]:
    """Return what a row's column of pictures holds, for ``Pictures.load``, and its name."""
    for name in ("images", "image", "image_sha"):
        value = row.get(name)
        if value is not None and value != []:
            break
    else:
        return "images", []
    sources = list(value) if isinstance(value, list | tuple) else [value]
    return name, [f"{source}.png" for source in sources] if name == "image_sha" else sources


def _images(row: Mapping[str, Any], pictures: Pictures) -> list[Image]:
    name, sources = picture_sources(row)
    loaded = []
    for at, source in enumerate(sources):
        try:
            loaded.append(pictures.load(source))
        except QueryError as error:
            raise DataError(str(error), field=f"{name}[{at}]") from error
    return loaded


def _optional_text(row: Mapping[str, Any], *names: str) -> str | None:
    for name in names:
        value = row.get(name)
        if value is None:
            continue
        if not isinstance(value, str) and name in ("answer", "reference"):
            return json.dumps(value, default=str)  # a number, or a list of accepted answers
        if not isinstance(value, str):
            raise DataError(f"It is {type(value).__name__}; it must be text.", field=name)
        return value
    return None


def _class_name(value: Any, name: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"The class is {_SHOWN.repr(value)}; it must be a name.", field=name)
    return value.strip()


def _class_position(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise DataError(
            f"The label {_SHOWN.repr(value)} must be a whole number from 0.", field="label"
        )
    return value


def _per_model(row: Mapping[str, Any], name: str, read: Callable[[Any], Any]) -> dict[str, Any]:
    value = row.get(name)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise DataError(
            f"It is {type(value).__name__}; it must be an object {{model: value}}.", field=name
        )
    found = {}
    for model, item in value.items():
        try:
            if item is not None or name in ("model_scores", "scores"):
                found[str(model)] = read(item)
        except DataError as error:
            raise DataError(error.reason, field=f"{name}.{model}") from None
    return found


def _number(value: Any, what: str) -> float:
    if value is None:
        return math.nan
    try:
        if isinstance(value, str | bool | int | float | Decimal):
            return float(value)
    except (ValueError, OverflowError):
        pass
    raise DataError(f"The {what} {_SHOWN.repr(value)} is not a number.")


def _cost_value(value: Any) -> float:
    number = _number(value, "cost")
    if number != 0 and not _COSTS[0] <= number <= _COSTS[1]:
        raise DataError(
            f"The cost {_SHOWN.repr(value)} must be USD of at least 0 and at most {_COSTS[1]:g} (0 "
            f"or at least {_COSTS[0]:g}); leave unknown costs out."
        )
    return number


def _seconds_value(value: Any) -> float:
    return _token_count({"duration": value}, ["duration"])


def _tokens(value: Any) -> Tokens:
    if not isinstance(value, Mapping):
        raise DataError("It must be an object with input_tokens and output_tokens.")
    details: Any = next((value[name] for name in _DETAILS if value.get(name) is not None), {})
    if not isinstance(details, Mapping):
        raise DataError("The details of input tokens must be an object with cached_tokens.")
    cached = _token_count({**details, **value}, _CACHED_NAMES)
    tokens = Tokens(_token_count(value, _INPUT_NAMES), _token_count(value, _OUTPUT_NAMES), cached)
    if tokens.cached > tokens.input:
        raise DataError(
            f"{cached:g} cached tokens are more than the {tokens.input:g} input tokens."
        )
    return tokens


def _token_count(usage: Mapping[str, Any], names: Sequence[str]) -> float:
    for name in names:
        value = usage.get(name)
        if value is None:
            continue
        number = _number(value, name)
        if not math.isfinite(number) or number < 0:
            raise DataError(f"{name} is {_SHOWN.repr(value)}; it must be at least 0.")
        return number
    return math.nan
