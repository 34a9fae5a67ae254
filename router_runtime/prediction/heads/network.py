"""``RouterNetwork`` in torch: trained by ``fit_mlp``, folded into an ``MLPHead`` for serving."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from torch import nn

from router_runtime.prediction.heads.mlp import Layer, MLPHead
from router_runtime.types import F64


class RouterNetwork(nn.Module):
    """Linear + BatchNorm + ReLU + Dropout blocks, then one logit per model.

    The modules are one plain ``nn.Sequential`` named ``network``, four per block, so that its state
    dict has the key names of the published checkpoints (``network.0.weight``,
    ``network.1.running_mean``, ``network.4.weight`` ...).

    Parameters
    ----------
    input_dim : int
        Columns of ``X``.
    output_dim : int
        Number of models.
    hidden_dims : sequence of int
        Width per block; empty makes a linear network.
    dropout : float
        Chance in [0, 1) that a hidden unit is left out of a training step.
    """

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        *,
        hidden_dims: Sequence[int] = (512, 256, 128),
        dropout: float = 0.3,
    ) -> None:
        super().__init__()
        modules: list[nn.Module] = []
        width = input_dim
        for hidden in hidden_dims:
            modules += [
                nn.Linear(width, hidden),
                nn.BatchNorm1d(hidden),
                nn.ReLU(),
                nn.Dropout(dropout),
            ]
            width = hidden
        self.network = nn.Sequential(*modules, nn.Linear(width, output_dim))

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits (n_queries, n_models) for features (n_queries, n_features), float32."""
        return cast(torch.Tensor, self.network(x))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return probabilities (n_queries, n_models) in [0, 1], float32."""
        return torch.sigmoid(self.logits(x))


def fold(
    networks: RouterNetwork | Sequence[RouterNetwork],
    *,
    mean: F64 | None = None,
    scale: F64 | None = None,
) -> MLPHead:
    """Make the NumPy head that predicts what the networks predict in evaluation mode.

    Parameters
    ----------
    networks : RouterNetwork or sequence of RouterNetwork
        One network, or the members of an ensemble (their logits are averaged).
    mean, scale : ndarray of shape (n_features,), float64, optional
        The networks were trained on ``(X - mean) / scale``; the head takes ``X`` itself.

    Notes
    -----
    In evaluation mode BatchNorm computes ``(z - running_mean) * g + beta`` with
    ``g = gamma / sqrt(running_var + eps)``, so ``z = x W + b`` becomes
    ``x (W g) + ((b - running_mean) g + beta)``. The folding is done in float64 and rounded once.
    """
    members = [networks] if isinstance(networks, RouterNetwork) else list(networks)
    return MLPHead.from_members([_fold_one(network, mean, scale) for network in members])


def _fold_one(network: RouterNetwork, mean: F64 | None, scale: F64 | None) -> list[Layer]:
    layers: list[Layer] = []
    for module in network.network:
        if isinstance(module, nn.Linear):
            layers.append((_array(module.weight).T, _array(module.bias)))
        elif isinstance(module, nn.BatchNorm1d):
            layers[-1] = _fold_norm(layers[-1], module)
    weight, bias = layers[0]
    if scale is not None:
        weight = weight / scale[:, None]
    if mean is not None:
        bias = bias - mean @ weight
    layers[0] = (weight, bias)
    return layers


def _fold_norm(layer: Layer, norm: nn.BatchNorm1d) -> Layer:
    weight, bias = layer
    running_mean = cast(torch.Tensor, norm.running_mean)
    running_var = cast(torch.Tensor, norm.running_var)
    gain = _array(norm.weight) / np.sqrt(_array(running_var) + norm.eps)
    return weight * gain, (bias - _array(running_mean)) * gain + _array(norm.bias)


def _array(tensor: torch.Tensor) -> F64:
    return tensor.detach().cpu().double().numpy()
