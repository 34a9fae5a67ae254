from __future__ import annotations

import pytest

pytest.importorskip("torch")

import torch

from router_runtime.types import WeightsSize
from router_runtime.weights.torch_setup import size_of


def test_parameters_are_counted_once_with_the_bytes_they_take():
    first = torch.nn.Linear(3, 4, bias=False)
    second = torch.nn.Linear(3, 4, bias=False, dtype=torch.bfloat16)
    shared = torch.nn.Sequential(first, second, first)
    assert size_of(shared.parameters()) == WeightsSize(parameters=24, n_bytes=12 * 4 + 12 * 2)
    assert size_of([]) == WeightsSize()
