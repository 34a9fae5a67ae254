"""Sums of what is on its way."""

from hypothesis import given
from hypothesis import strategies as st

from router_runtime.service.store.pending import Losses, PendingSpend, loss_row

SPENDS = st.lists(
    st.tuples(st.sampled_from("ab"), st.integers(0, 20_000), st.integers(0, 100)), max_size=30
)


@given(SPENDS, st.integers(0, 20_000))
def test_what_is_pending_is_what_was_spent_since_the_beginning_of_the_hour(spends, since):
    pending = PendingSpend()
    for spend in spends:
        pending.add(*spend)
    hour = since // 3600 * 3600
    expected = sum(pico for key, at, pico in spends if key == "a" and at >= hour)
    assert pending.since("a", since) == expected


@given(SPENDS)
def test_nothing_remains_of_what_arrived(spends):
    pending = PendingSpend()
    for key, at, pico in spends:
        pending.add(key, at, pico)
    for key, at, pico in spends:
        pending.add(key, at, -pico)
    assert pending == PendingSpend()


def test_losses_of_a_key_and_an_hour_are_one_row():
    losses = Losses()
    for at in (3600.0, 3601.0, 7200.0):
        losses.add("spool_full", key_id="a", at=at, pico=5)
    first, second = map(loss_row, losses.take())
    assert (first["at"], first["records"], first["cost_usd"]) == (3600.0, 2, 10)
    assert (second["at"], second["records"]) == (7200.0, 1)
    assert losses.take() == []
    assert losses.total == {"spool_full": 3}


def test_rows_that_could_not_be_told_keep_their_ids_and_later_losses_get_others():
    losses = Losses()
    losses.add("torn", key_id="", at=0.0, pico=0)
    untold = losses.take()
    losses.add("torn", key_id="", at=0.0, pico=0)
    losses.give_back(untold)
    again = losses.take()
    assert untold[0] in again
    assert [row["records"] for row in again] == [1, 1]
    assert len({row["id"] for row in again}) == 2
