"""One optimiser step of a ``RouterNetwork``, written out instead of recorded by autograd.

The network is always Linear + BatchNorm + ReLU + Dropout blocks and one Linear layer, so that its
gradient is a dozen lines; a test compares it with autograd's. What this saves beside the matrix
products, which no code can save, on one core at a batch of 64 rows (1,024-512-256-128-11):

- Dropout. torch draws a CPU mask one Bernoulli variable after the other; here four 16-bit numbers
  come from one 64-bit draw. The chance of being kept is a multiple of 2 ** -16 therefore.
- AdamW. All parameters are views of one vector, so that the fused optimiser runs once.
- The gradient of a bias before BatchNorm, which is exactly 0 because the batch mean takes every
  bias away again. Rounding makes it 1e-10 in autograd, and Adam scales that up to whole steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import nn

from router_runtime.prediction.heads.network import RouterNetwork

_DRAWS = 2**16


@dataclass(frozen=True)
class _Linear:
    """Views of one layer's parameters and of their gradients."""

    weight: torch.Tensor
    bias: torch.Tensor
    weight_grad: torch.Tensor
    bias_grad: torch.Tensor


@dataclass(frozen=True)
class _Block:
    linear: _Linear
    norm: nn.BatchNorm1d
    gain_grad: torch.Tensor
    shift_grad: torch.Tensor


@dataclass(frozen=True)
class _Passed:
    """What a block remembers of the forward pass for the backward one."""

    inputs: torch.Tensor
    z: torch.Tensor
    mean: torch.Tensor
    inverse_deviation: torch.Tensor
    outputs: torch.Tensor


class Trainer:
    """Trains a network in place with AdamW on a masked, weighted logistic loss.

    Parameters
    ----------
    network : RouterNetwork
        Its parameters become views of one vector; it stays usable as it is.
    dropout : float
        Chance in [0, 1) that a hidden unit is left out, in place of the network's own.
    learning_rate, weight_decay : float
        Of AdamW; the decay holds for every parameter.
    seed : int
        Of dropout.

    Attributes
    ----------
    optimiser : torch.optim.AdamW
        For who lowers its learning rate.
    """

    def __init__(
        self,
        network: RouterNetwork,
        *,
        dropout: float,
        learning_rate: float,
        weight_decay: float,
        seed: int,
    ) -> None:
        parameters = list(network.parameters())
        vector = nn.Parameter(torch.cat([p.detach().flatten() for p in parameters]))
        vector.grad = torch.zeros_like(vector)
        self.optimiser = torch.optim.AdamW(
            [vector], lr=learning_rate, weight_decay=weight_decay, fused=True
        )
        sizes = [p.numel() for p in parameters]
        values, grads = torch.split(vector.detach(), sizes), torch.split(vector.grad, sizes)
        views: dict[torch.Tensor, torch.Tensor] = {}
        for parameter, value, grad in zip(parameters, values, grads, strict=True):
            parameter.data = value.view_as(parameter)
            views[parameter] = grad.view_as(parameter)
        linears = [
            _Linear(m.weight.data, m.bias.data, views[m.weight], views[m.bias])
            for m in network.network
            if isinstance(m, nn.Linear)
        ]
        norms = [m for m in network.network if isinstance(m, nn.BatchNorm1d)]
        self._last = linears[-1]
        self._blocks = [
            _Block(linear, norm, views[norm.weight], views[norm.bias])
            for linear, norm in zip(linears, norms, strict=False)
        ]
        self._widths = [norm.num_features for norm in norms]
        self._kept = max(1, round((1 - dropout) * _DRAWS))
        self._generator = torch.Generator(vector.device).manual_seed(seed)

    @torch.no_grad()
    def step(
        self,
        X: torch.Tensor,
        slope: torch.Tensor,
        target: torch.Tensor,
        *,
        shift: torch.Tensor,
        count: torch.Tensor,
    ) -> torch.Tensor:
        """Take one step; return the logits (n, n_models) that it was taken on, ``shift`` included.

        The loss is a logistic one, so that its gradient by the logit ``z`` is
        ``(slope * sigmoid(z) - target) / count``: with weight ``w`` of a bad answer, ``w * odds``
        of a good one and a score ``y``, ``slope = w * (1 + (odds - 1) * y)`` and
        ``target = w * odds * y``.

        Parameters
        ----------
        X : Tensor of shape (n, n_features), float32
            A batch of at least two rows.
        slope, target : Tensor of shape (n, n_models), float32
            0 where a score is missing.
        shift : Tensor of shape (n_models,), float32
            Added to the logits in training alone.
        count : Tensor of shape (), float32
            Observed scores in the batch, at least 1.
        """
        logits = self._gradients(X, slope, target, shift=shift, count=count)
        self.optimiser.step()
        return logits

    def _gradients(
        self,
        X: torch.Tensor,
        slope: torch.Tensor,
        target: torch.Tensor,
        *,
        shift: torch.Tensor,
        count: torch.Tensor,
    ) -> torch.Tensor:
        passed = []
        H = X
        for block, mask in zip(self._blocks, self._masks(X), strict=True):
            passed.append(_forward(block, H, mask))
            H = passed[-1].outputs
        last = self._last
        logits = torch.addmm(last.bias + shift, H, last.weight.T)
        G = torch.addcmul(-target, slope, torch.sigmoid(logits)).div_(count)
        torch.mm(G.T, H, out=last.weight_grad)
        torch.sum(G, 0, out=last.bias_grad)
        weight = last.weight
        for block, state in zip(reversed(self._blocks), reversed(passed), strict=True):
            G = self._backward(block, state, G @ weight)
            weight = block.linear.weight
        return logits

    def _masks(self, X: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Draw what dropout multiplies each block's outputs with: 0, or 1 over the kept share."""
        n = len(X)
        widths = [n * width for width in self._widths]
        draws = torch.empty(-(-sum(widths) // 4), dtype=torch.int64, device=X.device)
        draws.random_(-(2**63), None, generator=self._generator)
        bits = draws.view(torch.int16)[: sum(widths)]
        masks = torch.empty(len(bits), device=X.device)
        torch.le(bits, self._kept - 1 - _DRAWS // 2, out=masks)
        masks *= _DRAWS / self._kept
        return tuple(mask.view(n, -1) for mask in torch.split(masks, widths))

    def _backward(self, block: _Block, state: _Passed, G: torch.Tensor) -> torch.Tensor:
        """Write the block's gradients; return that by the Linear layer's outputs."""
        norm, linear = block.norm, block.linear
        # An output above 0 was kept and passed the ReLU.
        G = torch.ops.aten.threshold_backward(G, state.outputs, 0).mul_(_DRAWS / self._kept)
        G, gain, shift = torch.ops.aten.native_batch_norm_backward(
            G, state.z, norm.weight, norm.running_mean, norm.running_var,
            state.mean, state.inverse_deviation, True, norm.eps, [True, True, True],
        )  # fmt: skip
        block.gain_grad.copy_(gain)
        block.shift_grad.copy_(shift)
        torch.mm(G.T, state.inputs, out=linear.weight_grad)
        return G


def _forward(block: _Block, H: torch.Tensor, mask: torch.Tensor) -> _Passed:
    """Run one block in training mode, with the running statistics of its BatchNorm."""
    norm = block.norm
    z = torch.addmm(block.linear.bias, H, block.linear.weight.T)
    y, mean, inverse_deviation = torch.ops.aten.native_batch_norm(
        z, norm.weight, norm.bias, norm.running_mean, norm.running_var,
        True, cast(float, norm.momentum), norm.eps,
    )  # fmt: skip
    return _Passed(H, z, mean, inverse_deviation, y.relu_().mul_(mask))
