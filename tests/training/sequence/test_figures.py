from __future__ import annotations

import numpy as np
import pytest

from router_runtime.errors import DataError
from router_runtime.types import Image, Query
from router_training.sequence.figures import confusion, macro_f1, measure, per_label
from router_training.sequence.targets import (
    Texts,
    has_one_label,
    settled_objective,
)

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


def test_the_objective_follows_the_rows():
    one = np.array([[1.0, 0.0], [0.0, 1.0]])
    assert has_one_label(one) and settled_objective("auto", one) == "one"
    for Y in ([[1.0, 1.0]], [[0.0, 0.0]], [[1.0, NAN]], [[0.6, 0.4]]):
        assert not has_one_label(np.array(Y))
        assert settled_objective("auto", np.array(Y)) == "several"
        with pytest.raises(DataError, match="exactly one right label"):
            settled_objective("one", np.array(Y))
    assert settled_objective("several", one) == "several"
    assert not has_one_label(np.zeros((0, 2)))


def test_rows_without_text_or_without_any_score_are_not_learned_from():
    queries = [Query("a"), Query("", (Image(b"x", "image/png"),)), Query("b")]
    Y = np.array([[1.0, NAN], [1.0, 0.0], [NAN, NAN]])
    texts = Texts.of(queries, Y)
    assert texts.texts == ("a",) and texts.Y.shape == (1, 2)
