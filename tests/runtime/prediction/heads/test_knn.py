from __future__ import annotations

import numpy as np
import pytest

from router_runtime.prediction.heads import knn
from router_runtime.prediction.heads.base import load_head
from router_runtime.prediction.heads.knn import KnnDescription, KnnHead


def head(rows, scores, *, k: int, metric: str = "euclidean", prior=0.5, pseudo_count=1e-9):
    """A head on the plane as it is: the projection is the identity, the bandwidth 1."""
    rows, scores = np.asarray(rows, np.float16), np.asarray(scores, np.float32)
    description = KnnDescription(
        n_features=2,
        n_models=scores.shape[1],
        components=2,
        metric=metric,
        k=k,
        bandwidth=1.0,
        pseudo_count=pseudo_count,
    )
    tensors = {
        "projection": np.eye(2, dtype=np.float32),
        "center": np.zeros(2),
        "rows": rows,
        "scores": scores,
        "prior": np.full(scores.shape[1], prior),
    }
    return KnnHead(description, tensors)


def query(*xy: float) -> np.ndarray:
    return np.array([xy], np.float32)


def test_only_the_k_nearest_count():
    P = head([[0, 0], [0, 1], [5, 5]], [[1], [1], [0]], k=2).predict_proba(query(0, 0.5))
    np.testing.assert_allclose(P, [[1.0]])


def test_nearer_neighbours_weigh_more():
    """Weights exp(0) and exp(-2^2 / 2)."""
    P = head([[0, 0], [2, 0]], [[1], [0]], k=2).predict_proba(query(0, 0))
    np.testing.assert_allclose(P, [[1 / (1 + np.exp(-2))]])


def test_missing_scores_are_masked_per_model():
    scores = [[1, np.nan], [np.nan, np.nan], [0, np.nan]]
    P = head([[0, 1], [0, 0], [0, -1]], scores, k=3, prior=0.3).predict_proba(query(0, 0))
    np.testing.assert_allclose(P, [[0.5, 0.3]], atol=1e-6)


def test_pseudo_counts_draw_to_the_prior():
    """One neighbour of weight 1 that scored 1, three pseudo-neighbours that scored 0.2."""
    P = head([[0, 0]], [[1]], k=1, prior=0.2, pseudo_count=3.0).predict_proba(query(0, 0))
    np.testing.assert_allclose(P, [[(1 + 3 * 0.2) / 4]])


def test_a_query_far_from_all_training_rows_gets_the_prior():
    P = head([[0, 0]], [[1]], k=1, prior=0.2, pseudo_count=1.0).predict_proba(query(50, 0))
    np.testing.assert_allclose(P, [[0.2]])


def test_cosine_ignores_length():
    found = head([[1, 0], [0, 1]], [[1], [0]], k=1, metric="cosine")
    np.testing.assert_allclose(found.predict_proba(query(9, 1)), [[1.0]], atol=1e-6)
    np.testing.assert_allclose(found.predict_proba(query(1, 9)), [[0.0]], atol=1e-6)
    assert np.isfinite(found.predict_proba(query(0, 0))).all()


def test_all_copies_at_the_k_th_distance_count():
    P = head([[1, 0]] * 4, [[1], [0], [0], [0]], k=1).predict_proba(query(0, 0))
    np.testing.assert_allclose(P, [[0.25]])


def test_k_above_the_number_of_rows_means_all_rows():
    P = head([[1, 0], [-1, 0]], [[1], [0]], k=100).predict_proba(query(0, 0))
    np.testing.assert_allclose(P, [[0.5]])


def test_memory_is_bounded_by_chunks(monkeypatch):
    rng = np.random.default_rng(0)
    found = head(rng.normal(size=(50, 2)), rng.random((50, 3)), k=5)
    X = rng.normal(size=(30, 2)).astype(np.float32)
    whole = found.predict_proba(X)
    monkeypatch.setattr(knn, "_CELLS", 300)  # two queries at a time
    np.testing.assert_allclose(found.predict_proba(X), whole, rtol=0, atol=1e-12)


def test_memory_stays_bounded_where_all_rows_tie(monkeypatch):
    held = []

    def spy(values, starts):
        held.append(values.size)
        return np.add.reduceat(values, starts, axis=0)

    monkeypatch.setattr(knn, "_sum_runs", spy)
    monkeypatch.setattr(knn, "_CELLS", 1000)
    found = head(np.zeros((100, 2)), np.ones((100, 4)), k=3)
    assert found.predict_proba(np.zeros((20, 2), np.float32)).shape == (20, 4)
    assert max(held) <= 1000


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_survives_its_files_with_missing_scores(metric):
    found = head([[0, 1], [1, 0]], [[1, np.nan], [0, 1]], k=2, metric=metric)
    again = load_head(found.describe(), found.to_files("head"))
    np.testing.assert_array_equal(
        again.predict_proba(query(0.3, 0.4)), found.predict_proba(query(0.3, 0.4))
    )


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 60.0])
def test_one_query_is_predicted_as_in_a_batch_to_the_bit(metric, scale):
    rng = np.random.default_rng(0)
    rows = np.repeat(rng.normal(size=(200, 2)) * scale, 3, axis=0)  # every row ties with two more
    scores = rng.random((600, 3))
    scores[rng.random((600, 3)) < 0.3] = np.nan
    X = (rng.normal(size=(40, 2)) * scale).astype(np.float32)
    neighbours = head(rows, scores, k=7, metric=metric, pseudo_count=0.5)
    alone = np.concatenate([neighbours.predict_proba(x[None]) for x in X])
    np.testing.assert_array_equal(alone, neighbours.predict_proba(X))


def test_fewer_rows_than_neighbours_serve_one_query_too():
    P = head([[0, 0]], [[1]], k=5).predict_proba(query(0, 0.5))
    np.testing.assert_allclose(P, [[1.0]])
