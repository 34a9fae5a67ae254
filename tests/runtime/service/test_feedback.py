"""What callers say of answers."""

import asyncio
import math

import pytest

from router_runtime.errors import RequestError
from router_runtime.service.feedback import Feedbacks
from router_runtime.service.store import tables
from router_runtime.service.values import Caller, Feedback

CALLER = Caller("k1")


@pytest.fixture
def given(opened, url, make_event, clock):
    """A store with one decision of ``k1`` and what takes feedback into it."""

    def make(**options):
        store = opened(url, **options)
        store.record(make_event("d1"))
        return store, Feedbacks(store, clock=clock)

    return make


def give(feedbacks, *args, caller=CALLER, **fields):
    return asyncio.run(feedbacks.give(caller, Feedback(*args, **fields)))


def test_feedback_is_created_then_unchanged_then_replaced(given, rows_of):
    store, feedbacks = given()
    assert [give(feedbacks, "d1", score) for score in (1.0, 1.0, 0.5, 0.5)] == [
        "created",
        "unchanged",
        "replaced",
        "unchanged",
    ]
    row = rows_of(store.engine, tables.feedback)[0]
    assert (row["decision_id"], row["key_id"], row["score"]) == ("d1", "k1", 0.5)


def test_feedback_is_taken_for_a_decision_that_is_not_written_yet(given):
    _, feedbacks = given(linger_s=30.0)
    assert give(feedbacks, "d1", 1.0) == "created"


def test_another_keys_decision_and_an_unknown_one_are_refused_in_the_same_words(given, rows_of):
    store, feedbacks = given()
    answers = []
    for decision_id, caller in (
        ("d1", Caller("k2")),
        ("d9", CALLER),
        ("d\0", CALLER),
        ("", CALLER),
    ):
        with pytest.raises(RequestError) as caught:
            give(feedbacks, decision_id, 1.0, caller=caller)
        answers.append((caught.value.status, caught.value.code, str(caught.value)))
    assert len(set(answers)) == 1
    assert answers[0][:2] == (404, "decision_not_found")
    assert rows_of(store.engine, tables.feedback) == []


@pytest.mark.parametrize("score", [-0.01, 1.01, math.nan, math.inf])
def test_scores_outside_their_range_are_refused(given, score):
    _, feedbacks = given()
    with pytest.raises(RequestError, match="from 0 to 1") as caught:
        give(feedbacks, "d1", score)
    assert (caught.value.status, caught.value.param) == (400, "score")


def test_long_comments_are_refused(given):
    _, feedbacks = given()
    with pytest.raises(RequestError, match="4,097 characters") as caught:
        give(feedbacks, "d1", 1.0, "x" * 4097)
    assert caught.value.param == "comment"


@pytest.mark.parametrize(("content", "kept"), [(False, None), (True, "wrong \ufffd \ufffd")])
def test_comments_are_kept_only_where_content_is(given, rows_of, content, kept):
    store, feedbacks = given(content=content)
    give(feedbacks, "d1", 0.0, "wrong \0 \ufffd")
    assert rows_of(store.engine, tables.feedback)[0]["comment"] == kept


def test_comments_leave_with_the_content(given, rows_of, clock):
    store, feedbacks = given(content=True, retention_days=1)
    give(feedbacks, "d1", 0.0, "wrong")
    from router_runtime.service.store.queries import forget_content

    forget_content(store.engine, before=clock.now + 1)
    row = rows_of(store.engine, tables.feedback)[0]
    assert (row["score"], row["comment"]) == (0.0, None)


def test_feedback_given_many_times_at_once_is_one_row(given, rows_of):
    store, feedbacks = given()

    async def all_at_once():
        said = [feedbacks.give(CALLER, Feedback("d1", score)) for score in (0.0, 1.0) * 8]
        return await asyncio.gather(*said)

    became = asyncio.run(all_at_once())
    assert became.count("created") == 1
    assert len(rows_of(store.engine, tables.feedback)) == 1


def test_without_the_database_feedback_is_to_be_tried_again(given):
    store, feedbacks = given()
    assert store.flush()
    with store.engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE feedback RENAME TO gone")
    with pytest.raises(RequestError) as caught:
        give(feedbacks, "d1", 1.0)
    assert (caught.value.status, caught.value.retry_after_s) == (503, 5.0)
