"""The combination of other heads: per model, a weighted sum of their log odds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

import numpy as np
from pydantic import Field

from router_runtime.errors import ArtifactError
from router_runtime.prediction.heads.base import (
    RESTORE,
    BaseHead,
    HeadDescription,
    load_head,
    logit,
    read_tensors,
    sigmoid,
    write_tensors,
)
from router_runtime.types import F32, F64, Head, Json


class StackDescription(HeadDescription):
    """The members' descriptions, in the order of the weights."""

    kind: Literal["stack"] = "stack"
    members: tuple[dict[str, Any], ...] = Field(min_length=1)


class StackHead(BaseHead):
    """``P[:, j] = sigmoid(sum_k weight[k, j] * logit(P_k[:, j]) + intercept[j])``.

    Parameters
    ----------
    members : sequence of Head
        Heads on the same features and models; none is itself a stack.
    weight : ndarray of shape (n_members, n_models), float64, not negative
        A member never votes against itself.
    intercept : ndarray of shape (n_models,), float64
        In log odds.
    """

    Description = StackDescription

    def __init__(self, members: Sequence[Head], *, weight: F64, intercept: F64) -> None:
        super().__init__(
            StackDescription(
                n_features=members[0].n_features,
                n_models=members[0].n_models,
                members=tuple(member.describe() for member in members),
            )
        )
        self._members = tuple(members)
        self._weight = np.ascontiguousarray(weight, dtype=np.float64)
        self._intercept = np.ascontiguousarray(intercept, dtype=np.float64)

    def _probabilities(self, X: F32) -> F64:
        Z = np.tile(self._intercept, (len(X), 1))
        for member, weight in zip(self._members, self._weight, strict=True):
            # X is checked; a member of this package may know its log odds without a detour.
            if isinstance(member, BaseHead):
                Z += weight * member.log_odds(X)
            else:
                Z += weight * logit(member.predict_proba(X))
        return sigmoid(Z)

    def to_files(self, stem: str) -> dict[str, bytes]:
        """Return ``<stem>.safetensors`` and the files of member i under ``<stem>-<i>``."""
        files = write_tensors(stem, {"weight": self._weight, "intercept": self._intercept})
        for i, member in enumerate(self._members):
            files |= member.to_files(f"{stem}-{i}")
        return files

    @classmethod
    def from_files(
        cls, description: StackDescription, files: Mapping[str, bytes], *, stem: str
    ) -> Self:
        """Read the weights and every member."""
        sizes = (description.n_features, description.n_models)
        members = [
            _load_member(member, files, f"{stem}-{i}", sizes)
            for i, member in enumerate(description.members)
        ]
        m = description.n_models
        shapes: dict[str, tuple[int | None, ...]] = {
            "weight": (len(members), m),
            "intercept": (m,),
        }
        tensors = read_tensors(files, stem, shapes)
        return cls(members, weight=tensors["weight"], intercept=tensors["intercept"])


def _load_member(
    description: Mapping[str, Json], files: Mapping[str, bytes], stem: str, sizes: tuple[int, int]
) -> Head:
    kind = description.get("kind")
    if kind in ("stack", "joined"):  # also bounds the recursion on a hostile description
        raise ArtifactError(f"A {kind} head cannot be a member of a stack ('{stem}'). {RESTORE}")
    head = load_head(description, files, stem)
    if (head.n_features, head.n_models) != sizes:
        raise ArtifactError(
            f"Member '{stem}' takes {head.n_features} features and predicts {head.n_models} "
            f"models; its stack takes {sizes[0]} and predicts {sizes[1]}. {RESTORE}"
        )
    return head
