from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router_runtime.errors import ArtifactError, QueryError
from router_runtime.prediction.calibration import (
    Calibrator,
    IsotonicMap,
    NoneMap,
    SigmoidMap,
    TemperatureMap,
)

MIXED = Calibrator(
    (
        NoneMap(),
        TemperatureMap(temperature=2.0),
        SigmoidMap(slope=1.0, intercept=float(np.log(3))),
        IsotonicMap(x=(0.2, 0.6), y=(0.1, 0.9)),
        NoneMap(prior=0.5, shrinkage=0.25),
    )
)
unit = st.floats(0, 1)


def test_each_map_by_hand():
    P = np.array([[0.9, 0.9, 0.5, 0.4, 0.9]])
    # odds 9: temperature 2 takes the square root; odds 1 x 3; half way between the knots;
    # a quarter of the way from .9 to .5
    np.testing.assert_allclose(MIXED.apply(P), [[0.9, 0.75, 0.75, 0.5, 0.8]])


def test_isotonic_is_constant_outside_its_knots():
    P = np.array([[0.0], [1.0]])
    calibrator = Calibrator((IsotonicMap(x=(0.2, 0.6), y=(0.1, 0.9)),))
    np.testing.assert_allclose(calibrator.apply(P), [[0.1], [0.9]])


def test_the_identity_changes_no_bit_and_its_input_is_not_written_to():
    P = np.random.default_rng(0).random((20, 3))
    np.testing.assert_array_equal(Calibrator.identity(3).apply(P), P)
    before = np.tile(P[:, :1], 5)
    MIXED.apply(before)
    np.testing.assert_array_equal(before, np.tile(P[:, :1], 5))


def test_json_roundtrip():
    text = json.dumps(MIXED.to_json(), allow_nan=False)
    assert Calibrator.from_json(json.loads(text)) == MIXED


maps = st.one_of(
    st.builds(NoneMap, prior=unit, shrinkage=unit),
    st.builds(TemperatureMap, temperature=st.floats(0.01, 100), prior=unit, shrinkage=unit),
    st.builds(
        SigmoidMap,
        slope=st.floats(0, 20),
        intercept=st.floats(-50, 50),
        prior=unit,
        shrinkage=unit,
    ),
    st.lists(st.tuples(unit, unit), min_size=1, max_size=8, unique_by=lambda xy: xy[0]).map(
        lambda knots: IsotonicMap(
            x=tuple(sorted(x for x, _ in knots)), y=tuple(sorted(y for _, y in knots))
        )
    ),
)


@settings(deadline=None, max_examples=200)
@given(st.lists(maps, min_size=1, max_size=4), st.lists(unit, min_size=1, max_size=20))
def test_every_map_stays_in_the_unit_interval_and_keeps_the_order(chosen, p):
    P = np.tile(np.sort(p)[:, None], len(chosen))
    calibrated = Calibrator(tuple(chosen)).apply(P)
    assert ((calibrated >= 0) & (calibrated <= 1)).all()
    assert (np.diff(calibrated, axis=0) >= -1e-12).all()


@settings(deadline=None, max_examples=50)
@given(st.lists(maps, min_size=1, max_size=4))
def test_every_calibrator_survives_json(chosen):
    calibrator = Calibrator(tuple(chosen))
    assert Calibrator.from_json(json.loads(json.dumps(calibrator.to_json()))) == calibrator


def test_a_batch_equals_its_rows():
    P = np.random.default_rng(0).random((20, 5))
    rows = np.vstack([MIXED.apply(row[None]) for row in P])
    np.testing.assert_array_equal(MIXED.apply(P), rows)
    assert MIXED.apply(P[:0]).shape == (0, 5)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "malformed at 'calibration'"),
        ({"maps": []}, "maps"),
        ({"maps": [{"kind": "magic"}]}, "maps.0"),
        ({"maps": [{"kind": "temperature"}]}, "temperature"),
        ({"maps": [{"kind": "temperature", "temperature": 0}]}, "greater than 0"),
        ({"maps": [{"kind": "sigmoid", "slope": -1, "intercept": 0}]}, "slope"),
        ({"maps": [{"kind": "sigmoid", "slope": 1, "intercept": float("nan")}]}, "intercept"),
        ({"maps": [{"kind": "isotonic", "x": [0.1, 0.1], "y": [0, 1]}]}, "increase strictly"),
        ({"maps": [{"kind": "isotonic", "x": [0.1, 0.2], "y": [1, 0]}]}, "not decrease"),
        ({"maps": [{"kind": "isotonic", "x": [0.1], "y": [0, 1]}]}, "differ in length"),
        ({"maps": [{"kind": "none", "extra": 1}]}, "extra"),
        ({"maps": [{"kind": "none", "shrinkage": 2}]}, "shrinkage"),
    ],
)
def test_malformed_json_is_refused_with_its_field(value, words):
    with pytest.raises(ArtifactError, match=words):
        Calibrator.from_json(value)


def test_another_number_of_models_is_refused():
    with pytest.raises(QueryError, match=r"\(4, 2\).*5 models"):
        MIXED.apply(np.zeros((4, 2)))
