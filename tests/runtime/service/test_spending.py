"""Who spent what, and what was saved."""

from decimal import Decimal

import pytest

from router_runtime.config import RuntimeConfig
from router_runtime.pricing import Usage
from router_runtime.service.spending import NO_ANSWER, baseline_of, spending
from router_runtime.service.values import Attempt

NOON = 1_790_000_000.0  # 2026-09-21, 13:33 UTC
DAY = 86_400.0


@pytest.fixture
def store(opened, url, make_event):
    """Two keys on two days: 0.07 dollars, of which 0.02 for an attempt that failed."""
    store = opened(url)
    paid_for_nothing = (
        Attempt(
            "large", "cut_off", 1.0, usage=Usage(7, 3), estimated=True, cost_usd=Decimal("0.02")
        ),
        Attempt("small", None, 0.5, usage=Usage(100, 20), cost_usd=Decimal("0.01")),
    )
    store.record(make_event("d1", attempts=paid_for_nothing))
    store.record(make_event("d2", at=NOON + DAY, cost="0.04", model="large", key_id="k2"))
    store.record(make_event("d3", at=NOON + DAY, attempts=(), status=422))
    assert store.flush()
    return store


def lines(report):
    return {line.name: line for line in report.lines}


def test_each_attempt_is_billed_to_the_model_that_was_asked(store):
    report = spending(store.engine, by="model")
    small, large = lines(report)["small"], lines(report)["large"]
    assert (small.cost_usd, large.cost_usd) == (Decimal("0.01"), Decimal("0.06"))
    assert (small.requests, large.requests) == (1, 1)
    assert (large.attempts, large.failed, large.estimated_usd) == (2, 1, Decimal("0.02"))
    assert (large.input_tokens, large.output_tokens) == (107, 23)
    assert lines(report)[NO_ANSWER].requests == 1


def test_lines_are_keys_or_days_and_the_total_is_the_same(store):
    by_key = spending(store.engine, by="key")
    by_day = spending(store.engine, by="day")
    assert {name: line.cost_usd for name, line in lines(by_key).items()} == {
        "k1": Decimal("0.03"),
        "k2": Decimal("0.04"),
    }
    assert {name: line.requests for name, line in lines(by_day).items()} == {
        "2026-09-21": 1,
        "2026-09-22": 2,
    }
    assert by_key.total == by_day.total == spending(store.engine, by="model").total
    assert (by_key.total.cost_usd, by_key.total.requests) == (Decimal("0.07"), 3)


def test_a_time_and_a_key_narrow_the_report(store):
    assert spending(store.engine, since=NOON + 1).total.cost_usd == Decimal("0.04")
    assert spending(store.engine, key_id="k1").total.cost_usd == Decimal("0.03")


def test_savings_compare_answered_requests_with_what_the_baseline_was_expected_to_cost(store):
    report = spending(store.engine, by="model", baseline="large")
    assert report.total.compared == 2
    assert report.total.baseline_usd == pytest.approx(0.10)
    assert report.total.saved_usd == pytest.approx(0.10 - 0.07)
    assert report.total.saved_share == pytest.approx(0.3)
    assert lines(report)["small"].saved_usd == pytest.approx(0.05 - 0.03)


def test_where_nothing_is_expected_of_the_baseline_nothing_is_compared(opened, url, make_event):
    store = opened(url)
    store.record(make_event("d1", expected={"small": 0.01, "large": None}))
    store.record(make_event("d2", expected={}))
    assert store.flush()
    total = spending(store.engine, baseline="large").total
    assert (total.compared, total.saved_usd, total.saved_share) == (0, 0.0, None)


def test_models_with_odd_names_can_be_the_baseline(opened, url, make_event):
    store = opened(url)
    name = "org/model.v1:free's %s"
    store.record(make_event("d1", expected={name: 0.5}))
    assert store.flush()
    assert spending(store.engine, baseline=name).total.baseline_usd == 0.5


def test_calls_without_a_price_are_counted_and_not_taken_for_free(opened, url, make_event):
    store = opened(url)
    store.record(make_event("d1", cost=None))
    assert store.flush()
    total = spending(store.engine).total
    assert (total.unpriced, total.cost_usd) == (1, Decimal(0))


def test_lost_records_are_told_with_what_they_cost(opened, url, make_event):
    store = opened(url, max_bytes=100)
    store.record(make_event("d1", cost="0.25"))
    assert store.flush()
    store.close(5.0)
    for by, name in (("model", "(lost: spool_full)"), ("key", "k1"), ("day", "2026-09-21")):
        line = lines(spending(store.engine, by=by))[name]
        assert (line.lost, line.cost_usd) == (1, Decimal("0.25"))
    store.engine.dispose()


def test_an_empty_store_has_a_total_of_nothing(opened, url):
    assert spending(opened(url).engine, baseline="large").total.cost_usd == 0


def config(**service):
    prices = {"small": (1, 2), "large": (1, 9), "thinking": (3, 9)}
    return RuntimeConfig.model_validate(
        {
            "artifact": "a",
            "candidates": [
                {"id": name, "price": {"input_mtok": into, "output_mtok": out}}
                for name, (into, out) in prices.items()
            ],
            "service": service,
        }
    )


def test_the_baseline_is_the_configured_model_or_the_dearest():
    assert baseline_of(config(baseline_model="small")) == "small"
    assert baseline_of(config()) == "thinking"
    assert baseline_of(RuntimeConfig(artifact="a")) is None
