"""What a transformer encoder computes, as plain arrays: a floor for exports from any library.

Towers are of two kinds. In that of CLIP, SigLIP and DINOv2 each block normalises before attention
and before its MLP, and adds what comes out (pre-norm); in that of BERT it adds first and normalises
the sums (post-norm). Scales after a block's halves (LayerScale) are folded into its matrices.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final, Literal, TypeAlias

import numpy as np

from router_runtime.types import F32, F64

QUICK_GELU_ALPHA = 1.702
Activation: TypeAlias = Literal["quick_gelu", "gelu", "gelu_tanh"]
Pooling: TypeAlias = Literal["mean", "first", "last"]

ACTIVATIONS: Final[dict[str, Activation]] = {
    "quick_gelu": "quick_gelu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}
"""By the names of transformers."""


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
    """``x / divisors @ weight + bias``.

    Parameters
    ----------
    weight : ndarray of shape (n_in, n_out), float32
    bias : ndarray of shape (n_out,), float32, or None
    divisors : ndarray of shape (n_in,), float32, or None
        What makes ``x`` easier to round; None: 1.
    kept_rows : int
        So many of the last rows are not rounded when the others are.
    """

    weight: F32
    bias: F32 | None = None
    divisors: F32 | None = None
    kept_rows: int = 0

    @property
    def plain(self) -> Linear:
        """The same without divisors."""
        if self.divisors is None:
            return self
        return Linear(self.weight / self.divisors[:, None], self.bias, kept_rows=self.kept_rows)

    def apply(self, x: F64) -> F64:
        """Return what becomes of ``x`` of shape (n_in,)."""
        y: F64 = x @ self.plain.weight
        return y if self.bias is None else y + self.bias

    def scaled(self, factors: F32) -> Linear:
        """Return the layer followed by a product with ``factors`` of shape (n_out,)."""
        bias = None if self.bias is None else self.bias * factors
        return replace(self, weight=self.weight * factors, bias=bias)


@dataclass(frozen=True, eq=False)
class Block:
    """One residual block; ``qkv`` makes queries, keys and values side by side.

    The norms belong to attention and to the MLP, before or after it as the tower says.
    """

    norm_1: Norm
    qkv: Linear
    out: Linear
    norm_2: Norm
    up: Linear
    down: Linear

    def linears(self) -> Iterator[Linear]:
        """Yield the four matrices in the order in which they are used."""
        yield from (self.qkv, self.out, self.up, self.down)


@dataclass(frozen=True, eq=False, kw_only=True)
class Tower:
    """What all kinds share.

    Parameters
    ----------
    blocks : tuple of Block
    heads : int
    activation : {"quick_gelu", "gelu", "gelu_tanh"}
    final_norm : Norm or None
        After the last block.
    projection : Linear or None
        From the pooled row to the vector.
    norm_first : bool
        Whether blocks are pre-norm.
    """

    blocks: tuple[Block, ...]
    heads: int
    activation: Activation
    final_norm: Norm | None
    projection: Linear | None
    norm_first: bool = True

    @property
    def width(self) -> int:
        """Columns between blocks."""
        return int(self.blocks[0].norm_1.gain.size)

    @property
    def dim(self) -> int:
        """Columns of the vectors."""
        return self.width if self.projection is None else self.projection.weight.shape[1]


@dataclass(frozen=True, eq=False, kw_only=True)
class TextTower(Tower):
    """Token ids to vectors.

    Parameters
    ----------
    embedding : ndarray of shape (vocabulary, width), float32
    positions : ndarray of shape (length, width), float32
        Whatever else is added to every token included.
    """

    embedding: F32
    positions: F32


@dataclass(frozen=True, eq=False, kw_only=True)
class CausalTextTower(TextTower):
    """Each token sees those before it, and the end token is the result: CLIP.

    The end token has the highest id of its row. What follows it changes nothing, and so is never
    computed. The start token sees nothing but itself, so what it becomes is the same for all texts,
    and is computed once.

    Parameters
    ----------
    start_token : int
        The first of every text.
    """

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


@dataclass(frozen=True, eq=False, kw_only=True)
class BidirectionalTextTower(TextTower):
    """Every token sees every other: BERT and the text half of SigLIP.

    Parameters
    ----------
    first_norm : Norm or None
        Before the first block.
    masked : bool
        Whether what fills shorter texts up is not seen. Otherwise all texts have the full length.
    unplaced_token : int or None
        A token after which the position does not advance, and whose own position has the token's
        number, as RoBERTa counts; the text's first position is the next. None: positions are
        numbered from 0.
    pooling : {"mean", "first", "last"}
        Of the text's rows: their mean, or that of the first or last token.
    normalised : bool
        Whether vectors have length 1.
    """

    first_norm: Norm | None
    masked: bool
    pooling: Pooling
    normalised: bool
    unplaced_token: int | None = None


@dataclass(frozen=True, eq=False)
class AttentionPooling:
    """Rows to one row by attention from a learned query, and an MLP: SigLIP's.

    Parameters
    ----------
    query : ndarray of shape (width,), float32
        Its matrix applied.
    keys_and_values : Linear
        Both side by side.
    out, up, down : Linear
    norm : Norm
        Before the MLP.
    """

    query: F32
    keys_and_values: Linear
    out: Linear
    norm: Norm
    up: Linear
    down: Linear


@dataclass(frozen=True, eq=False, kw_only=True)
class PictureTower(Tower):
    """Pixels to vectors; every patch sees every other.

    Parameters
    ----------
    patches : Linear
        From a patch's pixels, channel by channel, to the width.
    patch_size : int
    size : int
        Side of the picture in pixels.
    first_rows : ndarray of shape (n_rows, width), float32
        Rows before the patches' that are the same for all pictures: the class token with its
        position, and registers.
    positions : ndarray of shape (n_patches, width), float32
    first_norm : Norm or None
        Before the first block.
    pooling : AttentionPooling or None
        After the final norm; None: the result is what becomes of the first row.
    """

    patches: Linear
    patch_size: int
    size: int
    first_rows: F32
    positions: F32
    first_norm: Norm | None
    pooling: AttentionPooling | None = None


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
