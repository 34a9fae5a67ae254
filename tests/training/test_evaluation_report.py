from __future__ import annotations

import dataclasses
import json
import types
import typing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router_runtime.errors import DataError
from router_training.evaluation_report import EvaluationReport

FLOATS = st.floats(allow_nan=True, allow_infinity=True)
POLICIES = st.just({"kind": "utility", "lambda_per_usd": 2.5, "fallback": None})


def values_of(hint) -> st.SearchStrategy:
    """Anything that a field of this type may hold."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is float:
        return FLOATS
    if hint in (int, str):
        return st.integers(0, 99) if hint is int else st.text(max_size=3)
    if origin is types.UnionType:
        return st.one_of(st.none(), values_of(arguments[0]))
    if origin is tuple and arguments[-1] is Ellipsis:
        return st.lists(values_of(arguments[0]), max_size=2).map(tuple)
    if origin is tuple:
        return st.tuples(*map(values_of, arguments))
    if origin is dict:
        if arguments[1] is typing.Any:
            return POLICIES
        return st.dictionaries(st.text(max_size=2), values_of(arguments[1]), max_size=2)
    return instances(hint)


def instances(kind) -> st.SearchStrategy:
    hints = typing.get_type_hints(kind)
    fields = {field.name: values_of(hints[field.name]) for field in dataclasses.fields(kind)}
    return st.builds(kind, **fields)


@given(instances(EvaluationReport))
@settings(deadline=None, max_examples=40)
def test_any_report_comes_back_from_its_json(report):
    text = json.dumps(report.to_json(), allow_nan=False)
    assert repr(EvaluationReport.from_json(json.loads(text))) == repr(report)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"schema_version": 1}, "not of schema version 2; evaluate again"),
        ([], "not of schema version 2"),
        (None, "not of schema version 2"),
        ({"schema_version": 2, "policy": "p"}, "malformed"),
    ],
)
def test_another_version_or_a_malformed_report_is_refused(content, message):
    with pytest.raises(DataError, match=message):
        EvaluationReport.from_json(content)
