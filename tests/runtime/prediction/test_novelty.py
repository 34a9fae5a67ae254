from __future__ import annotations

import time

import numpy as np
import pytest

from router_runtime.errors import ArtifactError, ArtifactIntegrityError, QueryError
from router_runtime.prediction.novelty import (
    N_QUANTILES,
    NoveltyDescription,
    NoveltyModel,
    coordinates,
)

PRIOR = np.array([0.5, 0.9])


def model(*, neighbours=1, shrink_above=0.5, **arrays) -> NoveltyModel:
    """Three features, of which the first is kept; reference rows at 0 and 10; distances 0 to 1."""
    values = {
        "mean": np.zeros(3, np.float32),
        "components": np.array([[1.0], [0.0], [0.0]], np.float32),
        "reference": np.array([[0.0, 0.0], [10.0, 0.0]], np.float32),
        "distances": np.linspace(0.0, 1.0, N_QUANTILES),
        "prior": PRIOR,
    }
    description = NoveltyDescription(
        n_features=3, n_models=2, n_components=1, neighbours=neighbours, shrink_above=shrink_above
    )
    return NoveltyModel(description, **(values | arrays))


def rows(*values) -> np.ndarray:
    return np.array(values, dtype=np.float32)


def test_coordinates_are_the_components_and_the_length_of_the_rest():
    mean, components = rows(1, 0, 0), np.array([[1.0], [0.0], [0.0]], np.float32)
    Z = coordinates(rows([3, 3, 4], [1, 0, 0]), mean, components)
    np.testing.assert_allclose(Z, [[2, 5], [0, 0]])


def test_the_distance_is_that_to_the_nearest_reference_row():
    X = rows([0, 0, 0], [0.25, 0, 0], [9, 0, 0], [0, 3, 4])
    np.testing.assert_allclose(model().distance(X), [0, 0.25, 1, 5])


def test_with_two_neighbours_it_is_the_mean_of_the_two_nearest():
    np.testing.assert_allclose(model(neighbours=2).distance(rows([1, 0, 0])), [(1 + 9) / 2])


def test_a_direction_without_any_training_variance_counts_as_well():
    assert model().novelty(rows([0, 0.5, 0]))[0] == pytest.approx(0.5)


def test_novelty_is_the_share_of_held_out_rows_that_are_nearer():
    X = rows([0, 0, 0], [0.25, 0, 0], [0.99, 0, 0], [5, 0, 0])
    np.testing.assert_allclose(model().novelty(X), [0, 0.25, 0.99, 1], atol=1e-6)


def test_as_near_as_many_is_not_farther_than_they_are():
    # 60 % of the held-out rows are copies of training rows, the others are at distance 1
    distances = np.where(np.arange(N_QUANTILES) <= 600, 0.0, 1.0)
    novelty = model(distances=distances).novelty(rows([0, 0, 0], [1, 0, 0], [2, 0, 0]))
    np.testing.assert_allclose(novelty, [0.0, 0.601, 1.0])


def test_where_all_held_out_rows_are_copies_a_copy_is_known_and_everything_else_new():
    novelty = model(distances=np.zeros(N_QUANTILES)).novelty(rows([10, 0, 0], [9, 0, 0]))
    np.testing.assert_array_equal(novelty, [0, 1])


def test_a_copy_is_a_copy_whatever_float32_makes_of_it():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(200, 3)).astype(np.float32)
    components = np.linalg.qr(rng.normal(size=(3, 1)))[0].astype(np.float32)
    mean = X.mean(axis=0)
    fitted = model(mean=mean, components=components, reference=coordinates(X, mean, components))
    np.testing.assert_array_equal(fitted.distance(X), 0)
    assert fitted.distance(X[7:8])[0] == 0


def test_shrinkage_is_none_up_to_the_bound_and_whole_at_one():
    P = np.array([[0.1, 0.3]] * 4)
    shrunken = model().shrink(P, np.array([0.2, 0.5, 0.75, 1.0]))
    np.testing.assert_array_equal(shrunken[:2], P[:2])
    np.testing.assert_allclose(shrunken[2], [0.3, 0.6])  # half way to (.5, .9)
    np.testing.assert_array_equal(shrunken[3], PRIOR)


def test_a_bound_of_one_never_shrinks():
    P = np.array([[0.1, 0.3]])
    assert model(shrink_above=1.0).shrink(P, np.array([1.0])) is P


def test_shrunken_probabilities_stay_probabilities():
    rng = np.random.default_rng(1)
    P, novelty = rng.integers(0, 2, size=(500, 2)).astype(float), rng.random(500)
    shrunken = model(shrink_above=0.0, prior=np.array([0.0, 1.0])).shrink(P, novelty)
    assert shrunken.min() >= 0
    assert shrunken.max() <= 1


def test_what_is_written_is_read_to_the_bit():
    first = model(neighbours=2)
    second = NoveltyModel.from_files(first.describe(), first.to_files())
    X = np.random.default_rng(2).normal(size=(20, 3)).astype(np.float32)
    np.testing.assert_array_equal(first.novelty(X), second.novelty(X))
    assert second.description == first.description
    assert second.to_files() == first.to_files()


def test_features_of_another_width_are_refused():
    with pytest.raises(QueryError, match="2 columns"):
        model().novelty(np.zeros((1, 2), np.float32))


def test_features_whose_squares_overflow_are_new():
    with np.errstate(over="ignore", invalid="ignore"):
        novelty = model().novelty(rows([3e38, -3e38, 3e38], [0, 1e25, 0], [0, 0, 0]))
    assert novelty.tolist() == [1.0, 1.0, 0.0]


def test_no_query_gives_no_novelty():
    assert model().novelty(np.zeros((0, 3), np.float32)).shape == (0,)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"distances": np.linspace(1, 0, N_QUANTILES)}, "not decrease"),
        ({"distances": np.linspace(-1, 0, N_QUANTILES)}, ">= 0"),
        ({"prior": np.array([0.5, 1.5])}, r"must lie in \[0, 1\]"),
        ({"reference": np.zeros((0, 2), np.float32)}, "1 neighbours of 0 reference rows"),
        ({"reference": np.full((2, 2), 1e300)}, "reference must lie within"),
        ({"mean": np.full(3, -1e30, np.float32)}, "mean must lie within"),
        ({"components": np.full((3, 1), 2, np.float32)}, "components must lie within"),
    ],
)
def test_arrays_that_mean_nothing_are_refused(arrays, message):
    with pytest.raises(ArtifactIntegrityError, match=message):
        model(**arrays)


@pytest.mark.parametrize(
    "change", [{"n_components": 0}, {"shrink_above": 2}, {"neighbours": "x"}, {"unknown": 1}]
)
def test_a_malformed_description_is_refused(change):
    good = model()
    with pytest.raises(ArtifactError, match=next(iter(change))):
        NoveltyModel.from_files(good.describe() | change, good.to_files())


def test_a_file_that_does_not_fit_the_description_is_refused():
    good = model()
    with pytest.raises(ArtifactIntegrityError, match="expected floats of shape"):
        NoveltyModel.from_files(good.describe() | {"n_features": 4}, good.to_files())
    with pytest.raises(ArtifactIntegrityError, match="is missing"):
        NoveltyModel.from_files(good.describe(), {})


def test_one_query_against_2048_rows_takes_well_below_a_tenth_of_a_millisecond():
    rng = np.random.default_rng(3)
    components = np.linalg.qr(rng.normal(size=(464, 32)))[0].astype(np.float32)
    reference = rng.normal(size=(2048, 33)).astype(np.float32)
    large = NoveltyModel(
        NoveltyDescription(
            n_features=464, n_models=2, n_components=32, neighbours=1, shrink_above=0.98
        ),
        mean=np.zeros(464, np.float32),
        components=components,
        reference=reference,
        distances=np.linspace(0, 1, N_QUANTILES),
        prior=PRIOR,
    )
    X = rng.normal(size=(1, 464)).astype(np.float32)

    def seconds() -> float:
        start = time.perf_counter()
        large.novelty(X)
        return time.perf_counter() - start

    assert min(seconds() for _ in range(300)) < 5e-4  # 4e-5 on an idle core
