"""YAML to frozen pydantic models, with errors that a person can act on.

Unknown keys, repeated keys and contradictions are errors. ``${NAME}`` and ``${NAME:-default}`` in
string values are filled from the environment when the file is read, and nowhere else.
"""

from __future__ import annotations

import os
import re
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from router_runtime.errors import ConfigError
from router_runtime.types import Json


class StrictModel(BaseModel):
    """Base of everything that is read from YAML or JSON: unknown keys are errors, values frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


Model = TypeVar("Model", bound=BaseModel)


class _PlainLoader(yaml.SafeLoader):
    """Refuses repeated keys, of which PyYAML keeps the last, and aliases, which can be endless."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event = self.get_event()  # type: ignore[no-untyped-call]
            raise ConfigError(
                f"line {event.start_mark.line + 1}: aliases (*{event.anchor}) are not read; "
                "write the value out."
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise ConfigError(f"line {key_node.start_mark.line + 1}: a key must be a string.")
            if key in seen:
                raise ConfigError(
                    f"line {key_node.start_mark.line + 1}: key '{key}' is repeated; remove one."
                )
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")


def read_yaml(path: Path) -> dict[str, Json]:
    """Read a YAML mapping, refusing repeated keys and filling ``${NAME:-default}``.

    Raises
    ------
    ConfigError
        If the file cannot be read, is no YAML mapping, repeats a key or names an unset variable.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"Config file '{path}' does not exist; check the path.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"Config file '{path}' cannot be read: {error}") from error
    try:
        content = yaml.load(text, Loader=_PlainLoader)  # noqa: S506 - a SafeLoader subclass
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {_fault(error)}") from error
    except RecursionError:
        raise ConfigError(f"{path}: not a config: it is nested hundreds of levels deep.") from None
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected a mapping of keys to values at the top level.")
    try:
        filled: dict[str, Json] = _fill(content, os.environ)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    return filled


def _fault(error: yaml.YAMLError) -> str:
    """Return where and why reading ended, without the excerpt of the file, which may be secret."""
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return " ".join(str(error).split())
    mark = error.problem_mark
    return f"line {mark.line + 1}, column {mark.column + 1}: {error.problem}."


def with_overrides(
    content: dict[str, Json], overrides: Mapping[str, Json], *, source: str
) -> dict[str, Json]:
    """Return the content with values from a command line set by dotted key (``data.path``).

    A ``Path`` among the values is relative to the current folder, and becomes absolute.

    Raises
    ------
    ConfigError
        A section on the way to a key is no mapping.
    """
    for key, value in overrides.items():
        *sections, last = key.split(".")
        inner = content
        for section in sections:
            inner = inner.setdefault(section, {})
            if not isinstance(inner, dict):
                raise ConfigError(f"{source}: '{section}' must be a mapping.")
        inner[last] = str(Path(value).resolve()) if isinstance(value, Path) else value
    return content


class _Filled(str):
    """Text that came from the environment, and so may be a secret: no message shows it."""

    __slots__ = ()


def _fill(value: Json, environment: Mapping[str, str]) -> Json:
    if isinstance(value, dict):
        return {key: _fill(entry, environment) for key, entry in value.items()}
    if isinstance(value, list):
        return [_fill(entry, environment) for entry in value]
    if not isinstance(value, str):
        return value
    if "\0" in value or "${" in _VARIABLE.sub("", value):
        raise ConfigError(
            f"the value {value!r} holds a NUL or an unfinished variable; write ${{NAME}} or "
            "${NAME:-default}."
        )

    def lookup(match: re.Match[str]) -> str:
        name, default = match.group(1), match.group(2)
        found = environment.get(name, default)
        if found is None:
            raise ConfigError(
                f"environment variable '{name}' is not set; set it, or give a default with "
                f"${{{name}:-value}}."
            )
        return found

    filled = _VARIABLE.sub(lookup, value)
    return value if filled == value else _Filled(filled)


def validate(model: type[Model], content: Json, *, source: str) -> Model:
    """Validate ``content`` as ``model``, translating pydantic's report into one ``ConfigError``.

    Parameters
    ----------
    model : type
        A pydantic model.
    content : JSON-like
        What was read.
    source : str
        Named in the error, e.g. the file.
    """
    try:
        return model.model_validate(content)
    except ValidationError as error:
        known = ", ".join(sorted(model.model_fields))
        raise ConfigError(f"{source}: {problems(error, known)}") from error


_WANTED = {
    "dict_type": "give a mapping of keys to values",
    "frozen_set_type": "give a list",
    "model_attributes_type": "give a mapping of keys to values",
    "model_type": "give a mapping of keys to values",
    "path_type": "give a path",
    "tuple_type": "give a list",
}
"""What pydantic says in terms of Python, in terms of YAML; other messages are plain enough."""


def problems(error: ValidationError, known: str = "") -> str:
    """Say in one line what pydantic found, without showing what came from the environment."""
    problems = []
    for entry in error.errors(include_url=False):
        where = ".".join(str(part) for part in entry["loc"])
        kind, value = entry["type"], entry["input"]
        message = _WANTED.get(kind, entry["msg"].removeprefix("Value error, "))
        if kind == "extra_forbidden":
            top_level = known and len(entry["loc"]) == 1
            message = "unknown key" + (f" (known: {known})" if top_level else "")
            known = ""  # said once
        elif isinstance(value, _Filled):
            message += " (the value is from the environment)"
        elif kind != "value_error" and (isinstance(value, _SCALAR) or value is None):
            message += f", not {value!r:.80}"
        problems.append(f"{where}: {message}" if where else message)
    return "; ".join(problems)


_SCALAR = (bool, int, float, str)
