from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router_runtime.simulator.structured import instance_of


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"type": "string"}, "hello"),
        ({"type": "string", "maxLength": 2}, "he"),
        ({"type": "integer", "minimum": 3}, 3),
        ({"type": "number", "maximum": -2}, -2),
        ({"type": "boolean"}, True),
        ({"type": ["null", "string"]}, None),
        ({"enum": ["b", "a"]}, "b"),
        ({"const": 7}, 7),
        ({"anyOf": [{"type": "null"}, {"type": "string"}]}, None),
        ({"type": "array", "items": {"type": "integer"}, "minItems": 2}, [1, 1]),
        ({"properties": {"a": {"type": "string"}, "b": {"const": 1}}}, {"a": "hello", "b": 1}),
        ({"$ref": "#/$defs/n", "$defs": {"n": {"type": "integer"}}}, 1),
        ({"$ref": "#/$defs/missing"}, "hello"),
        ({}, "hello"),
    ],
)
def test_a_value_fits_its_schema(schema, value):
    assert instance_of(schema, "hello") == value


def test_known_values_take_the_place_of_properties():
    schema = {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "string"}}}
    assert instance_of(schema, "x", values={"b": "y"}) == {"a": "x", "b": "y"}


def test_a_schema_of_itself_ends():
    schema = {"type": "object", "properties": {"next": {"$ref": "#"}}}
    assert "next" in instance_of(schema, "x")
    assert instance_of({"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}, "x") is None


def test_a_schema_of_itself_on_several_places_ends_soon():
    child = {"$ref": "#"}
    schema = {"type": "object", "properties": {"left": child, "right": child, "more": child}}
    assert len(str(instance_of(schema, "x"))) < 100_000


def test_no_list_grows_beyond_reason():
    assert len(instance_of({"type": "array", "minItems": 10**12}, "x")) == 100


KEYWORDS = ("type", "properties", "items", "enum", "anyOf", "allOf", "$ref", "$defs", "minItems")
KINDS = ("object", "array", "string", "integer", "#", "#/$defs/a")
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from(KINDS),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from((*KEYWORDS, "maxLength", "minimum", "maximum", "a")), inner, max_size=4
        )
    ),
    max_leaves=12,
)


@given(ANYTHING.filter(lambda schema: isinstance(schema, dict)))
def test_what_is_no_schema_is_filled_somehow_and_never_an_error(schema):
    instance_of(schema, "hello")
