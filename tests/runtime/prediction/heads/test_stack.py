from __future__ import annotations

import numpy as np
import pytest

from router_runtime.errors import ArtifactError
from router_runtime.prediction.heads.base import load_head
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
