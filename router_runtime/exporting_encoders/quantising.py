"""Matrices in 8 bits: weights by column, activations by call.

A weight's column has one scale and no offset (S8); activations get their scale and offset from
their own range at each call (U8). ONNX Runtime multiplies the two as U8 by S8.

Processors with AVX2 but without VNNI add pairs of such products in 16 bits, which overflow when
both weights are near the end of their range. Seven bits (-63 ... 63) cannot overflow and are exact
everywhere; eight have half the rounding error and are for processors with VNNI or AMX.

What makes activations hard to round are a few columns that are much larger than the others. Before
rounding, each norm's output is divided by a factor per column, and the rows of the matrix after it
are multiplied by it (SmoothQuant, arXiv 2211.10438, equation 4 with alpha = 0.5): the product is
the same, and both factors become easier to round.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import numpy.typing as npt

from router_runtime.exporting_encoders.towers import Block, Linear, Norm, Tower
from router_runtime.types import F32

WeightBits = Literal[7, 8]
AnyTower = TypeVar("AnyTower", bound=Tower)
_LARGEST = {7: 63, 8: 127}
_WITHOUT_OVERFLOW = {"avx512_vnni", "avx_vnni", "amx_int8", "asimddp"}
_CPU_INFO = Path("/proc/cpuinfo")


@dataclass(frozen=True)
class Plan:
    """Which matrices are rounded, and how.

    Parameters
    ----------
    weight_bits : {7, 8} or None
        None: nothing is rounded.
    fp32_blocks : frozenset of int
        Blocks that stay in float32.
    """

    weight_bits: WeightBits | None = None
    fp32_blocks: frozenset[int] = frozenset()

    def bits(self, block: int | None) -> WeightBits | None:
        """Return the bits of a block's matrices; those of no block are None's."""
        return None if block in self.fp32_blocks else self.weight_bits


def rounded_columns(weight: F32, bits: WeightBits) -> tuple[npt.NDArray[np.int8], F32]:
    """Return (n_in, n_out) int8 and the (n_out,) float32 scales that undo it."""
    largest = _LARGEST[bits]
    scales = np.abs(weight).max(axis=0) / largest
    scales[scales == 0] = 1
    return np.rint(weight / scales).astype(np.int8), scales.astype(np.float32)


def rounded_rows(table: F32) -> tuple[npt.NDArray[np.int8], F32]:
    """Return a table of rows as int8, and the (n_rows, 1) float32 scales that undo it."""
    q, scales = rounded_columns(np.ascontiguousarray(table.T), 8)
    return np.ascontiguousarray(q.T), scales[:, None]


def smoothed(tower: AnyTower, peaks: Mapping[tuple[int, int], F32]) -> AnyTower:
    """Return a tower that computes the same with activations that are easier to round.

    Parameters
    ----------
    tower : Tower
    peaks : mapping of (block, 1 or 2) to ndarray of shape (width,)
        Largest absolute output per column of each block's first and second norm.
    """
    blocks = []
    for i, block in enumerate(tower.blocks):
        norm_1, qkv = _balanced(block.norm_1, block.qkv, peaks[i, 1])
        norm_2, up = _balanced(block.norm_2, block.up, peaks[i, 2])
        blocks.append(Block(norm_1, qkv, block.out, norm_2, up, block.down))
    return replace(tower, blocks=tuple(blocks))


def _balanced(norm: Norm, linear: Linear, peaks: F32) -> tuple[Norm, Linear]:
    rows = np.abs(linear.weight).max(axis=1)
    usable = (peaks > 0) & (rows > 0)
    factors = np.ones_like(peaks)
    factors[usable] = np.sqrt(peaks[usable] / rows[usable])
    factors /= np.exp(np.log(factors).mean())  # so that both keep their size on the whole
    return (
        Norm(norm.gain / factors, norm.offset / factors, norm.epsilon),
        Linear(linear.weight * factors[:, None], linear.bias),
    )


def exact_bits() -> WeightBits:
    """Return the bits whose products this machine's processor adds without overflow."""
    try:
        flags = set(_CPU_INFO.read_text(encoding="utf-8").split())
    except OSError:
        return 7
    return 8 if flags & _WITHOUT_OVERFLOW else 7


def worst_first(losses: Sequence[float]) -> list[int]:
    """Return block numbers by what rounding each one alone costs, the dearest first."""
    return sorted(range(len(losses)), key=lambda block: (-losses[block], block))
