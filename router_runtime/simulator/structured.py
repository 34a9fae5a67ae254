"""A value that fits a JSON schema, for structured output and the arguments of tools."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import UnionType
from typing import Final

from router_runtime.types import Json

_DEEPEST: Final = 20  # schemas may refer to themselves,
_MOST_VALUES: Final = 2_000  # and more than once on every level
_MOST_ITEMS: Final = 100


def instance_of(
    schema: Mapping[str, Json], text: str, *, values: Mapping[str, Json] | None = None
) -> Json:
    """Return the simplest value that fits ``schema``.

    Parameters
    ----------
    schema : mapping
        JSON schema; ``type``, ``properties``, ``items``, ``enum``, ``const``, ``anyOf``, ``oneOf``,
        ``allOf``, bounds and references into ``$defs`` are followed. Patterns and formats are not.
    text : str
        Stands where any text may stand.
    values : mapping, optional
        Values of the outermost object's properties that are known.
    """
    value = _Filler(schema, text).instance(schema, 0)
    if isinstance(value, dict) and values:
        value.update(values)
    return value


@dataclass
class _Filler:
    """Fills one schema; a keyword whose value is of a wrong kind counts as absent."""

    root: Mapping[str, Json]
    text: str
    left: int = _MOST_VALUES

    def instance(self, schema: Json, depth: int) -> Json:
        schema = _resolved(schema, self.root)
        self.left -= 1
        if not isinstance(schema, Mapping) or depth > _DEEPEST or self.left < 0:
            return self.text if isinstance(schema, bool) else None
        if "const" in schema:
            return schema["const"]
        for name in ("enum", "anyOf", "oneOf", "allOf"):
            options = schema.get(name)
            if isinstance(options, list) and options:
                return options[0] if name == "enum" else self.instance(options[0], depth + 1)
        kind = schema.get("type", "object" if "properties" in schema else "string")
        match kind[0] if isinstance(kind, list) and kind else kind:
            case "object":
                properties = _of_kind(schema.get("properties"), dict, {})
                return {name: self.instance(s, depth + 1) for name, s in properties.items()}
            case "array":
                count = _of_kind(schema.get("minItems"), int, 1)
                item = self.instance(schema.get("items", {"type": "string"}), depth + 1)
                return [item] * min(max(1, count), _MOST_ITEMS)
            case "integer" | "number":
                most = _of_kind(schema.get("maximum"), int | float, 1)
                return _of_kind(schema.get("minimum"), int | float, min(1, most))
            case "boolean":
                return True
            case "null":
                return None
        return self.text[: max(0, _of_kind(schema.get("maxLength"), int, len(self.text)))]


def _of_kind(value: Json, kind: type | UnionType, otherwise: Json) -> Json:
    return value if isinstance(value, kind) and not isinstance(value, bool) else otherwise


def _resolved(schema: Json, root: Mapping[str, Json]) -> Json:
    """Follow references within the schema; one that leads nowhere allows anything."""
    for _ in range(_DEEPEST):
        reference = schema.get("$ref") if isinstance(schema, Mapping) else None
        if not isinstance(reference, str):
            return schema
        found: Json = root
        for name in reference.removeprefix("#").strip("/").split("/"):
            found = found.get(name) if isinstance(found, Mapping) else None
        schema = {"type": "string"} if found is None else found
    return {"type": "null"}
