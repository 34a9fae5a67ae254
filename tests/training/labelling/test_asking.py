from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from decimal import Decimal

import pytest

from router_runtime.errors import (
    ConfigError,
    RouterError,
    TargetConnectionError,
    TargetProtocolError,
    TargetStatusError,
    TargetTimeoutError,
)
from router_runtime.pricing import Price, Usage
from router_runtime.targets.base import ChatCall, Completion
from router_runtime.targets.fake import FakeTarget
from router_training.labelling.answer_store import AnswerStore
from router_training.labelling.asking import (
    FAILURES_IN_A_ROW,
    LiveAsker,
    StoredAsker,
    live_asker,
    models_of,
)
from router_training.labelling.calls import Status, call_key
from router_training.labelling.config import AskConfig, LabelConfig
from router_training.labelling.pacing import Pacer
from router_training.labelling.progress import Unwatched
from router_training.labelling.spending import Budget, size_of

PRICE = Price(Decimal(1), Decimal(10))
USAGE = Usage(100, 20)
COST = Decimal("0.0003")
QUICK = AskConfig(attempts=3, max_wait_s=0.01)


def call(text="hello", **parameters):
    return ChatCall(({"role": "user", "content": text},), {"max_tokens": 50, **parameters})


def completion(text="hi", usage=USAGE):
    return Completion("m", text, usage=usage, finish_reason="stop", seconds=0.5)


def scripted(*answers):
    """Answer one after the other; the last again and again."""
    left = list(answers)
    return lambda _: left.pop(0) if len(left) > 1 else left[0]


def status(code, **more):
    return TargetStatusError(f"HTTP {code}", status=code, **{"retryable": True, **more})


TIMEOUT = TargetTimeoutError("too slow", retryable=True)
BROKEN = TargetConnectionError("reset", retryable=True)
UPPER = size_of(call()).upper_cost_usd(PRICE)


class Seen(Unwatched):
    def __init__(self):
        self.outcomes, self.stops, self.drained = [], [], []

    def ended(self, outcome, *, asked):
        self.outcomes.append((outcome.status, asked))

    def stopped(self, model_id, why):
        self.stops.append((model_id, why))

    def draining(self, calls):
        self.drained.append(calls)


@asynccontextmanager
async def asking(store, *targets, ask=QUICK, budget=None, watch=None, concurrency=8, price=PRICE):
    yield_to = LiveAsker(
        {target.model_id: target for target in targets},
        {target.model_id: price for target in targets},
        store,
        pacers={t.model_id: Pacer(None, None, max_concurrency=concurrency) for t in targets},
        budget=budget or Budget(None),
        ask=ask,
        watch=watch,
    )
    async with yield_to as asker:
        yield asker


@pytest.fixture
def store(tmp_path):
    with AnswerStore.open(tmp_path, holder="test") as opened:
        yield opened


def ask_once(store, target, *, calls=(None,), **options):
    """Ask one after the other and return the outcomes."""

    async def main():
        async with asking(store, target, **options) as asker:
            return [await asker.ask(target.model_id, c or call()) for c in calls]

    return asyncio.run(main())


def test_an_answer_carries_usage_exact_cost_and_time_and_is_kept(store):
    target = FakeTarget("m", scripted(completion()), model="served-name")
    [outcome] = ask_once(store, target)
    assert (outcome.status, outcome.text, outcome.finish_reason) == ("answered", "hi", "stop")
    assert (outcome.usage, outcome.cost_usd, outcome.seconds) == (USAGE, COST, 0.5)
    assert outcome.key == call_key("m", "served-name", call())
    assert store.find([outcome.key])[outcome.key] == outcome
    assert store.spent() == COST
    assert target.closed


def test_pictures_of_the_call_are_priced(store):
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
    shown = ChatCall(({"role": "user", "content": [picture, picture]},))
    price = Price(Decimal(1), Decimal(10), image=Decimal("0.01"))
    [outcome] = ask_once(store, FakeTarget("m", scripted(completion())), calls=[shown], price=price)
    assert outcome.usage.images == 2
    assert outcome.cost_usd == COST + Decimal("0.02")


def test_what_is_kept_is_not_asked_again_and_anything_changed_is(store):
    target = FakeTarget("m", scripted(completion()))
    ask_once(store, target)
    watch = Seen()
    ask_once(store, target, watch=watch)
    assert target.calls == 1
    assert watch.outcomes == [(Status.ANSWERED, False)]
    ask_once(store, target, calls=[call("hello!"), call(temperature=1), call(max_tokens=60)])
    assert target.calls == 4


def test_repeats_are_calls_of_their_own(store):
    async def main():
        async with asking(store, target) as asker:
            return [await asker.ask("m", call(), repeat=n) for n in (0, 1, 1)]

    target = FakeTarget("m", scripted("a", "b", "c"))
    assert [o.text for o in asyncio.run(main())] == ["a", "b", "b"]


def test_equal_calls_at_the_same_time_are_one_call(store):
    async def main():
        async with asking(store, target, watch=watch) as asker:
            return await asyncio.gather(*(asker.ask("m", call()) for _ in range(5)))

    target, watch = FakeTarget("m", scripted("a", "b"), seconds=0.01), Seen()
    assert {o.text for o in asyncio.run(main())} == {"a"}
    assert target.calls == 1
    assert sorted(asked for _, asked in watch.outcomes) == [False] * 4 + [True]


@pytest.mark.parametrize("error", [status(503), status(429), TIMEOUT, BROKEN])
def test_what_may_pass_is_tried_again(store, error):
    [outcome] = ask_once(store, FakeTarget("m", scripted(error, error, completion())))
    assert (outcome.status, outcome.tries) == ("answered", 3)


def test_after_the_last_try_it_has_failed_with_its_reason_and_one_more_run_asks_again(tmp_path):
    target = FakeTarget("m", scripted(status(503)))
    with AnswerStore.open(tmp_path, holder="first") as store:
        outcomes = ask_once(store, target, calls=[None, None])
        assert [(o.status, o.reason, o.tries) for o in outcomes] == [("failed", "HTTP 503", 3)] * 2
        assert target.calls == 3
    with AnswerStore.open(tmp_path, holder="second") as store:
        [again] = ask_once(store, FakeTarget("m", scripted("fine")))
    assert again.text == "fine"


def test_what_cannot_pass_is_refused_at_once_and_for_good(tmp_path):
    target = FakeTarget("m", scripted(status(400, retryable=False)))
    for holder in ("first", "second"):
        with AnswerStore.open(tmp_path, holder=holder) as store:
            [outcome] = ask_once(store, target)
        assert (outcome.status, outcome.reason) == ("refused", "HTTP 400")
    assert target.calls == 1


def test_retry_after_is_waited_for_by_all_calls_of_the_target(store):
    async def main():
        async with asking(store, target, ask=ask, concurrency=1) as asker:
            loop = asyncio.get_running_loop()
            began = loop.time()
            await asyncio.gather(asker.ask("m", call("1")), asker.ask("m", call("2")))
            return loop.time() - began

    ask = AskConfig(attempts=3, max_wait_s=0.3)
    target = FakeTarget("m", scripted(status(429, retry_after_s=0.25), "fine"))
    assert 0.25 <= asyncio.run(main()) < 0.5
    assert target.calls == 3


def test_a_retry_after_beyond_the_longest_wait_fails_the_call(store):
    target = FakeTarget("m", scripted(status(429, retry_after_s=60.0)))
    [outcome] = ask_once(store, target)
    assert (outcome.status, outcome.tries, target.calls) == ("failed", 1, 1)


def test_a_bad_key_stops_its_target_at_once_and_no_other(store):
    async def main():
        async with asking(store, bad, good, watch=watch, concurrency=2) as asker:
            cells = [asker.ask(m, call(str(i))) for i in range(10) for m in ("bad", "good")]
            return await asyncio.gather(*cells), asker.stopped

    error = status(401, retryable=False, whole_target=True)
    bad, good = FakeTarget("bad", scripted(error), seconds=0.01), FakeTarget("good", scripted("x"))
    watch = Seen()
    outcomes, stopped = asyncio.run(main())
    ended = {(o.model_id, o.status, o.reason) for o in outcomes}
    assert ended == {
        ("bad", "pending", "target_stopped: HTTP 401"),
        ("good", "answered", None),
    }
    assert (bad.calls, good.calls) == (2, 10)  # two were in flight
    assert watch.stops == [("bad", "HTTP 401")]
    assert stopped == {"bad": "HTTP 401"}
    assert not any(o.model_id == "bad" for o in store.find([o.key for o in outcomes]).values())


def test_a_target_that_fails_every_call_is_stopped_after_many(store):
    target = FakeTarget("m", scripted(status(500)))
    calls = [call(str(i)) for i in range(FAILURES_IN_A_ROW + 5)]
    outcomes = ask_once(store, target, calls=calls, ask=AskConfig(attempts=1, max_wait_s=0.01))
    assert target.calls == FAILURES_IN_A_ROW
    assert [o.status for o in outcomes[-5:]] == [Status.PENDING] * 5
    assert outcomes[-1].reason.endswith("200 calls in a row failed, the last with: HTTP 500")


def test_reasons_are_one_short_line(store):
    error = status(400, retryable=False)
    error.args = ("a\nb " * 1000,)
    [outcome] = ask_once(store, FakeTarget("m", scripted(error)))
    assert "\n" not in outcome.reason
    assert len(outcome.reason) <= 300


def test_the_budget_ends_asking_before_it_is_exceeded(store):
    async def main(budget):
        async with asking(store, target, budget=budget) as asker:
            return await asyncio.gather(*(asker.ask("m", call(str(i))) for i in range(50)))

    cap = COST * 10
    target = FakeTarget("m", scripted(completion()), seconds=0.001)
    outcomes = asyncio.run(main(Budget(cap)))
    assert cap - UPPER - COST < store.spent() <= cap
    answered = [o for o in outcomes if o.status is Status.ANSWERED]
    assert len(answered) == target.calls == store.spent() / COST
    assert {o.reason for o in outcomes if o.status is Status.PENDING} == {"budget_reached"}
    again = asyncio.run(main(Budget(cap * 10, store.spent())))
    assert all(o.status is Status.ANSWERED for o in again)
    assert target.calls == 50


@pytest.mark.parametrize(
    ("answers", "estimated"),
    [
        ([completion(usage=None)], UPPER),  # an answer, and nobody says what it cost
        ([TIMEOUT, completion()], UPPER),
        ([TargetProtocolError("html", retryable=True)] * 3, 3 * UPPER),
        ([status(500), completion()], 0),  # an error is free
        ([BROKEN, BROKEN, completion()], 0),  # never connected
        ([TargetProtocolError("html", retryable=True), BROKEN, completion()], 2 * UPPER),
    ],
)
def test_tries_that_may_have_been_billed_are_estimated_and_count_against_the_budget(
    store, answers, estimated
):
    budget = Budget(None)
    ask_once(store, FakeTarget("m", scripted(*answers)), budget=budget)
    assert store.estimated() == estimated
    assert budget.spent == store.spent() + estimated
    assert budget.reserved == 0


def test_without_a_price_costs_are_unknown_and_not_zero(store):
    [outcome] = ask_once(store, FakeTarget("m", scripted(completion())), price=None)
    assert outcome.usage == USAGE
    assert outcome.cost_usd is None
    assert store.spent() == store.estimated() == 0


def test_a_call_whose_caller_gives_up_in_flight_is_kept_and_one_that_waits_is_not_sent(store):
    async def main():
        async with asking(store, target, watch=watch, concurrency=1) as asker:
            tasks = [asyncio.create_task(asker.ask("m", call(text))) for text in ("1", "2")]
            await asyncio.sleep(0.02)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    target, watch = FakeTarget("m", scripted("kept"), seconds=0.1), Seen()
    asyncio.run(main())
    assert target.calls == 1
    assert watch.drained == [1]
    found = store.find([call_key("m", "m", call("1"))])
    assert [o.text for o in found.values()] == ["kept"]


class Slow(FakeTarget):
    """Notes when the work on a call begins and, some turns of the loop later, when it is sent."""

    def __init__(self, model_id):
        super().__init__(model_id, lambda _: "hi")
        self.seen = []

    async def acomplete(self, call):
        self.seen.append("ready")
        for _ in range(2):
            await asyncio.sleep(0)
        self.seen.append("sent")
        return await super().acomplete(call)


def test_of_calls_that_may_go_at_once_the_first_is_sent_before_the_last_is_made_ready(store):
    target = Slow("m")

    async def main():
        async with asking(store, target, concurrency=8) as asker:
            await asyncio.gather(*(asker.ask("m", call(f"prompt {i}")) for i in range(8)))

    asyncio.run(main())
    assert target.seen.index("sent") < 5
    assert target.seen.count("sent") == 8


def test_a_call_given_up_in_flight_is_not_tried_again(store):
    async def main():
        async with asking(store, target) as asker:
            task = asyncio.create_task(asker.ask("m", call()))
            await asyncio.sleep(0.02)
            task.cancel()

    target = FakeTarget("m", scripted(TIMEOUT), seconds=0.1)
    asyncio.run(main())
    assert target.calls == 1
    assert store.find([call_key("m", "m", call())]) == {}


def test_closing_waits_no_longer_than_its_grace(store):
    async def main():
        async with asking(store, target) as asker:
            task = asyncio.create_task(asker.ask("m", call()))
            await asyncio.sleep(0.02)
            task.cancel()
            await asker.aclose(grace_s=0.05)

    target = FakeTarget("m", scripted("late"), seconds=60)
    asyncio.run(asyncio.wait_for(main(), 5))


def test_an_answer_that_cannot_be_kept_is_an_error_and_not_an_outcome(store):
    store._writer._connection.execute("PRAGMA max_page_count = 6")
    with pytest.raises(RouterError, match="cannot be kept"):
        ask_once(store, FakeTarget("m", scripted("x" * 500_000)))


def test_an_unknown_model_is_named(store):
    with pytest.raises(ConfigError, match=r"no target 'x' \(known: m\)"):

        async def main():
            async with asking(store, FakeTarget("m", scripted("a"))) as asker:
                await asker.ask("x", call())

        asyncio.run(main())


def test_a_stored_asker_finds_what_was_asked_and_asks_nobody(store):
    target = FakeTarget("m", scripted("kept"), model="served")
    ask_once(store, target)
    stored = StoredAsker(store, {"m": "served"})
    kept, other = asyncio.run(stored.ask("m", call())), asyncio.run(stored.ask("m", call("?")))
    assert kept.text == "kept"
    assert (other.status, other.reason) == ("pending", "not_asked")
    with pytest.raises(ConfigError, match="no target 'x'"):
        asyncio.run(stored.ask("x", call()))


def label_config(**changes):
    target = {"kind": "compatible", "base_url": "http://h/v1"}
    content = {
        "data": {"path": "x.jsonl"},
        "candidates": [
            {"id": "a", "target": target, "price": {"input_mtok": 1, "output_mtok": 10}},
            {"id": "b", "target": {**target, "model": "b-served"}},
        ],
        "judge": {"models": [{"id": "j", "target": {**target, "model": "judge-served"}}]},
    }
    return LabelConfig.model_validate(content | changes)


def test_models_are_named_as_their_servers_know_them():
    assert models_of(label_config()) == {"a": "a", "b": "b-served", "j": "judge-served"}


def test_one_id_for_two_targets_is_refused():
    judge = {
        "models": [{"id": "a", "target": {"kind": "compatible", "base_url": "http://other/v1"}}],
        "allow_candidates": True,
    }
    with pytest.raises(ConfigError, match="'a' is a candidate and a judge with two different"):
        models_of(label_config(judge=judge))


def test_the_asker_of_a_config_has_its_prices_and_remembers_what_was_spent(store):
    async def main(cap, text):
        config = label_config(scoring={"scorers": {"e": "exact"}, "default": ["e"]}, judge=None)
        config = config.model_copy(update={"max_cost_usd": cap})
        async with live_asker(config, {"a": target}, store) as asker:
            return await asker.ask("a", call(text))

    target = FakeTarget("a", scripted(completion()))
    assert asyncio.run(main(UPPER, "hello")).cost_usd == COST
    too_little = COST + UPPER - Decimal("1e-9")
    assert asyncio.run(main(too_little, "world")).reason == "budget_reached"
    assert asyncio.run(main(COST + UPPER, "world")).cost_usd == COST
