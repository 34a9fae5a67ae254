from __future__ import annotations

import numpy as np
import pytest

from router_runtime.errors import DataError
from router_training import fit_novelty as module
from router_training.config import NoveltyConfig
from router_training.fit_novelty import fit_novelty

TRAIN, HELD_OUT = np.arange(400), np.arange(400, 600)


def cloud(n: int, *, centre: float, seed: int) -> np.ndarray:
    """Points around ``centre`` that vary along 4 of 20 features."""
    rng = np.random.default_rng(seed)
    X = np.zeros((n, 20), dtype=np.float32)
    X[:, :4] = centre + rng.normal(size=(n, 4))
    return X


def fitted(X=None, Y=None, *, train=TRAIN, held_out=HELD_OUT, seed=0, **settings):
    X = cloud(600, centre=0.0, seed=1) if X is None else X
    Y = np.full((len(X), 2), 0.5) if Y is None else Y
    config = NoveltyConfig(**settings)
    return fit_novelty(X, Y, train=train, held_out=held_out, config=config, seed=seed)


def test_new_rows_of_the_same_kind_have_uniform_novelty():
    novelty = fitted().novelty(cloud(4000, centre=0.0, seed=2))
    assert np.mean(novelty > 0.5) == pytest.approx(0.5, abs=0.06)
    assert np.mean(novelty > 0.9) == pytest.approx(0.1, abs=0.04)


def test_rows_of_another_kind_are_beyond_all():
    assert fitted().novelty(cloud(50, centre=9.0, seed=3)).min() == 1.0


def test_rows_that_differ_where_no_training_row_does_are_beyond_all():
    X = cloud(50, centre=0.0, seed=4)
    X[:, 15] = 20.0
    assert fitted().novelty(X).min() == 1.0


def test_training_rows_are_not_held_against_themselves():
    # each training row is its own nearest row; had they set the percentiles, all else were novel
    assert fitted().novelty(cloud(1000, centre=0.0, seed=5)).mean() < 0.6
    assert fitted().novelty(cloud(600, centre=0.0, seed=1)[TRAIN]).max() == 0.0


def test_the_prior_is_each_models_mean_training_score():
    Y = np.full((600, 2), np.nan)
    Y[:4, 0], Y[:4, 1], Y[400:] = [1, 1, 1, 0], [0, 0, np.nan, 1], 0.1
    novel = fitted(Y=Y).shrink(np.full((1, 2), 0.9), np.ones(1))
    np.testing.assert_allclose(novel, [[0.75, 1 / 3]])


def test_equal_seeds_give_equal_bytes_and_components_without_variance_are_left_out():
    assert fitted().to_files() == fitted().to_files()
    assert fitted().description.n_components == 4
    assert fitted(components=2).description.n_components == 2


def test_neighbours_and_shrink_above_are_used():
    X = cloud(20, centre=0.0, seed=6)
    assert (fitted(neighbours=5).distance(X) > fitted().distance(X)).all()
    assert fitted(shrink_above=0.7).description.shrink_above == 0.7


def test_large_tables_are_sampled(monkeypatch):
    for name in ("MAX_PCA_ROWS", "MAX_REFERENCE_ROWS", "MAX_HELD_OUT_ROWS"):
        monkeypatch.setattr(module, name, 100)
    small = fitted()
    assert small.to_files() == fitted().to_files()
    assert small.to_files() != fitted(seed=1).to_files()
    # 100 rows x (4 components and the rest) of float32, and little else
    assert len(small.to_files()["novelty.safetensors"]) < 100 * 5 * 4 + 12_000
    novelty = small.novelty(cloud(4000, centre=0.0, seed=2))
    assert np.mean(novelty > 0.9) == pytest.approx(0.1, abs=0.06)


def test_memory_mapped_features_are_read_in_part_only(tmp_path):
    X = cloud(600, centre=0.0, seed=1)
    np.save(tmp_path / "X.npy", X)
    mapped = np.load(tmp_path / "X.npy", mmap_mode="r")
    assert fitted(mapped).to_files() == fitted(X).to_files()


def test_features_without_any_variance_make_everything_else_novel():
    X = np.ones((600, 3), dtype=np.float32)
    model = fitted(X)
    np.testing.assert_array_equal(model.novelty(X[:2]), [0, 0])
    np.testing.assert_array_equal(model.novelty(X[:1] * 2), [1])


@pytest.mark.parametrize(("train", "held_out"), [(TRAIN[:1], HELD_OUT), (TRAIN, HELD_OUT[:0])])
def test_too_few_rows_are_refused(train, held_out):
    with pytest.raises(DataError, match="Novelty needs two training rows and one held-out row"):
        fitted(train=train, held_out=held_out)
