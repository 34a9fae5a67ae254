"""The neural head in NumPy: what ``RouterNetwork`` computes in evaluation mode, without torch.

BatchNorm and the standardisation of the inputs are affine and stand next to a Linear layer, so they
are folded into its weights when the head is made (``network.fold``); what is left is matrix
products and ReLU.

The members of an ensemble share one input. Their first layers are one wide matrix product, their
middle layers one stacked product, and because the ensemble averages logits, which the last layers
compute linearly, the average is folded into the last weights as well. Averaging in logit space is
the geometric pooling of odds: unlike the mean of probabilities it does not pull agreeing members
towards one half.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Literal, Self, TypeAlias

import numpy as np
from pydantic import Field

from router_runtime.prediction.heads.base import (
    BaseHead,
    HeadDescription,
    clipped_logits,
    read_tensors,
    sigmoid,
    write_tensors,
)
from router_runtime.types import F32, F64

_ZERO = np.zeros((), dtype=np.float32)  # NumPy converts a Python number anew in every call

Layer: TypeAlias = tuple[F64, F64]  # weight (n_inputs, n_outputs), bias (n_outputs,)


class MLPDescription(HeadDescription):
    """``members`` networks with the same hidden widths."""

    kind: Literal["mlp"] = "mlp"
    members: int = Field(ge=1)
    hidden_dims: tuple[int, ...]

    @property
    def shapes(self) -> dict[str, tuple[int | None, ...]]:
        """Shape per tensor: K members, widths d, h1 ... hL, m models."""
        widths = (self.n_features, *self.hidden_dims)
        K, last = self.members, len(self.hidden_dims)
        shapes: dict[str, tuple[int | None, ...]] = {}
        for i, (inputs, outputs) in enumerate(pairwise(widths)):
            stacked = (K, inputs, outputs) if i else (inputs, K * outputs)
            shapes[f"layer-{i}.weight"] = stacked
            shapes[f"layer-{i}.bias"] = (K, 1, outputs) if i else (K * outputs,)
        shapes[f"layer-{last}.weight"] = (K * widths[-1] if last else widths[-1], self.n_models)
        shapes[f"layer-{last}.bias"] = (self.n_models,)
        return shapes


class MLPHead(BaseHead):
    """Folded layers with ReLU between them; sigmoid of the members' mean logit at the end.

    Made by ``network.fold``, ``MLPHead.from_members`` or ``load_head``.

    Parameters
    ----------
    description : MLPDescription
        Sizes.
    tensors : mapping of str to ndarray, float32
        ``layer-<i>.weight`` and ``layer-<i>.bias`` with the shapes of ``description.shapes``.
    """

    Description = MLPDescription

    def __init__(self, description: MLPDescription, tensors: Mapping[str, F32]) -> None:
        super().__init__(description)
        self._members = description.members
        layers: list[tuple[F32, F32]] = [
            (
                _by_output(tensors[f"layer-{i}.weight"]),
                np.ascontiguousarray(tensors[f"layer-{i}.bias"], dtype=np.float32),
            )
            for i in range(len(description.hidden_dims) + 1)
        ]
        self._layers = layers
        self._hidden, self._last = layers[:-1], layers[-1]
        if self._members == 1:  # plain matrices, without the axis of members
            self._hidden = [(w.reshape(w.shape[-2:]), b.reshape(-1)) for w, b in self._hidden]

    @classmethod
    def from_members(cls, members: Sequence[Sequence[Layer]]) -> Self:
        """Join networks, each a list of folded layers from input to output.

        Parameters
        ----------
        members : sequence of sequences of (weight, bias)
            ``weight`` (n_inputs, n_outputs) and ``bias`` (n_outputs,), float64. All members have
            the same sizes.
        """
        first = members[0]
        description = MLPDescription(
            n_features=first[0][0].shape[0],
            n_models=first[-1][0].shape[1],
            members=len(members),
            hidden_dims=tuple(weight.shape[1] for weight, _ in first[:-1]),
        )
        tensors: dict[str, F32] = {}
        for i, layers in enumerate(zip(*members, strict=True)):
            weight, bias = _join(layers, first=i == 0, last=i == len(first) - 1)
            tensors[f"layer-{i}.weight"] = weight.astype(np.float32)
            tensors[f"layer-{i}.bias"] = bias.astype(np.float32)
        return cls(description, tensors)

    @classmethod
    def average(cls, heads: Sequence[MLPHead]) -> Self:
        """Join ensembles of networks with the same sizes into one, every network weighing alike."""
        return cls.from_members([layers for head in heads for layers in head._networks()])

    def _networks(self) -> list[list[Layer]]:
        """Take the ensemble apart again, into what ``from_members`` takes."""
        K, last = self._members, len(self._hidden)
        networks: list[list[Layer]] = [[] for _ in range(K)]
        for i, (weight, bias) in enumerate(self._layers):
            if i == last:
                weights = np.split(weight * K, K) if last else [weight] * K
                biases = [bias] * K
            elif i == 0:
                weights, biases = np.split(weight, K, axis=1), np.split(bias, K)
            else:
                weights, biases = list(weight), list(bias[:, 0])
            for network, w, b in zip(networks, weights, biases, strict=True):
                network.append((w.astype(np.float64), b.astype(np.float64)))
        return networks

    def _probabilities(self, X: F32) -> F64:
        return sigmoid(self.logits(X))

    def log_odds(self, X: F32) -> F64:
        return clipped_logits(self.logits(X))

    def logits(self, X: F32) -> F32:
        """Return the members' mean logits, float32 (n_queries, n_models), for a checked ``X``."""
        H = X
        if self._members == 1:
            H = X[0] if len(X) == 1 else X  # one query is a vector: nothing to broadcast
            for weight, bias in self._hidden:
                H = _relu(H.dot(weight), bias)
        elif self._hidden:
            weight, bias = self._hidden[0]
            H = _relu(X @ weight, bias)
            if self._hidden[1:]:
                H = self._middle(H)
        weight, bias = self._last
        Z: F32 = H.dot(weight)
        Z += bias
        return Z.reshape(len(X), self.n_models)

    def _middle(self, H: F32) -> F32:
        """Run the stacked layers: (n, K * h1) in, (n, K * hL) out."""
        n, K = len(H), self._members
        H = H.reshape(n, K, H.shape[1] // K).swapaxes(0, 1)
        for weight, bias in self._hidden[1:]:
            H = _relu(H @ weight, bias)
        return H.swapaxes(0, 1).reshape(n, K * H.shape[2])

    def to_files(self, stem: str) -> dict[str, bytes]:
        """Return ``<stem>.safetensors``."""
        tensors = {f"layer-{i}.weight": weight for i, (weight, _) in enumerate(self._layers)}
        tensors |= {f"layer-{i}.bias": bias for i, (_, bias) in enumerate(self._layers)}
        return write_tensors(stem, tensors)

    @classmethod
    def from_files(
        cls, description: MLPDescription, files: Mapping[str, bytes], *, stem: str
    ) -> Self:
        """Read ``<stem>.safetensors``."""
        return cls(description, read_tensors(files, stem, description.shapes))


def _by_output(weight: F32) -> F32:
    """Lay out what feeds one output side by side.

    With one query a layer is as fast as its weights can be read; several BLAS threads then read
    disjoint pieces in order (measured: half the time of the other layout on two cores).
    """
    return np.ascontiguousarray(weight.swapaxes(-1, -2), dtype=np.float32).swapaxes(-1, -2)


def _relu(Z: F32, bias: F32) -> F32:
    """Add the bias in place and cut off what is negative."""
    Z += bias
    return np.maximum(Z, _ZERO, out=Z)


def _join(layers: Sequence[Layer], *, first: bool, last: bool) -> Layer:
    """Join one layer of all members; the last layer carries the mean over members."""
    weights, biases = zip(*layers, strict=True)
    if last:
        bias = np.mean(biases, axis=0)
        return (np.mean(weights, axis=0) if first else np.vstack(weights) / len(layers)), bias
    if first:
        return np.hstack(weights), np.concatenate(biases)
    return np.stack(weights), np.stack(biases)[:, None, :]
