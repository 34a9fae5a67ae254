"""Values to versioned JSON and back."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import pytest
from pydantic import TypeAdapter

from router_runtime.errors import DataError
from router_training.versioned import from_versioned, plain, to_versioned


@dataclass(frozen=True)
class Point:
    x: float
    names: tuple[str, ...]


POINT = TypeAdapter(Point)


def test_unknown_is_null_and_never_reached_is_inf():
    found = plain({"a": float("nan"), "b": (float("inf"), 1.5), "c": None})
    assert found == {"a": None, "b": ["inf", 1.5], "c": None}


def test_a_value_comes_back_as_it_went():
    written = to_versioned(asdict(Point(1.5, ("a", "b"))), 3)
    assert written == {"schema_version": 3, "x": 1.5, "names": ["a", "b"]}
    assert from_versioned(POINT, written, 3, what="It", remedy="x") == Point(1.5, ("a", "b"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"schema_version": 2, "x": 1, "names": []}, "It is not of schema version 3; ask again"),
        ([], "not of schema version 3"),
        ({"schema_version": 3, "x": "much", "names": []}, "It is malformed at 'x'"),
    ],
)
def test_another_version_or_a_malformed_value_is_refused(content, message):
    with pytest.raises(DataError, match=message):
        from_versioned(POINT, content, 3, what="It", remedy="ask again")
