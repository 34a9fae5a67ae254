from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from router_runtime.prediction.heads.base import CHUNK_ROWS, load_head, logit
from router_runtime.prediction.heads.mlp import MLPHead


def member(rng: np.random.Generator, widths: tuple[int, ...]):
    return [(rng.normal(size=(a, b)), rng.normal(size=b)) for a, b in pairwise(widths)]


def test_one_hidden_layer_by_hand():
    """relu([1, -1]) = [1, 0]; logit = log 3."""
    hidden = (np.eye(2), np.zeros(2))
    output = (np.array([[np.log(3)], [5.0]]), np.zeros(1))
    head = MLPHead.from_members([[hidden, output]])
    np.testing.assert_allclose(head.predict_proba(np.array([[1, -1]], np.float32)), [[0.75]])


def test_members_are_averaged_in_log_odds():
    """sqrt(odds 9 x odds 1) = odds 3."""
    members = [[(np.zeros((1, 1)), np.log([odds]))] for odds in (9.0, 1.0)]
    head = MLPHead.from_members(members)
    np.testing.assert_allclose(head.predict_proba(np.ones((1, 1), np.float32)), [[0.75]])


@pytest.mark.parametrize("widths", [(7, 3), (7, 5, 3), (7, 6, 5, 3), (7, 6, 5, 4, 3)])
@pytest.mark.parametrize("n_members", [1, 4])
@pytest.mark.parametrize("n", [0, 1, 9])
def test_an_ensemble_equals_the_mean_logit_of_its_members(widths, n_members, n):
    rng = np.random.default_rng(0)
    members = [member(rng, widths) for _ in range(n_members)]
    X = (0.3 * rng.normal(size=(n, 7))).astype(np.float32)
    joined = MLPHead.from_members(members).logits(X)
    alone = [MLPHead.from_members([one]).logits(X) for one in members]
    np.testing.assert_allclose(joined, np.mean(alone, axis=0), rtol=1e-5, atol=1e-4)


def test_an_ensemble_survives_its_files():
    rng = np.random.default_rng(1)
    head = MLPHead.from_members([member(rng, (7, 6, 5, 3)) for _ in range(3)])
    X = rng.normal(size=(4, 7)).astype(np.float32)
    again = load_head(head.describe(), head.to_files("stem"), "stem")
    np.testing.assert_array_equal(again.predict_proba(X), head.predict_proba(X))
    assert head.describe() == {
        "kind": "mlp",
        "n_features": 7,
        "n_models": 3,
        "members": 3,
        "hidden_dims": [6, 5],
    }


def test_more_rows_than_a_chunk_are_predicted_alike():
    rng = np.random.default_rng(2)
    head = MLPHead.from_members([member(rng, (3, 4, 2))])
    X = rng.normal(size=(CHUNK_ROWS + 5, 3)).astype(np.float32)
    P = head.predict_proba(X)
    assert P.shape == (CHUNK_ROWS + 5, 2)
    np.testing.assert_allclose(P[-5:], head.predict_proba(X[-5:]), rtol=0, atol=1e-6)


def test_the_input_is_not_written_to():
    head = MLPHead.from_members([member(np.random.default_rng(3), (3, 4, 2))])
    X = np.full((2, 3), 0.5, np.float32)
    head.predict_proba(X)
    np.testing.assert_array_equal(X, 0.5)
    assert np.isfinite(logit(head.predict_proba(X))).all()
