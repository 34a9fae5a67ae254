from __future__ import annotations

import numpy as np
import pytest

from router_training.fine_tuning.figures import confusion, macro_f1, measure, per_label

NAN = float("nan")


def test_a_confusion_matrix_by_hand():
    counts = confusion(np.array([0, 0, 1, 2]), np.array([0, 1, 1, 1]), n_labels=3)
    assert counts.tolist() == [[1, 1, 0], [0, 1, 0], [0, 1, 0]]
    # F1: 2*1/(1+2), 2*1/(3+1), 0
    assert macro_f1(counts) == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)
    told = per_label(counts, ("a", "b", "c"))
    assert told["a"] == {"precision": 1.0, "recall": 0.5, "f1": pytest.approx(2 / 3), "rows": 2}
    assert told["c"]["precision"] is None and told["c"]["recall"] == 0.0


def test_a_label_that_neither_occurs_nor_is_told_does_not_count():
    counts = confusion(np.array([0, 1]), np.array([0, 1]), n_labels=3)
    assert macro_f1(counts) == 1.0
    assert per_label(counts, ("a", "b", "c"))["c"]["f1"] is None
    assert np.isnan(macro_f1(np.zeros((2, 2), dtype=np.int64)))


def test_measures_agree_with_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    logits, truth = rng.normal(size=(200, 4)), rng.integers(0, 4, 200)
    found = measure(logits, np.eye(4)[truth], objective="one")
    P = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert found.loss == pytest.approx(metrics.log_loss(truth, P))
    said = logits.argmax(axis=1)
    assert found.accuracy == pytest.approx(metrics.accuracy_score(truth, said))
    assert found.macro_f1 == pytest.approx(metrics.f1_score(truth, said, average="macro"))


def test_several_good_models_are_measured_by_cell_and_unscored_ones_are_left_out():
    logits = np.array([[2.0, -1.0, 50.0], [-2.0, 3.0, -50.0]])
    Y = np.array([[1.0, 1.0, NAN], [0.0, 1.0, NAN]])
    found = measure(logits, Y, objective="several")
    cells = np.log1p(np.exp([-2.0, 1.0, -2.0, -3.0]))
    assert found.loss == pytest.approx(cells.mean())
    assert found.accuracy == 0.75
    # model a: one hit of one named and one real; b: one hit of one named, two real
    assert found.macro_f1 == pytest.approx((1.0 + 2 / 3) / 2)


def test_shares_count_any_of_the_greatest_as_right():
    logits = np.array([[2.0, 0.0, 1.0], [0.0, 5.0, 0.0], [0.0, 0.0, 5.0]])
    Y = np.array([[0.5, 0.0, 0.5], [0.25, 0.75, 0.0], [1.0, 0.0, 0.0]])
    found = measure(logits, Y, objective="one")
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    assert found.loss == pytest.approx(-(Y * log_p).sum(axis=1).mean())
    assert found.accuracy == pytest.approx(2 / 3)
