from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router_runtime.errors import ConfigError, DataError
from router_runtime.types import Query
from router_training.labels import Evaluations, LabelMatrix
from router_training.samples import Sample
from router_training.splits import split_by_group, split_evaluations


def parts(split):
    return [split.train, split.validation, split.calibration, split.test]


def sizes(split):
    return [len(part) for part in parts(split)]


def test_distinct_groups_are_divided_exactly_by_the_fractions():
    assert sizes(split_by_group([str(at) for at in range(100)])) == [60, 10, 10, 20]


def test_equal_seeds_give_equal_splits_and_others_do_not():
    groups = [str(at) for at in range(100)]
    first, same, other = (split_by_group(groups, seed=seed) for seed in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(parts(first), parts(same), strict=True))
    assert not np.array_equal(first.test, other.test)


def test_a_fraction_of_0_leaves_its_part_empty():
    split = split_by_group([str(at) for at in range(50)], fractions=(0.8, 0.0, 0.0, 0.2))
    assert sizes(split) == [40, 0, 0, 10]


def test_a_huge_group_goes_where_it_fits():
    groups = ["huge"] * 55 + [str(at) for at in range(45)]
    for seed in range(5):
        split = split_by_group(groups, seed=seed)
        assert set(split.train) >= set(range(55))
        assert sizes(split) == [60, 10, 10, 20]


def test_the_parts_share_what_a_giant_group_leaves():
    groups = ["giant"] * 900 + [str(at) for at in range(100)]
    assert sizes(split_by_group(groups)) == [900, 25, 25, 50]


def test_sizes_of_groups_do_not_depend_on_the_part():
    rng = np.random.default_rng(0)
    groups = [f"g{at}" for at in range(3000) for _ in range(int(rng.integers(1, 4)))]
    split = split_by_group(groups, seed=3)
    means = [len(part) / len({groups[row] for row in part}) for part in parts(split)]
    assert max(means) - min(means) < 0.2


@pytest.mark.parametrize("n", [0, 1, 19])
def test_fewer_than_20_rows_are_refused_with_the_remedy(n):
    with pytest.raises(DataError, match=rf"{n} rows are too few.*Collect more"):
        split_by_group([str(at) for at in range(n)])


def test_fewer_groups_than_parts_are_refused():
    with pytest.raises(DataError, match="3 groups cannot fill 4 parts"):
        split_by_group(["a", "b", "c"] * 10)


@pytest.mark.parametrize(
    "fractions",
    [(0.5, 0.5, 0.5, 0.5), (1.2, -0.2, 0, 0), (1.0,), (float("nan"), 0.5, 0.25, 0.25)],
)
def test_impossible_fractions_are_refused(fractions):
    with pytest.raises(ConfigError, match="fractions"):
        split_by_group(["a"] * 30, fractions=fractions)


@settings(deadline=None, max_examples=100)
@given(
    groups=st.lists(st.integers(0, 40).map(str), min_size=20, max_size=200),
    weights=st.tuples(*[st.integers(0, 5)] * 4).filter(any),
    seed=st.integers(0, 9),
)
def test_parts_are_disjoint_by_group_cover_every_row_and_are_filled(groups, weights, seed):
    fractions = tuple(weight / sum(weights) for weight in weights)
    if len(set(groups)) < sum(weight > 0 for weight in weights):
        return
    split = split_by_group(groups, fractions=fractions, seed=seed)
    assert sorted(np.concatenate(parts(split)).tolist()) == list(range(len(groups)))
    found = [{groups[row] for row in part} for part in parts(split)]
    assert sum(map(len, found)) == len(set(groups))
    assert [bool(part) for part in found] == [weight > 0 for weight in weights]
    assert all(part.dtype == np.int64 for part in parts(split))


def test_traits_are_alike_in_all_parts_and_chance_still_decides():
    rng = np.random.default_rng(0)
    traits = np.column_stack([rng.integers(0, 2, 1000), rng.random(1000)])
    groups = [str(at) for at in range(1000)]
    splits = [split_by_group(groups, seed=seed, traits=traits) for seed in range(20)]
    for split in splits:
        assert sizes(split) == [600, 100, 100, 200]
        for part in parts(split):  # at random: deviations of .05 and .03 in a part of 100
            assert abs(traits[part, 0].mean() - traits[:, 0].mean()) < 0.02
            assert abs(traits[part, 1].mean() - traits[:, 1].mean()) < 0.02
    tested = np.bincount(np.concatenate([split.test for split in splits]), minlength=1000)
    assert tested.max() < 13  # of 20; 4 are expected of every row
    assert (tested == 0).mean() < 0.03


def evaluations(Y, *, datasets):
    samples = tuple(
        Sample(
            id=str(at),
            query=Query(f"question {at}"),
            reference=None,
            group=str(at),
            dataset=dataset,
            prompt=f"question {at}",
        )
        for at, dataset in enumerate(datasets)
    )
    return Evaluations(samples, LabelMatrix.of_scores(("a", "b"), Y))


def test_evaluations_are_divided_alike_in_data_set_and_difficulty():
    rng = np.random.default_rng(1)
    hard = rng.random(400) < 0.4
    Y = (rng.random((400, 2)) < np.where(hard, 0.3, 0.9)[:, None]).astype(float)
    Y[::7, 1] = np.nan
    data = evaluations(Y, datasets=["hard" if h else "easy" for h in hard])
    split = split_evaluations(data, seed=0)
    for part in parts(split):
        assert abs(hard[part].mean() - hard.mean()) < 0.04
        assert abs(Y[part, 0].mean() - Y[:, 0].mean()) < 0.04
