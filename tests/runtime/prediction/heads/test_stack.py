from __future__ import annotations

import numpy as np
import pytest

from router_runtime.errors import ArtifactError
from router_runtime.prediction.heads.base import load_head, logit, sigmoid
from router_runtime.prediction.heads.logistic import LogisticHead
from router_runtime.prediction.heads.mlp import MLPHead
from router_runtime.prediction.heads.prior import PriorHead
from router_runtime.prediction.heads.stack import StackHead


def stack() -> StackHead:
    members = [
        PriorHead(np.array([0.9, 0.5]), n_features=2),
        PriorHead(np.array([0.5, 0.5]), n_features=2),
    ]
    weight = np.array([[0.5, 1.0], [0.5, 1.0]])
    return StackHead(members, weight=weight, intercept=np.array([0.0, np.log(3)]))


X = np.zeros((1, 2), np.float32)


def test_log_odds_are_weighted_and_added():
    """Odds sqrt(9 x 1) = 3 and 1 x 1 x 3 = 3."""
    np.testing.assert_allclose(stack().predict_proba(X), [[0.75, 0.75]])


def test_a_certain_member_does_not_decide_alone():
    members = [PriorHead(np.array([rate]), n_features=2) for rate in (1.0, 0.1)]
    head = StackHead(members, weight=np.full((2, 1), 0.5), intercept=np.zeros(1))
    assert head.predict_proba(X)[0, 0] < 0.999


def test_members_files_are_nested_under_the_stem():
    files = stack().to_files("head")
    assert sorted(files) == ["head-0.safetensors", "head-1.safetensors", "head.safetensors"]


def test_a_stack_in_a_stack_is_refused():
    description = stack().describe()
    description["members"] = [description]
    with pytest.raises(ArtifactError, match="member of a stack"):
        load_head(description, stack().to_files("head"))


def test_members_of_another_size_are_refused():
    description = stack().describe() | {"n_features": 3}
    with pytest.raises(ArtifactError, match=r"'head-0' takes 2 features.*takes 3"):
        load_head(description, stack().to_files("head"))


def test_members_log_odds_are_those_of_their_probabilities():
    rng = np.random.default_rng(0)
    linear = LogisticHead(20 * rng.normal(size=(2, 2)), rng.normal(size=2))
    first = (20 * rng.normal(size=(2, 3)), rng.normal(size=3))
    layers = [first, (rng.normal(size=(3, 2)), np.ones(2))]
    network = MLPHead.from_members([layers, layers])
    Q = rng.normal(size=(50, 2)).astype(np.float32)
    for member in (linear, network, stack()):
        np.testing.assert_allclose(
            member.log_odds(Q), logit(member.predict_proba(Q)), rtol=0, atol=1e-9
        )
    weight, intercept = rng.random((2, 2)), rng.normal(size=2)
    joined = StackHead([linear, network], weight=weight, intercept=intercept).predict_proba(Q)
    Z = intercept + sum(
        w * logit(member.predict_proba(Q))
        for w, member in zip(weight, (linear, network), strict=True)
    )
    np.testing.assert_allclose(joined, sigmoid(Z), rtol=0, atol=1e-9)
