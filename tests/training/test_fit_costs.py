from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from router_runtime.errors import DataError
from router_runtime.prediction.costs import CostModel, query_sizes
from router_runtime.types import Image, Query
from router_training.fit_costs import MARGIN, MIN_ROWS, fit_costs
from router_training.labels import LabelMatrix

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"
NAN = float("nan")
PICTURE = Image(b"", "image/png")


def labels(*, cost_usd=None, input_tokens=None, output_tokens=None):
    arrays = {
        "cost_usd": cost_usd,
        "input_tokens": input_tokens,
        "output_tokens": output_tokens,
        "cached_input_tokens": None,
    }
    n = len(next(a for a in arrays.values() if a is not None))
    columns = {
        name: np.full((n, 1), NAN) if a is None else np.reshape(a, (n, 1)).astype(float)
        for name, a in arrays.items()
    }
    return LabelMatrix(("a",), np.zeros((n, 1)), **columns)


def sizes(chars):
    return query_sizes([Query("x" * int(c)) for c in chars])


def test_a_power_law_is_recovered():
    chars = np.arange(100, 1100, 10)
    model = fit_costs(sizes(chars), labels(cost_usd=1e-6 * (chars + 1)))
    np.testing.assert_allclose(
        model.expected_usd(sizes([200, 1000])), [[201e-6], [1001e-6]], rtol=0.02
    )


def test_the_expectation_is_a_mean_and_not_the_exponential_of_a_mean_logarithm():
    rng = np.random.default_rng(0)
    tokens = rng.lognormal(mean=5.0, sigma=1.0, size=4000)
    model = fit_costs(sizes(np.full(4000, 50)), labels(output_tokens=tokens))
    # exp(5) = 148 is the median; the mean is exp(5.5) = 245
    assert model.expected_output_tokens(sizes([50]))[0, 0] == pytest.approx(tokens.mean(), rel=1e-6)


def test_calls_that_cost_nothing_count_into_the_mean():
    usd = np.tile([0.0, 0.02], 50)
    model = fit_costs(sizes(np.full(100, 50)), labels(cost_usd=usd))
    assert model.expected_usd(sizes([50]))[0, 0] == pytest.approx(0.01)


def test_a_free_model_is_expected_to_be_free():
    model = fit_costs(sizes(np.arange(1, 101)), labels(cost_usd=np.zeros(100)))
    assert model.expected_usd(sizes([7, 10**6])).tolist() == [[0.0], [0.0]]


def test_input_tokens_extrapolate_by_the_character():
    chars = np.arange(100, 1100, 10)
    model = fit_costs(sizes(chars), labels(input_tokens=chars / 4))
    expected = model.expected_input_tokens(sizes([100_000]))[0, 0]
    assert expected == pytest.approx(25_000, rel=0.01)


def test_output_tokens_stay_near_what_was_seen():
    chars = np.arange(100, 1100, 10)
    model = fit_costs(sizes(chars), labels(output_tokens=chars))
    assert model.expected_output_tokens(sizes([10**7]))[0, 0] == 1090 * MARGIN


def test_dollars_of_a_megabyte_grow_with_its_characters():
    rng = np.random.default_rng(0)
    chars = np.round(rng.lognormal(6, 1, 600))
    usd = 2e-6 * (120 + chars / 4) + 1e-5 * rng.lognormal(5, 0.6, 600)
    model = fit_costs(sizes(chars), labels(cost_usd=usd))
    # 0.5 USD of input; without growth it would be one cent
    assert 0.25 < model.expected_usd(sizes([10**6]))[0, 0] < 1.0


def with_pictures(chars, images):
    return query_sizes(
        [Query("x" * int(c), (PICTURE,) * int(i)) for c, i in zip(chars, images, strict=True)]
    )


def test_input_tokens_add_up_from_preamble_characters_and_pictures():
    rng = np.random.default_rng(0)
    chars, images = rng.integers(10, 2000, 300), rng.integers(0, 3, 300)
    Z = with_pictures(chars, images)
    model = fit_costs(Z, labels(input_tokens=120 + chars / 4 + 1100 * images))
    far = with_pictures([0, 0, 100, 10**6], [0, 1, 10, 10])
    np.testing.assert_allclose(
        model.expected_input_tokens(far)[:, 0], [120, 1220, 11_145, 261_120], rtol=0.02
    )


def test_with_one_picture_in_every_record_ten_pictures_cost_about_ten_times_that():
    """A factor per character, learned from short questions, made 4 million tokens of a megabyte."""
    chars = np.arange(40, 200)
    Z = with_pictures(chars, np.ones(160))
    model = fit_costs(Z, labels(input_tokens=120 + chars / 4 + 1100))
    far = with_pictures([100, 10**6], [10, 1])
    np.testing.assert_allclose(model.expected_input_tokens(far)[:, 0], [11_145, 251_220], rtol=0.15)


def test_three_records_are_enough_for_input_tokens():
    model = fit_costs(sizes([400, 800, 400]), labels(input_tokens=[130.0, 260.0, 130.0]))
    np.testing.assert_allclose(
        model.expected_input_tokens(sizes([400, 100_000]))[:, 0], [125, 30_000], rtol=0.2
    )


def test_few_records_give_their_mean():
    usd = np.full(200, NAN)
    usd[: MIN_ROWS - 1] = np.arange(MIN_ROWS - 1)
    model = fit_costs(sizes(np.arange(1, 201)), labels(cost_usd=usd))
    assert model.expected_usd(sizes([1, 150])).tolist() == [[(MIN_ROWS - 2) / 2]] * 2


def test_nothing_recorded_stays_unknown_and_survives_json():
    model = fit_costs(sizes([5, 6]), labels(cost_usd=[NAN, NAN]))
    back = CostModel.from_json(json.loads(json.dumps(model.to_json(), allow_nan=False)))
    for each in (model, back):
        assert np.isnan(each.expected_usd(sizes([5]))).all()
        assert np.isnan(each.expected_output_tokens(sizes([5]))).all()


def test_sizes_of_other_queries_are_refused():
    with pytest.raises(DataError, match="sizes of 3 queries but labels of 2"):
        fit_costs(sizes([1, 2, 3]), labels(cost_usd=[1.0, 2.0]))


def test_real_dollars_are_foretold_without_bias_and_within_a_fifth():
    path = DATA / "routerbench_0shot_arc_mbpp_winogrande.jsonl.gz"
    if not path.exists():
        pytest.skip("the shared RouterBench table is not here")
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    model_ids = tuple(sorted(rows[0]["costs"]))
    usd = np.array([[row["costs"][m] for m in model_ids] for row in rows])
    Z = query_sizes([Query(row["prompt"]) for row in rows])
    unknown = np.full(usd.shape, NAN)
    table = LabelMatrix(model_ids, np.zeros(usd.shape), usd, unknown, unknown, unknown)
    order = np.random.default_rng(0).permutation(len(rows))
    train, test = order[:2000], order[2000:]
    expected = fit_costs(Z[train], table.take(train)).expected_usd(Z[test])
    actual = usd[test]
    np.testing.assert_allclose(expected.mean(axis=0), actual.mean(axis=0), rtol=0.06)
    assert np.median(np.abs(expected - actual) / actual, axis=0).max() < 0.2
