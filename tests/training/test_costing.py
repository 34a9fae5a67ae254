from __future__ import annotations

import numpy as np

from router_runtime.pricing import Price, PriceTable
from router_runtime.types import Image, Query
from router_training.costing import fill_costs
from router_training.labels import LabelMatrix

NAN = np.nan
QUERIES = (Query("a"), Query("b", (Image(b"x", "image/png"),)))


def labels() -> LabelMatrix:
    return LabelMatrix(
        model_ids=("a", "b"),
        Y=np.ones((2, 2)),
        cost_usd=np.array([[0.5, NAN], [NAN, NAN]]),
        input_tokens=np.array([[1e6, 1e6], [1e6, NAN]]),
        output_tokens=np.array([[1e6, 2e6], [0, NAN]]),
        cached_input_tokens=np.array([[NAN, NAN], [4e5, NAN]]),
    )


def table(**options) -> PriceTable:
    price = Price(input_mtok=1, output_mtok=2, image=3)
    values = {"prices": (price, price), "factors": (None, None)} | options
    return PriceTable(model_ids=("a", "b"), **values)


def test_recorded_dollars_stay_and_usage_fills_the_rest():
    filled = fill_costs(labels(), QUERIES, prices=table())
    np.testing.assert_allclose(filled.cost_usd, [[0.5, 1 + 4], [1 + 3, NAN]])


def test_cached_tokens_have_their_own_price():
    price = Price(input_mtok=1, output_mtok=2, image=3, cached_input_mtok=0.5)
    filled = fill_costs(labels(), QUERIES, prices=table(prices=(price, price)))
    # .6 M input tokens at 1, .4 M cached ones at .5, one picture at 3
    np.testing.assert_allclose(filled.cost_usd, [[0.5, 1 + 4], [0.6 + 0.2 + 3, NAN]])


def test_without_prices_nothing_changes():
    assert fill_costs(labels(), QUERIES, prices=None).cost_usd[1, 0] is not None
    np.testing.assert_array_equal(
        fill_costs(labels(), QUERIES, prices=None).cost_usd, labels().cost_usd
    )


def test_relative_factors_are_no_dollars():
    relative = table(prices=(None, None), factors=(1.0, 2.0))
    np.testing.assert_array_equal(
        fill_costs(labels(), QUERIES, prices=relative).cost_usd, labels().cost_usd
    )
