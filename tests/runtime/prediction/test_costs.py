from __future__ import annotations

import json

import numpy as np
import pytest

from router_runtime.errors import ArtifactError, ConfigError
from router_runtime.prediction.costs import (
    DEFAULT_OUTPUT_TOKENS,
    SIZE_NAMES,
    Additive,
    CostEstimator,
    CostModel,
    LogLinear,
    query_sizes,
)
from router_runtime.pricing import Price, PriceTable
from router_runtime.types import Image, Query, Requirements

PICTURE = Image(b"", "image/png")
NAN = float("nan")


def constant(*values):
    """A LogLinear that predicts these values for every query; NaN = never recorded."""
    column = np.array(values)
    k = len(SIZE_NAMES)
    return LogLinear(np.where(np.isnan(column)[:, None], NAN, np.zeros((1, k))), *[column] * 3)


def per_char(*values):
    """An Additive of so much per character; NaN = never recorded."""
    return Additive(np.array([[np.nan] * 5 if np.isnan(v) else [0, v, 0, 0, 0] for v in values]))


def learned(
    *,
    output_tokens=(NAN, NAN),
    tokens_per_char=(NAN, NAN),
    usd=(NAN, NAN),
    usd_per_char=(0.0, 0.0),
    largest=(1, np.log1p(10_000), 9, 9, 9),
):
    return CostModel(
        ("a", "b"),
        output_tokens=constant(*output_tokens),
        input_tokens=per_char(*tokens_per_char),
        usd=constant(*usd),
        usd_beyond=per_char(*usd_per_char),
        largest=np.array(largest),
    )


def dollars(*per_mtok):
    prices = tuple(None if p is None else Price(p, p) for p in per_mtok)
    return PriceTable(("a", "b"), prices, (None, None))


def factors(*values):
    return PriceTable(("a", "b"), (None, None), values)


def test_sizes_count_characters_pictures_newlines_and_digits():
    Z = query_sizes([Query("x = 12\ny\n", (PICTURE,)), Query("ab", prompt_chars=99)])
    np.testing.assert_allclose(
        Z,
        [
            [1, np.log(10), 1, np.log(3), np.log(3)],
            [1, np.log(100), 0, 0, 0],
        ],
    )
    assert query_sizes([]).shape == (0, len(SIZE_NAMES))


def test_only_the_ten_digits_count_whatever_else_the_text_holds():
    texts = ["", "0123456789", "é٣💡4\ud800\n5"]
    sizes = np.expm1(query_sizes([Query(text) for text in texts])[:, 3:])
    np.testing.assert_allclose(sizes, [[0, 0], [0, 10], [1, 2]])


def test_a_prediction_is_log_linear_within_its_bounds():
    # 2 * exp(log1p_chars) = 2 * (chars + 1)
    model = LogLinear(
        np.array([[0.0, 1.0, 0.0, 0.0, 0.0]]), np.array([2.0]), np.array([10.0]), np.array([100.0])
    )
    Z = query_sizes([Query("x" * 9), Query("x"), Query("x" * 10**6)])
    np.testing.assert_allclose(model.predict(Z), [[20.0], [10.0], [100.0]])


def test_an_absurdly_large_query_does_not_overflow():
    model = LogLinear(np.full((1, 5), 1e3), np.ones(1), np.zeros(1), np.array([7.0]))
    assert model.predict(query_sizes([Query("x")])) == 7.0


def test_input_tokens_grow_with_the_characters_even_far_beyond_what_was_seen():
    model = learned(tokens_per_char=(0.25, NAN))
    Z = query_sizes([Query("x" * 400), Query("x" * 400_000)])
    np.testing.assert_allclose(model.expected_input_tokens(Z), [[100, NAN], [100_000, NAN]])


def test_learned_dollars_grow_by_the_piece_beyond_the_largest_that_was_learned_from():
    model = learned(usd=(0.5, NAN), usd_per_char=(0.001, NAN))
    Z = query_sizes([Query("x" * 10_000), Query("x" * 11_000)])
    np.testing.assert_allclose(model.expected_usd(Z), [[0.5, NAN], [1.5, NAN]])


def test_a_configured_price_applies_to_learned_tokens():
    estimator = CostEstimator(
        dollars(1, 2),
        learned(output_tokens=(500.0, NAN), tokens_per_char=(0.5, NAN), usd=(9.0, 9.0)),
        ["a", "b"],
    )
    cost = estimator.expected([Query("x" * 400)])
    # a: 200 in + 500 out at 1 USD/M. b, of which nothing was learned: 100 in + 256 out at 2 USD/M.
    np.testing.assert_allclose(cost, [[700e-6, 2 * (100 + DEFAULT_OUTPUT_TOKENS) * 1e-6]])
    assert estimator.unit == "usd"


def test_a_requests_own_cap_bounds_the_output():
    estimator = CostEstimator(dollars(1, 1), learned(output_tokens=(500.0, 50.0)), ["a", "b"])
    query = Query("x" * 400, requirements=Requirements(max_output_tokens=100))
    np.testing.assert_allclose(estimator.expected([query]), [[200e-6, 150e-6]])


def test_pictures_cost_their_price_each():
    prices = (Price(0, 0, image="0.01"), Price(0, 0))
    table = PriceTable(("a", "b"), prices, (None, None))
    cost = CostEstimator(table, None, ["a", "b"]).expected([Query("", (PICTURE,) * 3)])
    np.testing.assert_allclose(cost, [[0.03, 0]])


def test_learned_dollars_stand_in_where_no_price_is_configured():
    estimator = CostEstimator(dollars(None, 1000), learned(usd=(0.5, 0.7)), ["a", "b"])
    # b: (100 + 256) tokens at 1000 USD/M
    np.testing.assert_allclose(estimator.expected([Query("x" * 400)]), [[0.5, 0.356]])


def test_learned_dollars_alone_suffice():
    estimator = CostEstimator(None, learned(usd=(0.5, NAN)), ["a", "b"])
    assert estimator.unit == "usd"
    np.testing.assert_array_equal(estimator.expected([Query("x")]), [[0.5, NAN]])


@pytest.mark.parametrize("usd", [(0.5, 0.7), (0.5, NAN)])
def test_configured_factors_are_all_that_counts(usd):
    estimator = CostEstimator(factors(1.0, 0.3), learned(usd=usd), ["a", "b"])
    assert estimator.unit == "relative"
    assert estimator.expected([Query("x"), Query("y")]).tolist() == [[1.0, 0.3]] * 2


def test_with_nothing_known_every_cost_is_nan():
    for model in (None, learned()):
        estimator = CostEstimator(None, model, ["a", "b"])
        assert estimator.unit == "unknown"
        assert np.isnan(estimator.expected([Query("x")])).all()


def test_columns_are_matched_by_name():
    estimator = CostEstimator(None, learned(usd=(0.5, 0.7)), ["new", "b", "a"])
    np.testing.assert_array_equal(estimator.expected([Query("x")]), [[NAN, 0.7, 0.5]])


def test_a_price_table_of_other_models_is_refused():
    with pytest.raises(ConfigError, match="price table is for a, b"):
        CostEstimator(dollars(1, 1), None, ["b", "a"])


def test_a_cost_model_survives_json_exactly():
    model = learned(output_tokens=(1 / 3, NAN), usd=(0.1, 0.7))
    back = CostModel.from_json(json.loads(json.dumps(model.to_json(), allow_nan=False)))
    Z = query_sizes([Query("hello\n1")])
    assert back.model_ids == model.model_ids
    np.testing.assert_array_equal(
        back.expected_output_tokens(Z), model.expected_output_tokens(Z), strict=True
    )
    np.testing.assert_array_equal(back.expected_usd(Z), model.expected_usd(Z), strict=True)


def test_a_cost_model_of_other_sizes_or_with_missing_parts_is_refused():
    content = learned().to_json()
    with pytest.raises(ArtifactError, match="Retrain"):
        CostModel.from_json({**content, "sizes": ["constant"]})
    with pytest.raises(ArtifactError, match="malformed"):
        CostModel.from_json({**content, "largest": [1.0]})
    for wrong in (-1.0, float("inf")):
        coefficients = {"coefficients": [[wrong] * 5] * 2}
        with pytest.raises(ArtifactError, match="malformed"):
            CostModel.from_json({**content, "input_tokens": coefficients})
    del content["usd"]
    with pytest.raises(ArtifactError, match="malformed"):
        CostModel.from_json(content)
