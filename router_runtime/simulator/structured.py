"""A value that fits a JSON schema, for structured output and the arguments of tools."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from router_runtime.types import Json

_DEEPEST: Final = 20  # schemas may refer to themselves


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
    value = _instance(schema, schema, text, 0)
    if isinstance(value, dict) and values:
        value.update(values)
    return value


def _instance(schema: Json, root: Mapping[str, Json], text: str, depth: int) -> Json:
    schema = _resolved(schema, root)
    if not isinstance(schema, Mapping) or depth > _DEEPEST:
        return text if isinstance(schema, bool) else None
    if "const" in schema:
        return schema["const"]
    if schema.get("enum"):
        return schema["enum"][0]
    for name in ("anyOf", "oneOf", "allOf"):
        if schema.get(name):
            return _instance(schema[name][0], root, text, depth + 1)
    kind = schema.get("type", "object" if "properties" in schema else "string")
    match kind[0] if isinstance(kind, list) and kind else kind:
        case "object":
            properties = schema.get("properties", {})
            return {n: _instance(s, root, text, depth + 1) for n, s in properties.items()}
        case "array":
            item = schema.get("items", {"type": "string"})
            return [_instance(item, root, text, depth + 1)] * max(1, schema.get("minItems", 1))
        case "integer" | "number":
            return schema.get("minimum", min(1, schema.get("maximum", 1)))
        case "boolean":
            return True
        case "null":
            return None
    return text[: schema.get("maxLength", len(text))]


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
