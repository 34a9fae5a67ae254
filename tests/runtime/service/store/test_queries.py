"""What is asked of the tables."""

from decimal import Decimal

from router_runtime.service.store import queries

NOON = 1_790_000_000.0


def test_the_newest_decisions_come_first(opened, url, make_event):
    store = opened(url)
    for number in range(5):
        store.record(make_event(f"d{number}", at=NOON + number, key_id=f"k{number % 2}"))
    assert store.flush()
    found = queries.recent(store.engine, limit=2)
    assert [row.decision_id for row in found] == ["d4", "d3"]
    assert (found[0].served, found[0].cost_usd, found[0].score) == ("small", Decimal("0.01"), None)
    of_key = queries.recent(store.engine, limit=9, key_id="k1")
    assert [row.decision_id for row in of_key] == ["d3", "d1"]


def test_a_decision_is_told_whole_and_only_to_its_key(opened, url, make_event):
    store = opened(url)
    store.record(make_event("d1"))
    assert store.flush()
    found = queries.decision(store.engine, "d1", key_id="k1")
    assert (found["probabilities"], found["steps"]) == (
        {"small": 0.8, "large": 0.9},
        [["filter", "all"]],
    )
    assert queries.decision(store.engine, "d1", key_id="k2") is None
    assert queries.decision(store.engine, "d2") is None


def test_lost_dollars_count_from_the_beginning_of_their_hour(opened, url, make_event):
    store = opened(url, max_bytes=100)
    store.record(make_event("d1", cost="0.25", at=NOON))
    assert store.flush()
    assert store.status().losses == {"spool_full": 1}
    assert store.spent("k1", NOON) == Decimal("0.25")
    assert store.spent("k1", NOON + 3600) == 0
