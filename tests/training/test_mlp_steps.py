from __future__ import annotations

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from router_runtime.prediction.heads.network import RouterNetwork
from router_training.mlp_steps import Trainer

N, D, M = 12, 5, 3


def network(hidden_dims: tuple[int, ...], *, seed: int = 0, dropout: float = 0.0) -> RouterNetwork:
    torch.manual_seed(seed)
    made = RouterNetwork(D, M, hidden_dims=hidden_dims, dropout=dropout)
    for module in made.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.uniform_(module.bias, -0.5, 0.5)
    return made


def problem() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    observed = (torch.rand(N, M, generator=generator) < 0.7).float()
    return {
        "X": torch.randn(N, D, generator=generator),
        "Y": torch.rand(N, M, generator=generator),
        "weight": observed * torch.tensor([1.0, 0.6, 2.0]),
        "odds": torch.tensor([1.0, 3.0, 0.25]),
        "count": observed.sum(),
    }


def take_steps(trainer: Trainer, given: dict[str, torch.Tensor], n: int = 1) -> torch.Tensor:
    w, odds, y = given["weight"], given["odds"], given["Y"]
    for _ in range(n):
        logits = trainer.step(
            given["X"],
            w * (1 + (odds - 1) * y),
            w * odds * y,
            shift=odds.log(),
            count=given["count"],
        )
    return logits


def trainer(net: RouterNetwork, *, dropout: float = 0.0, seed: int = 0) -> Trainer:
    return Trainer(net, dropout=dropout, learning_rate=0.01, weight_decay=0.1, seed=seed)


@pytest.mark.parametrize("hidden_dims", [(), (4,), (8, 6, 4)])
def test_steps_equal_those_of_autograd_and_adamw(hidden_dims):
    """Masked, weighted, with soft scores, shifted logits and decay; running statistics too."""
    given = problem()
    ours, theirs = network(hidden_dims), network(hidden_dims)
    assert torch.equal(ours.logits(given["X"]), theirs.logits(given["X"]))
    biases = [m.bias for m in theirs.network[:-1] if isinstance(m, torch.nn.Linear)]
    optimiser = torch.optim.AdamW(theirs.parameters(), lr=0.01, weight_decay=0.1)
    ours.load_state_dict(theirs.state_dict())
    stepper = trainer(ours)
    for _ in range(5):
        logits = theirs.logits(given["X"]) + given["odds"].log()
        loss = binary_cross_entropy_with_logits(
            logits, given["Y"], weight=given["weight"], pos_weight=given["odds"], reduction="sum"
        )
        optimiser.zero_grad()
        (loss / given["count"]).backward()
        for bias in biases:  # exactly 0 but for rounding, which Adam would scale up
            assert bias.grad.abs().max() < 1e-6
            bias.grad.zero_()
        optimiser.step()
        torch.testing.assert_close(take_steps(stepper, given), logits.detach())
    for name, value in theirs.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            torch.testing.assert_close(ours.state_dict()[name], value, atol=1e-5, rtol=1e-4)


def test_dropout_keeps_the_wanted_share_and_the_expected_size():
    masks = trainer(network((400, 200)), dropout=0.3)._masks(torch.zeros(100, D))
    assert [mask.shape for mask in masks] == [(100, 400), (100, 200)]
    for mask in masks:
        assert mask.unique().tolist() == [0.0, pytest.approx(1 / 0.7, rel=1e-4)]
        assert mask.mean().item() == pytest.approx(1.0, abs=0.02)
        assert mask.mean(dim=0).std() < 0.1  # no column is left out more often than others


@pytest.mark.parametrize(("dropout", "kept"), [(0.0, 1.0), (0.99999, 0.0)])
def test_dropout_at_its_ends_keeps_all_or_nearly_nothing(dropout, kept):
    masks = trainer(network((400,)), dropout=dropout)._masks(torch.zeros(100, D))
    assert masks[0].gt(0).float().mean() == pytest.approx(kept, abs=1e-3)


@torch.no_grad()
def test_what_dropout_leaves_out_gets_no_gradient():
    net = network((6,))
    stepper = trainer(net)
    stepper._masks = lambda X: (torch.tensor([[0.0, 1, 1, 1, 1, 1]]).expand(len(X), -1),)
    given = problem()
    w = given["weight"]
    stepper._gradients(given["X"], w, w * given["Y"], shift=torch.zeros(M), count=given["count"])
    rows = stepper._blocks[0].linear.weight_grad.abs().sum(dim=1)
    assert rows[0] == 0
    assert (rows[1:] > 0).all()


def test_equal_seeds_give_equal_networks_to_the_bit():
    def trained(seed: int) -> dict[str, torch.Tensor]:
        net = network((8,))
        take_steps(trainer(net, dropout=0.5, seed=seed), problem(), n=3)
        return net.state_dict()

    first, again, other = trained(0), trained(0), trained(1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["network.0.weight"], other["network.0.weight"])


def test_the_network_sees_its_own_training_at_once():
    given = problem()
    net = network((4,))
    before = net.logits(given["X"]).detach()
    take_steps(trainer(net), given)
    assert (net.logits(given["X"]) - before).abs().max() > 1e-3
