"""Tables of every key of every config file, read from the models that validate them.

What a key means is what the docstring of its model says below ``Parameters``.
"""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin

import annotated_types
import yaml
from pydantic import AfterValidator, BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

_VALIDATED: Final = {
    "_variable_name": "name of an environment variable",
    "_plain_url": "URL",
    "_adapter_name": "name of an adapter",
}
_PLAIN: Final = {str: "text", bool: "true or false", Path: "path"}
_NUMBERS: Final = {int: "integer", float: "number", Decimal: "number"}
_SECTION: Final = re.compile(r"^-{3,}$")


@dataclass(frozen=True)
class Row:
    """A key: its type and default in words, and what it means."""

    key: str
    kind: str
    default: str
    meaning: str


@dataclass
class Section:
    """The keys at one place of a file.

    Parameters
    ----------
    place : str
        As ``service.store``; empty for the top of the file.
    file : str
        Which file, in a word.
    models : tuple of model classes
        One, or the kinds among which ``kind`` chooses.
    """

    place: str
    file: str
    models: tuple[type[BaseModel], ...]

    @property
    def title(self) -> str:
        """The heading of the section; anchors on the page depend on it."""
        return f"`{self.place}` ({self.file})" if self.place else self.file.capitalize()

    @property
    def anchor(self) -> str:
        """What Python-Markdown and code hosts alike make of the heading."""
        plain = re.sub(r"[^\w\s-]", "", self.title.lower())
        return re.sub(r"\s+", "-", plain)


@dataclass
class Reference:
    """Sections of several files; a model is described once, where it is met first."""

    defaults: Mapping[tuple[type[BaseModel], str], str]
    sections: list[Section] = field(default_factory=list)
    undescribed: list[str] = field(default_factory=list)

    def add(self, root: type[BaseModel], file: str) -> list[Section]:
        """Add a file, and return its sections: the top, then what is inside."""
        before = len(self.sections)
        self._visit((root,), "", file)
        return self.sections[before:]

    def _visit(self, models: tuple[type[BaseModel], ...], place: str, file: str) -> None:
        if all(self._of(model) for model in models):
            return
        self.sections.append(Section(place, file, models))
        for model in models:
            for key, info in model.model_fields.items():
                at = f"{place}.{key}" if place else key
                for inner, suffix in _models_in(info.annotation):
                    self._visit(inner, at + suffix, file)

    def _of(self, model: type[BaseModel]) -> Section | None:
        return next((s for s in self.sections if model in s.models), None)

    def _link(self, model: type[BaseModel]) -> str:
        section = self._of(model)
        if section is None:
            raise LookupError(f"{model.__name__} has no section")
        *_, last = re.findall(r"\w+(?:\.NAME)?", section.place) or [section.file]
        return f"[`{last}`](#{section.anchor})"

    def rows(self, model: type[BaseModel]) -> list[Row]:
        """Return a model's keys in order; ``kind`` of a kind is left to the caller."""
        return [
            Row(key, self._kind(info), self._default(model, key, info), self._meaning(model, key))
            for key, info in model.model_fields.items()
        ]

    def _meaning(self, model: type[BaseModel], key: str) -> str:
        told = model.model_fields[key].description or next(
            (found for base in model.__mro__ if (found := parameters(base).get(key))), ""
        )
        if not told:
            inner = [models for models, _ in _models_in(model.model_fields[key].annotation)]
            told = introduction(inner[0][0]).partition("\n\n")[0] if inner else ""
        if not told and key != "kind":
            self.undescribed.append(f"{model.__name__}.{key}")
        return _markdown(told)

    def _kind(self, info: FieldInfo) -> str:
        return self._words(info.annotation, tuple(info.metadata))

    def _words(self, annotation: Any, metadata: tuple[Any, ...] = ()) -> str:
        origin, arguments = get_origin(annotation), get_args(annotation)
        if origin is Annotated:
            return self._words(arguments[0], (*_expanded(arguments[1:]), *metadata))
        if origin in (Union, types.UnionType):
            return self._union(arguments, metadata)
        if origin is Literal:
            return _either([f"`{value}`" for value in arguments])
        if origin is tuple and arguments[-1] is not Ellipsis:
            return "list of " + ", then ".join(self._words(a) for a in arguments)
        if origin in (tuple, list, frozenset):
            return f"list of {self._words(arguments[0])}"
        if origin is dict:
            return f"mapping of name to {self._words(arguments[1])}"
        if named := [_VALIDATED.get(m.func.__name__) for m in metadata if _is_after(m)]:
            return named[0] or "text"
        if annotation in _NUMBERS:
            return _NUMBERS[annotation] + _bounds(metadata)
        if annotation in _PLAIN:
            return _PLAIN[annotation]
        if annotation is type(None):
            return "null"
        if isinstance(annotation, type) and issubclass(annotation, StrEnum):
            return _either([f"`{value}`" for value in annotation])
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            return self._link(annotation)
        return "any value"

    def _union(self, members: tuple[Any, ...], metadata: tuple[Any, ...]) -> str:
        models = [m for m in members if isinstance(m, type) and issubclass(m, BaseModel)]
        said = [self._words(m, metadata) for m in members if m not in models]
        if models:
            section = self._of(models[0])
            narrowed = section is not None and 1 < len(models) < len(section.models)
            kinds = f" ({_either([f'`{kind_of(model)}`' for model in models])})" if narrowed else ""
            said.insert(0, f"{self._link(models[0])}{kinds}")
        return _either(said)

    def _default(self, model: type[BaseModel], key: str, info: FieldInfo) -> str:
        if (model, key) in self.defaults:
            return self.defaults[model, key]
        value = info.get_default(call_default_factory=True)
        if value is PydanticUndefined:
            return "required"
        if isinstance(value, BaseModel):
            if value != type(value)():
                raise LookupError(f"say the default of {model.__name__}.{key} in words")
            return "its defaults"
        return f"`{_yaml(value)}`"


def parameters(model: type) -> dict[str, str]:
    """Return what a docstring's section ``Parameters`` says of each name."""
    lines = inspect.cleandoc(model.__dict__.get("__doc__") or "").splitlines()
    if "Parameters" not in lines:
        return {}
    described: dict[str, str] = {}
    names: list[str] = []
    for line in lines[lines.index("Parameters") + 2 :]:
        if _SECTION.match(line):
            break
        if line and not line.startswith(" "):
            names = [name.strip() for name in line.partition(" : ")[0].split(",")]
            continue
        for name in names:
            described[name] = f"{described.get(name, '')} {line.strip()}".strip()
    return described


def introduction(model: type) -> str:
    """Return what a docstring says before ``Parameters``, as Markdown."""
    return _markdown(inspect.cleandoc(model.__doc__ or "").partition("\n\nParameters\n")[0])


def kind_of(model: type[BaseModel]) -> str:
    """Return what ``kind`` is for this model."""
    (kind,) = get_args(model.model_fields["kind"].annotation)
    return str(kind)


def _models_in(annotation: Any) -> Iterator[tuple[tuple[type[BaseModel], ...], str]]:
    """Yield the models that a value may hold, and where: ``[]`` in a list, ``.NAME`` in a map."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield (annotation,), ""
    elif origin is Annotated:
        yield from _models_in(arguments[0])
    elif origin in (Union, types.UnionType):
        found = [models for a in arguments for models, _ in _models_in(a)]
        if found:
            yield tuple(model for models in found for model in models), ""
    elif origin in (tuple, list, frozenset):
        yield from ((models, f"[]{at}") for models, at in _models_in(arguments[0]))
    elif origin is dict:
        yield from ((models, f".NAME{at}") for models, at in _models_in(arguments[1]))


def _bounds(metadata: tuple[Any, ...]) -> str:
    low = high = ""
    for entry in metadata:
        match entry:
            case annotated_types.Ge(ge=value):
                low = f"≥ {_number(value)}"
            case annotated_types.Gt(gt=value):
                low = f"> {_number(value)}"
            case annotated_types.Le(le=value):
                high = f"≤ {_number(value)}"
            case annotated_types.Lt(lt=value):
                high = f"< {_number(value)}"
    if low.startswith("≥") and high.startswith("≤"):
        return f" from {low[2:]} to {high[2:]}"
    return f" {low} and {high}" if low and high else f" {low}{high}".rstrip()


def _number(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,g}"


def _expanded(metadata: tuple[Any, ...]) -> Iterator[Any]:
    """Yield constraints, also those that a ``Field`` inside of an ``Annotated`` holds."""
    for entry in metadata:
        yield from entry.metadata if isinstance(entry, FieldInfo) else (entry,)


def _is_after(entry: Any) -> bool:
    return isinstance(entry, AfterValidator)


def _either(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _yaml(value: Any) -> str:
    plain = _plain(value)
    text = yaml.safe_dump(plain, default_flow_style=True, width=10_000, sort_keys=False)
    return text.removesuffix("...\n").strip()


def _plain(value: Any) -> Any:
    match value:
        case BaseModel():
            kind = {"kind": kind_of(type(value))} if "kind" in type(value).model_fields else {}
            return kind | _plain(value.model_dump(exclude_defaults=True))
        case dict():
            return {key: _plain(inner) for key, inner in value.items()}
        case frozenset():
            return sorted(map(str, value))
        case tuple() | list():
            return [_plain(inner) for inner in value]
        case Decimal():
            return int(value) if value == int(value) else float(value)
        case Path() | StrEnum():
            return str(value)
    return value


def _markdown(text: str) -> str:
    """Return numpydoc's text as Markdown, in the words of YAML."""
    return re.sub(r"\bNone\b", "`null`", text.replace("``", "`"))


def table(head: list[str], rows: Iterator[list[str]]) -> Iterator[str]:
    """Yield a Markdown table, line by line, and an empty line."""
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    for row in rows:
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |"
    yield ""
