from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router_runtime import ModelRouter
from router_runtime.config import RuntimeConfig
from router_runtime.errors import RequestError
from router_runtime.service.controls import read_controls
from router_runtime.service.values import Controls
from router_runtime.service_config import ClampConfig
from router_runtime.yaml_config import validate

LARGE, SMALL = "sim-large-vl", "sim-small-text"


@pytest.fixture(scope="module")
def router(trained):
    return ModelRouter(trained[0].output)


@pytest.fixture(scope="module")
def relative(trained):
    content = {"artifact": trained[0].output, "model_costs": {LARGE: 1.0, SMALL: 0.1}}
    return ModelRouter.from_config(validate(RuntimeConfig, content, source="test"))


@pytest.fixture
def read(router):
    def _read(content, *, model_field_policy=None, router=router, **clamps):
        return read_controls(
            content,
            model_field_policy=model_field_policy,
            router=router,
            clamps=ClampConfig(**clamps),
        )

    return _read


def refused(read, content, **more) -> RequestError:
    with pytest.raises(RequestError) as caught:
        read(content, **more)
    assert caught.value.status == 400
    return caught.value


def test_no_object_and_an_empty_one_ask_for_nothing(read):
    assert read(None) == read({}) == Controls()


def test_everything_that_can_be_asked_for_is_read(read):
    assert read(
        {
            "policy": "economy",
            "thresholds": {SMALL: 0.7},
            "max_cost_usd": 0.1,
            "min_probability": 0.25,
            "allow": [SMALL, LARGE],
            "deny": [LARGE],
            "dry_run": True,
        }
    ) == Controls(
        policy="economy",
        thresholds={SMALL: 0.7},
        max_cost_usd=Decimal("0.1"),
        min_probability=0.25,
        allow=frozenset({SMALL, LARGE}),
        deny=frozenset({LARGE}),
        dry_run=True,
    )


def test_null_means_not_asked_for(read):
    assert read({"policy": None, "thresholds": None, "dry_run": None}) == Controls()


@pytest.mark.parametrize(
    ("content", "param"),
    [
        ("economy", "router"),
        ([], "router"),
        ({"polcy": "economy"}, "router.polcy"),
        ({"policy": 3}, "router.policy"),
        ({"policy": ""}, "router.policy"),
        ({"thresholds": 0.5}, "router.thresholds"),
        ({"thresholds": {"nobody": 0.5}}, "router.thresholds"),
        ({"thresholds": {SMALL: 1.5}}, f"router.thresholds.{SMALL}"),
        ({"thresholds": {SMALL: True}}, f"router.thresholds.{SMALL}"),
        ({"max_cost_usd": -1}, "router.max_cost_usd"),
        ({"max_cost_usd": "1"}, "router.max_cost_usd"),
        ({"max_cost_usd": float("inf")}, "router.max_cost_usd"),
        ({"max_cost_usd": float("nan")}, "router.max_cost_usd"),
        ({"max_cost_usd": False}, "router.max_cost_usd"),
        ({"min_probability": 1.01}, "router.min_probability"),
        ({"min_probability": float("nan")}, "router.min_probability"),
        ({"allow": SMALL}, "router.allow"),
        ({"allow": [SMALL, 3]}, "router.allow"),
        ({"deny": ["nobody"]}, "router.deny"),
        ({"dry_run": 1}, "router.dry_run"),
    ],
)
def test_what_is_wrong_is_named_and_never_ignored(read, content, param):
    error = refused(read, content)
    assert (error.code, error.param) == ("invalid_router_controls", param)


def test_an_unknown_policy_has_a_code_of_its_own(read):
    error = refused(read, {"policy": "nothing"})
    assert (error.code, error.param) == ("unknown_policy", "router.policy")
    assert "economy" in str(error)
    error = refused(read, None, model_field_policy="nothing")
    assert (error.code, error.param) == ("unknown_policy", "model")


def test_the_model_field_names_a_policy_as_well(read):
    assert read(None, model_field_policy="economy").policy == "economy"
    assert read({"policy": "economy"}, model_field_policy="economy").policy == "economy"
    error = refused(read, {"policy": "quality"}, model_field_policy="economy")
    assert error.code == "invalid_router_controls"


def test_thresholds_are_moved_into_the_bounds(read):
    content = {"policy": "economy", "thresholds": {SMALL: 0.1, LARGE: 0.99}}
    controls = read(content, threshold_min=0.3, threshold_max=0.9)
    assert controls.thresholds == {SMALL: 0.3, LARGE: 0.9}


def test_thresholds_of_a_policy_that_has_none_are_refused(read):
    error = refused(read, {"policy": "quality", "thresholds": {SMALL: 0.5}})
    assert error.param == "router.thresholds"
    assert "has no thresholds" in str(error)


def test_the_clamp_on_cost_holds_also_where_nothing_is_asked_for(read):
    assert read(None, max_cost_usd=Decimal("0.5")).max_cost_usd == Decimal("0.5")
    assert read({"max_cost_usd": 2}, max_cost_usd=Decimal("0.5")).max_cost_usd == Decimal("0.5")
    assert read({"max_cost_usd": 0}, max_cost_usd=Decimal("0.5")).max_cost_usd == 0


def test_a_bound_in_dollars_is_refused_where_costs_are_relative(read, relative):
    error = refused(read, {"max_cost_usd": 1}, router=relative)
    assert "US dollars" in str(error)


def test_long_values_are_not_repeated_whole(read):
    assert len(str(refused(read, {"policy": "x" * 10_000}))) < 400
    error = refused(read, {"y" * 10_000: 1})
    assert len(str(error)) < 400
    assert error.param is not None
    assert len(error.param) < 100


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([SMALL, LARGE, "x"]), inner, max_size=3)
    ),
    max_leaves=6,
)
_KEYS = st.sampled_from(
    ["policy", "thresholds", "max_cost_usd", "min_probability", "allow", "deny", "dry_run", "?"]
)


@given(content=_JSON | st.dictionaries(_KEYS, _JSON, max_size=4))
def test_any_json_is_read_or_refused_with_400(router, content):
    try:
        controls = read_controls(
            content, model_field_policy=None, router=router, clamps=ClampConfig()
        )
    except RequestError as error:
        assert error.status == 400
    else:
        assert isinstance(controls, Controls)
