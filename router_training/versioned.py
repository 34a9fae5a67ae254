"""Dataclasses to versioned JSON and back, for files that outlive the code that wrote them."""

from __future__ import annotations

import math
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from router_runtime.errors import DataError
from router_runtime.types import Json

Value = TypeVar("Value")


def plain(value: Json) -> Json:
    """Return a value as JSON can hold it: NaN as None, infinity as ``"inf"``, tuples as lists."""
    if isinstance(value, dict):
        return {key: plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value


def to_versioned(fields: Json, version: int) -> Json:
    """Return a dataclass's fields as plain values, with the schema's version in front."""
    return {"schema_version": version, **plain(fields)}


def from_versioned(
    adapter: TypeAdapter[Value], content: Json, version: int, *, what: str, remedy: str
) -> Value:
    """Read back what ``to_versioned`` gave.

    Parameters
    ----------
    adapter : TypeAdapter
        Of the dataclass.
    content : JSON-like
        Untrusted.
    version : int
        The only one that is read.
    what, remedy : str
        The value's name, and how to make it again, for messages: "The report", "evaluate again".

    Raises
    ------
    DataError
        It has another schema version, or is not of this kind.
    """
    if not isinstance(content, dict) or content.get("schema_version") != version:
        raise DataError(f"{what} is not of schema version {version}; {remedy}.")
    fields = {key: value for key, value in content.items() if key != "schema_version"}
    try:
        return adapter.validate_python(fields)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise DataError(f"{what} is malformed at '{where}': {first['msg']}.") from None
