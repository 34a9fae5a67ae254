from __future__ import annotations

import numpy as np
import pytest

from router_runtime.errors import ArtifactError, ArtifactIntegrityError, QueryError
from router_runtime.prediction.heads.base import load_head, sigmoid
from router_runtime.prediction.heads.joined import (
    AddedColumn,
    JoinedHead,
    added_inputs,
    deviation,
    moderated,
)
from router_runtime.prediction.heads.logistic import LogisticHead
from router_runtime.prediction.heads.prior import PriorHead

X = np.array([[3.0, 4.0], [0.0, 2.0]], np.float32)


def column(mean: list[float], *, spread: float = 0.0) -> AddedColumn:
    """On a base of two models and one direction, the first feature."""
    return AddedColumn(
        projection=np.array([[1.0], [0.0]], np.float32),
        center=np.zeros(1),
        mean=np.array(mean),
        factor=spread * np.eye(4),
    )


def joined(*columns: AddedColumn) -> JoinedHead:
    return JoinedHead(PriorHead(np.array([0.75, 0.5]), n_features=2), columns)


def test_a_column_is_linear_in_the_base_heads_log_odds_and_in_the_direction():
    """log odds: 1 x 1 + 2 x log 3 + 0 + 0.5 x 1 for the first row; no direction in the second."""
    P = joined(column([1.0, 2.0, 7.0, 0.5])).predict_proba(X)
    np.testing.assert_allclose(P[:, 2], sigmoid(np.array([1.5 + 2 * np.log(3), 1 + 2 * np.log(3)])))


def test_the_inputs_are_a_one_the_log_odds_and_a_direction_of_length_1():
    inputs = added_inputs(
        X, np.array([[0.75, 0.5]] * 2), projection=np.eye(2, dtype=np.float32), center=np.zeros(2)
    )
    np.testing.assert_allclose(inputs[0], [1.0, np.log(3), 0.0, 0.6, 0.8])


def test_the_base_heads_columns_stay_to_the_bit():
    base = LogisticHead(np.array([[0.3, -0.2], [0.1, 0.9]]), np.array([0.1, 0.2]))
    head = JoinedHead(base, [column([1.0, 2.0, 7.0, 0.5])])
    np.testing.assert_array_equal(head.predict_proba(X)[:, :2], base.predict_proba(X))


def test_variance_draws_towards_one_half():
    """1 + pi / 8 x variance = 4 halves the log odds: 9 : 1 becomes 3 : 1."""
    assert moderated(np.log([9.0]), np.array([24 / np.pi])) == pytest.approx(0.75)
    assert moderated(np.log([9.0]), np.zeros(1)) == pytest.approx(0.9)


def test_a_certain_base_head_does_not_decide_alone():
    head = JoinedHead(PriorHead(np.array([1.0, 0.5]), n_features=2), [column([0.0, 1.0, 0, 0])])
    assert head.predict_proba(X)[0, 2] == pytest.approx(0.999)


def test_the_deviation_is_that_of_a_probability():
    known, small, boundless = deviation(np.zeros(3), np.array([0.0, 1e-4, 1e6]))
    assert known == 0.0
    assert small == pytest.approx(0.25 * 0.01, rel=1e-3)  # the sigmoid's slope at 0 is 1/4
    assert boundless == pytest.approx(0.5, abs=1e-3)  # a coin: 0 or 1


def test_the_deviation_agrees_with_random_draws():
    draws = sigmoid(np.random.default_rng(0).normal(1.0, 2.0, 400_000))
    assert deviation(np.ones(1), np.full(1, 4.0))[0] == pytest.approx(draws.std(), abs=1e-3)


def test_uncertainty_is_unknown_for_the_base_heads_columns_and_grows_with_the_variance():
    wide, narrow = column([1.0, 0, 0, 0], spread=1.0), column([1.0, 0, 0, 0], spread=0.1)
    uncertainty = joined(wide, narrow).uncertainty(X)
    assert np.isnan(uncertainty[:, :2]).all()
    assert (uncertainty[:, 2] > uncertainty[:, 3]).all()
    assert (uncertainty[:, 3] > 0).all()


def test_uncertainty_checks_its_features():
    with pytest.raises(QueryError, match="3 columns"):
        joined(column([1.0, 0, 0, 0])).uncertainty(np.zeros((1, 3), np.float32))


def test_a_second_column_joins_the_same_base():
    first, second = column([1.0, 2.0, 7.0, 0.5]), column([-1.0, 0.0, 1.0, 0.0], spread=0.3)
    head = joined(first).with_column(second)
    assert (head.n_models, head.base.n_models) == (4, 2)
    np.testing.assert_array_equal(head.predict_proba(X)[:, :3], joined(first).predict_proba(X))
    np.testing.assert_array_equal(
        head.predict_proba(X)[:, 3], joined(second).predict_proba(X)[:, 2]
    )


def test_files_give_an_equal_head():
    head = joined(column([1.0, 2.0, 7.0, 0.5], spread=0.2), column([0.0, 1.0, 0.0, 0.0]))
    files = head.to_files("head")
    assert sorted(files) == [
        "head-added-0.safetensors",
        "head-added-1.safetensors",
        "head-base.safetensors",
    ]
    again = load_head(head.describe(), files)
    np.testing.assert_array_equal(again.predict_proba(X), head.predict_proba(X))
    np.testing.assert_array_equal(again.uncertainty(X), head.uncertainty(X))
    assert again.to_files("head") == files


def description(**changes) -> dict:
    return joined(column([1.0, 2.0, 7.0, 0.5])).describe() | changes


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"added": []}, ArtifactError, "'added'"),
        ({"added": [{"components": 65}]}, ArtifactError, "'added.0.components'"),
        ({"added": [{"components": 2}]}, ArtifactIntegrityError, "expected floats of shape"),
        ({"n_models": 4}, ArtifactError, "predict 3 models; the head takes 2 "),
        ({"n_features": 3}, ArtifactError, "take 2 features"),
        ({"base": {"kind": "forest"}}, ArtifactError, "forest"),
    ],
)
def test_a_description_that_does_not_fit_is_refused(changes, error, message):
    files = joined(column([1.0, 2.0, 7.0, 0.5])).to_files("head")
    with pytest.raises(error, match=message):
        load_head(description(**changes), files)


def test_joined_heads_are_not_nested_also_not_by_way_of_a_stack():
    with pytest.raises(ArtifactError, match="itself a joined head"):
        load_head(description(base=description()), {})
    stack = {"kind": "stack", "n_features": 2, "n_models": 3, "members": [description()]}
    with pytest.raises(ArtifactError, match="member of a stack"):
        load_head(stack, {})


def test_a_missing_column_is_told():
    files = joined(column([1.0, 2.0, 7.0, 0.5])).to_files("head")
    del files["head-added-0.safetensors"]
    with pytest.raises(ArtifactIntegrityError, match="head-added-0"):
        load_head(description(), files)
