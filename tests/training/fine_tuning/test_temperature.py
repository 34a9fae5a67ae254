from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("scipy")

from router_training.fine_tuning.temperature import fit_temperature


def softmax(Z):
    return np.exp(Z) / np.exp(Z).sum(axis=1, keepdims=True)


def test_a_temperature_recovers_how_much_too_sure_logits_are():
    rng = np.random.default_rng(0)
    Z = rng.normal(scale=2.0, size=(4000, 3))
    truth = np.array([rng.choice(3, p=p) for p in softmax(Z)])
    assert fit_temperature(3.0 * Z, np.eye(3)[truth]) == pytest.approx(3.0, rel=0.1)


def test_rows_that_are_all_told_right_do_not_make_it_certain():
    Y = np.eye(3)[np.arange(30) % 3]
    few = fit_temperature(4.0 * Y, Y)
    P = softmax(4.0 * Y / few)
    assert P.max() == pytest.approx(31 / 33, abs=1e-3)
