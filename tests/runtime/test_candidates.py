from __future__ import annotations

import pytest

from router_runtime.candidates import capabilities_of, price_table_of
from router_runtime.config import CandidateConfig
from router_runtime.eligibility import NOT_CONFIGURED
from router_runtime.errors import ConfigError
from router_runtime.types import Modality

IDS = ("a", "b")


def test_without_candidates_a_model_serves_what_it_was_scored_on():
    learned = {"a": (Modality.TEXT,), "b": (Modality.TEXT, Modality.IMAGE)}
    a, b = capabilities_of([], model_ids=IDS, scored_modalities=learned)
    assert a.modalities == {Modality.TEXT}
    assert b.modalities == {Modality.TEXT, Modality.IMAGE}


def test_a_model_of_unknown_experience_may_serve_anything():
    (a,) = capabilities_of([], model_ids=["a"], scored_modalities={})
    assert a.modalities == set(Modality)


def test_a_model_that_is_not_configured_is_blocked():
    listed = CandidateConfig(id="b", context_window=10, tools=False)
    a, b = capabilities_of([listed], model_ids=IDS, scored_modalities={})
    assert a.blocked == NOT_CONFIGURED
    assert (b.blocked, b.context_window, b.tools) == (None, 10, False)


def test_prices_stand_in_column_order():
    priced = CandidateConfig(id="b", price={"input_mtok": 2, "output_mtok": 4})
    table = price_table_of([priced], model_ids=IDS)
    assert table.unit == "usd"
    assert table.prices[0] is None
    assert table.prices[1].output_mtok == 4


def test_model_costs_are_relative_factors():
    table = price_table_of([], model_ids=IDS, model_costs={"a": 1.0})
    assert table.unit == "relative"
    assert table.factors == (1.0, None)


def test_nothing_configured_is_no_table():
    assert price_table_of([CandidateConfig(id="a")], model_ids=IDS) is None


def test_prices_and_factors_are_not_mixed():
    priced = CandidateConfig(id="a", price={"input_mtok": 2, "output_mtok": 4})
    with pytest.raises(ConfigError, match="cannot be mixed"):
        price_table_of([priced], model_ids=IDS, model_costs={"b": 1.0})
