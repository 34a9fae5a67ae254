"""What a transformer encoder computes, as plain arrays: a floor for exports from any library.

Towers are of the kind that CLIP, SigLIP and DINOv2 share: each block normalises before attention
and before its MLP, and adds what comes out (pre-norm). Scales after a block's halves (LayerScale)
are folded into its matrices.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from router_runtime.types import F32, F64

QUICK_GELU_ALPHA = 1.702
Activation: TypeAlias = Literal["quick_gelu", "gelu", "gelu_tanh"]


@dataclass(frozen=True, eq=False)
class Norm:
    """Layer norm: ``gain`` and ``offset`` of shape (width,)."""

    gain: F32
    offset: F32
    epsilon: float

    def apply(self, x: F64) -> F64:
        """Return the norm of ``x`` of shape (width,)."""
        normal: F64 = (x - x.mean()) / np.sqrt(x.var() + self.epsilon)
        return normal * self.gain + self.offset


@dataclass(frozen=True, eq=False)
class Linear:
    """``x @ weight + bias``: weight (n_in, n_out), bias (n_out,) or None."""

    weight: F32
    bias: F32 | None = None

    def apply(self, x: F64) -> F64:
        """Return ``x @ weight + bias`` for ``x`` of shape (n_in,)."""
        y: F64 = x @ self.weight
        return y if self.bias is None else y + self.bias

    def scaled(self, factors: F32) -> Linear:
        """Return the layer followed by a product with ``factors`` of shape (n_out,)."""
        bias = None if self.bias is None else self.bias * factors
        return Linear(self.weight * factors, bias)


@dataclass(frozen=True, eq=False)
class Block:
    """One residual block; ``qkv`` makes queries, keys and values side by side."""

    norm_1: Norm
    qkv: Linear
    out: Linear
    norm_2: Norm
    up: Linear
    down: Linear

    def linears(self) -> Iterator[Linear]:
        """Yield the four matrices in the order in which they are used."""
        yield from (self.qkv, self.out, self.up, self.down)


@dataclass(frozen=True, eq=False)
class Tower:
    """What both kinds share.

    Parameters
    ----------
    blocks : tuple of Block
    heads : int
    activation : {"quick_gelu", "gelu", "gelu_tanh"}
    final_norm : Norm
        After the last block.
    projection : Linear or None
        From the pooled row to the vector.
    """

    blocks: tuple[Block, ...]
    heads: int
    activation: Activation
    final_norm: Norm
    projection: Linear | None

    @property
    def width(self) -> int:
        """Columns between blocks."""
        return int(self.final_norm.gain.size)

    @property
    def dim(self) -> int:
        """Columns of the vectors."""
        return self.width if self.projection is None else self.projection.weight.shape[1]


@dataclass(frozen=True, eq=False)
class TextTower(Tower):
    """Token ids to vectors; each token sees those before it, and the end token is the result.

    The end token has the highest id of its row. What follows it changes nothing, and so is never
    computed. The start token sees nothing but itself, so what it becomes is the same for all texts,
    and is computed once.

    Parameters
    ----------
    embedding : ndarray of shape (vocabulary, width), float32
    positions : ndarray of shape (length, width), float32
    start_token : int
        The first of every text.
    """

    embedding: F32
    positions: F32
    start_token: int

    def start_keys_and_values(self) -> list[tuple[F32, F32]]:
        """Return the start token's key and value in each block, of shape (heads, width / heads)."""
        x = self.embedding[self.start_token].astype(np.float64) + self.positions[0]
        found = []
        for block in self.blocks:
            _, key, value = np.split(block.qkv.apply(block.norm_1.apply(x)), 3)
            found.append(
                tuple(part.reshape(self.heads, -1).astype(np.float32) for part in (key, value))
            )
            x = x + block.out.apply(value)  # all of its attention is on itself
            inner = activated(block.up.apply(block.norm_2.apply(x)), self.activation)
            x = x + block.down.apply(inner)
        return [(key, value) for key, value in found]


@dataclass(frozen=True, eq=False)
class PictureTower(Tower):
    """Pixels to vectors; every patch sees every other.

    Parameters
    ----------
    patches : Linear
        From a patch's pixels, channel by channel, to the width.
    patch_size : int
    size : int
        Side of the picture in pixels.
    class_token : ndarray of shape (width,), float32
        Its position included. The result is what becomes of it.
    positions : ndarray of shape (n_patches, width), float32
    first_norm : Norm or None
        Before the first block.
    """

    patches: Linear
    patch_size: int
    size: int
    class_token: F32
    positions: F32
    first_norm: Norm | None


def activated(x: F64, activation: Activation) -> F64:
    """Return the activation of each element of ``x`` (n,)."""
    if activation == "quick_gelu":
        share: F64 = 1 / (1 + np.exp(-QUICK_GELU_ALPHA * x))
    elif activation == "gelu":
        share = np.array([(1 + math.erf(value / math.sqrt(2))) / 2 for value in x])
    else:
        share = (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2
    return x * share


def folded(linear: Linear, scale: F32 | None) -> Linear:
    """Return ``linear`` with LayerScale's factors in it, where there are any."""
    return linear if scale is None else linear.scaled(scale.astype(np.float32))
