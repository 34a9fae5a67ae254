from __future__ import annotations

import numpy as np
import pytest

from router_runtime.errors import DataError
from router_runtime.types import Image, Query
from router_training.sequence.targets import (
    Texts,
    has_one_label,
    settled_objective,
)

NAN = float("nan")


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
