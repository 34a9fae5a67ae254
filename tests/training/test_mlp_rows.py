from __future__ import annotations

import numpy as np
import pytest
import torch

from router_training import mlp_rows
from router_training.mlp_rows import cut, open_rows
from router_training.rows import Rows

CPU = torch.device("cpu")
X = np.random.default_rng(0).normal(3.0, 2.0, size=(300, 4)).astype(np.float32)
MEAN, SCALE = np.full(4, 3.0), np.array([2.0, 2.0, 2.0, np.inf])
EXPECTED = torch.from_numpy(((X - MEAN) / SCALE).astype(np.float32))


@pytest.fixture(params=["memory", "disk"])
def opened(request, monkeypatch):
    if request.param == "disk":
        monkeypatch.setattr(mlp_rows, "IN_MEMORY_BYTES", 0)
        monkeypatch.setattr(mlp_rows, "WINDOW_BYTES", 128 * 4 * 4)  # two runs
    return open_rows(Rows(X, np.arange(300)), mean=MEAN, scale=SCALE, device=CPU)


def test_features_come_standardised_in_order(opened):
    assert opened.n_features == 4
    torch.testing.assert_close(torch.cat(list(opened.chunks())), EXPECTED)


def test_an_epoch_is_every_row_once_with_its_features(opened):
    epoch = list(opened.batches(16, torch.Generator().manual_seed(0)))
    rows = torch.cat([rows for rows, _ in epoch])
    assert sorted(rows.tolist()) == list(range(300))
    assert rows.tolist() != sorted(rows.tolist())
    torch.testing.assert_close(torch.cat([batch for _, batch in epoch]), EXPECTED[rows])
    assert min(len(rows) for rows, _ in epoch) > 1


def test_the_order_follows_the_generator(opened):
    def order(seed: int) -> list[int]:
        batches = opened.batches(16, torch.Generator().manual_seed(seed))
        return torch.cat([rows for rows, _ in batches]).tolist()

    assert order(0) == order(0) != order(1)


def test_what_is_opened_is_not_written_to():
    before = X.copy()
    opened = open_rows(X, mean=None, scale=None, device=CPU)
    next(opened.chunks()).zero_()
    np.testing.assert_array_equal(X, before)


def test_batches_cover_every_row_once():
    batches = cut(torch.arange(33), 16)
    assert [len(batch) for batch in batches] == [16, 17]
    assert torch.equal(torch.cat(batches), torch.arange(33))
