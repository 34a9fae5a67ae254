from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from router_runtime.prediction.heads.network import RouterNetwork, fold

CHECKPOINT = (
    Path(__file__).resolve().parents[4].parent / "shared" / "data" / "blueprint" / "nn_router.pth"
)


def trained(seed: int, *, hidden_dims: tuple[int, ...] = (32, 16)) -> RouterNetwork:
    """A network whose BatchNorm statistics and gains are anything but their initial values."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = RouterNetwork(20, 3, hidden_dims=hidden_dims, dropout=0.5)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.2, 3)
                nn.init.normal_(module.weight, 1, 0.3)
                nn.init.normal_(module.bias)
    return network.eval()


def features(n: int = 200) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(n, 20)).astype(np.float32)


@torch.no_grad()
def torch_probabilities(network: RouterNetwork, X: np.ndarray) -> np.ndarray:
    return network(torch.from_numpy(X)).numpy()


@pytest.mark.parametrize("hidden_dims", [(), (32,), (32, 16), (32, 16, 8)])
def test_folded_it_predicts_what_torch_predicts(hidden_dims):
    network = trained(0, hidden_dims=hidden_dims)
    P = fold(network).predict_proba(features())
    np.testing.assert_allclose(P, torch_probabilities(network, features()), rtol=0, atol=1e-6)


def test_the_standardisation_is_folded_in():
    network = trained(1)
    X = features() * 3 + 5
    mean, scale = X.mean(axis=0, dtype=float), X.std(axis=0, dtype=float)
    expected = torch_probabilities(network, ((X - mean) / scale).astype(np.float32))
    P = fold(network, mean=mean, scale=scale).predict_proba(X)
    np.testing.assert_allclose(P, expected, rtol=0, atol=1e-6)


def test_an_ensemble_is_the_sigmoid_of_the_mean_logit():
    networks = [trained(seed) for seed in range(3)]
    with torch.no_grad():
        logits = torch.stack([network.logits(torch.from_numpy(features())) for network in networks])
    expected = torch.sigmoid(logits.mean(dim=0)).numpy()
    P = fold(networks).predict_proba(features())
    np.testing.assert_allclose(P, expected, rtol=0, atol=1e-6)


def test_forward_is_the_sigmoid_of_the_logits():
    network = trained(2)
    x = torch.from_numpy(features(4))
    assert torch.equal(network(x), torch.sigmoid(network.logits(x)))


def test_state_dict_keys_are_those_of_a_plain_sequential():
    keys = set(RouterNetwork(8, 2, hidden_dims=(4, 3)).state_dict())
    assert {"network.0.weight", "network.1.running_mean", "network.4.weight"} <= keys
    assert {"network.5.weight", "network.8.weight", "network.8.bias"} <= keys


@pytest.mark.skipif(not CHECKPOINT.is_file(), reason="the shared checkpoint is not here")
def test_a_published_checkpoint_loads_and_folds():
    checkpoint = torch.load(CHECKPOINT, weights_only=True, map_location="cpu")
    network = RouterNetwork(
        checkpoint["input_dim"],
        checkpoint["output_dim"],
        hidden_dims=checkpoint["config"]["hidden_dims"],
        dropout=checkpoint["config"]["dropout"],
    )
    network.load_state_dict(checkpoint["model_state_dict"], strict=True)
    network.eval()
    X = np.random.default_rng(0).normal(size=(100, 1024)).astype(np.float32)
    X /= np.linalg.norm(X, axis=1, keepdims=True)
    expected = torch_probabilities(network, X)
    np.testing.assert_allclose(fold(network).predict_proba(X), expected, rtol=0, atol=1e-6)
