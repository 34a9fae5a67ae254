"""Layers of PyTorch as towers have them, and the refusal of what towers do not describe.

Whatever a model has that the towers do not describe is refused by name: an export that left it out
would be another encoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from router_runtime.errors import EncoderError
from router_runtime.exporting_encoders.towers import Linear, Norm
from router_runtime.types import F32
from router_runtime.weights import torch_setup

_EXPORTED = (
    "open_clip's own transformers with a causal text half and a class token (ViT-B-32 and its "
    "kind), CLIP, SigLIP and DINOv2 of transformers, and sentence encoders on BERT, RoBERTa and "
    "XLM-RoBERTa"
)


def refused(half: str, what: str) -> EncoderError:
    """Return the error that names what a half of a model has."""
    return EncoderError(
        f"the {half} half of this model has {what}, which cannot be exported. Exported are "
        f"{_EXPORTED}; serve this one with 'engine: torch'."
    )


def array_of(tensor: torch.Tensor) -> F32:
    """Return the values as float32."""
    return np.ascontiguousarray(torch_setup.to_numpy(tensor))


def linear_of(module: Any) -> Linear:
    """Return a ``torch.nn.Linear``."""
    bias = None if module.bias is None else array_of(module.bias)
    return Linear(array_of(module.weight).T, bias)


def side_by_side(modules: Sequence[Any]) -> Linear:
    """Return several ``torch.nn.Linear`` of one input as one; those without a bias add nothing."""
    linears = [linear_of(module) for module in modules]
    weight = np.hstack([linear.weight for linear in linears])
    if all(linear.bias is None for linear in linears):
        return Linear(weight)
    biases = [
        np.zeros(linear.weight.shape[1], np.float32) if linear.bias is None else linear.bias
        for linear in linears
    ]
    return Linear(weight, np.concatenate(biases))


def norm_of(module: Any, *, half: str) -> Norm:
    """Return a ``torch.nn.LayerNorm``.

    Raises
    ------
    EncoderError
        It is something else.
    """
    if not isinstance(module, torch.nn.LayerNorm):
        raise refused(half, type(module).__name__)
    return Norm(array_of(module.weight), array_of(module.bias), float(module.eps))
