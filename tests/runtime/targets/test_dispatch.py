from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router_runtime.errors import (
    AllTargetsFailedError,
    NoEligibleModelError,
    RequestError,
)
from router_runtime.service_config import BreakerConfig
from router_runtime.simulator.config import SimulatorConfig
from router_runtime.simulator.faults import FAULT_KINDS
from router_runtime.simulator.serve import SimulatorServer
from router_runtime.target_config import CompatibleTargetConfig
from router_runtime.targets.breaker import Breaker, State
from router_runtime.targets.dispatch import Outcome, Rules, adispatch, plan
from router_runtime.targets.forward_http import HttpForwarder
from router_runtime.targets.streams import Stream
from router_runtime.targets.wholes import Whole

BODY = {"model": "auto", "messages": [{"role": "user", "content": "hello"}]}
USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
MESSAGE = {"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}
ANSWER = {"choices": [MESSAGE], "usage": USAGE}
EMPTY = {"choices": [{**MESSAGE, "message": {"role": "assistant", "content": " "}}], "usage": USAGE}
TOO_LONG = {"error": {"message": "too long", "code": "context_length_exceeded"}}
CHAT = "chat/completions"


async def dispatched(kit, replies, *, body=BODY, path=CHAT, timeout_s=5.0, **settings):
    """Return what came of asking one upstream per reply, and the upstreams."""
    async with AsyncExitStack() as stack:
        targets, upstreams = {}, []
        for at, reply in enumerate(replies):
            upstream = await stack.enter_async_context(kit.serving(reply))
            config = CompatibleTargetConfig(
                kind="compatible", base_url=upstream.url, timeout_s=timeout_s
            )
            targets[f"m{at}"] = HttpForwarder(f"m{at}", config)
            stack.push_async_callback(targets[f"m{at}"].aclose)
            upstreams.append(upstream)
        ranking = settings.pop("ranking", list(targets))
        result = await adispatch(ranking, targets, path, body, **settings)
        assert all(target.in_flight == 0 for target in targets.values())
        return result, upstreams


def ask(kit, *replies, **settings):
    return asyncio.run(dispatched(kit, replies, **settings))


def tries(result):
    return [(tried.model_id, tried.error) for tried in result.tried]


# --------------------------------------------------------------------------- the plan

ENDS = (Outcome.ANSWERED, Outcome.FINAL)


@settings(max_examples=300, deadline=None)
@given(
    ranking=st.lists(st.sampled_from("abcdef"), max_size=10),
    outcomes=st.lists(st.sampled_from(list(Outcome)), min_size=10, max_size=10),
    seconds=st.lists(st.floats(0, 8), min_size=10, max_size=10),
    max_attempts=st.integers(1, 5),
    deadline_s=st.floats(0.1, 20),
)
def test_a_plan_keeps_its_order_and_its_bounds(
    ranking, outcomes, seconds, max_attempts, deadline_s
):
    now, asked, called = [50.0], [], 0
    timeouts = dict.fromkeys("abcde", 6.0)
    steps = plan(
        ranking,
        rules=Rules(max_attempts, deadline_s),
        timeout_s=timeouts,
        clock=lambda: now[0],
    )
    ended, outcome = False, None
    for at in range(20):
        try:
            step = next(steps) if at == 0 else steps.send(outcome)
        except StopIteration:
            break
        assert not ended, "nobody is asked after an answer or an end"
        assert called < max_attempts
        assert 0 < step.timeout_s <= min(6.0, 50.0 + deadline_s - now[0])
        asked.append(step.model_id)
        outcome = outcomes[len(asked) - 1]
        called += outcome is Outcome.FAILED
        ended = outcome in ENDS
        now[0] += seconds[len(asked) - 1]
    else:
        pytest.fail("a plan ends")
    callable_once = [model for model in dict.fromkeys(ranking) if model in timeouts]
    assert asked == callable_once[: len(asked)]
    if len(asked) < len(callable_once) and not ended:
        assert called == max_attempts or now[0] >= 50.0 + deadline_s


# --------------------------------------------------------------------------- whole answers


def test_the_first_candidate_that_answers_is_passed_on_as_it_came(kit):
    content = json.dumps(ANSWER, indent=3).encode()
    result, upstreams = ask(kit, kit.http(200, content), kit.http(200, ANSWER))
    assert isinstance(result.answer, Whole)
    assert (result.answer.model_id, result.answer.content) == ("m0", content)
    assert [len(upstream.requests) for upstream in upstreams] == [1, 0]
    assert tries(result) == [("m0", None)]
    assert result.tried[0].usage == USAGE


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (500, {}, "status_500"),
        (429, {}, "status_429"),
        (401, {}, "status_401"),
        (404, {}, "status_404"),
        (200, b"<html>", "protocol"),
        (200, b"", "protocol"),
        (200, {"choices": []}, "empty"),
        (200, {}, "empty"),
        (200, {"choices": [{"index": 0}]}, "empty"),
        (200, {"choices": [{"index": 0, "message": None}]}, "empty"),
        (200, EMPTY, "empty"),
        (200, {"error": {"code": 503, "message": "x"}}, "status_503"),
    ],
)
def test_a_failure_that_may_pass_goes_to_the_next_candidate(kit, status, body, error):
    result, _ = ask(kit, kit.http(status, body), kit.http(200, ANSWER))
    assert result.answer.model_id == "m1"
    assert tries(result) == [("m0", error), ("m1", None)]


def test_an_empty_answer_is_billed_as_its_server_says(kit):
    result, _ = ask(kit, kit.http(200, EMPTY), kit.http(200, ANSWER))
    assert result.tried[0].usage == USAGE


@pytest.mark.parametrize(
    "choice",
    [
        {"message": {"role": "assistant", "content": None, "tool_calls": [{"id": "t"}]}},
        {"message": {"role": "assistant", "content": None, "refusal": "no"}},
        {"message": {"role": "assistant", "content": ""}, "finish_reason": "length"},
        {"message": {"role": "assistant", "content": ""}, "finish_reason": "content_filter"},
        {"text": "a completion"},
    ],
)
def test_an_answer_without_content_may_be_an_answer(kit, choice):
    result, _ = ask(kit, kit.http(200, {"choices": [choice]}))
    assert isinstance(result.answer, Whole)


def test_of_several_choices_one_with_content_is_enough(kit):
    choices = [EMPTY["choices"][0], MESSAGE]
    assert ask(kit, kit.http(200, {"choices": choices}))[0].answer is not None


def test_embeddings_are_answers_without_choices(kit):
    vectors = {"object": "list", "data": [{"embedding": [1.0]}], "usage": USAGE}
    result, _ = ask(kit, kit.http(200, vectors), path="embeddings")
    assert result.answer.body == vectors
    result, _ = ask(kit, kit.http(200, {"data": []}), path="embeddings")
    assert tries(result) == [("m0", "empty")]


def test_a_refusal_of_the_request_itself_ends_it(kit):
    said = {"error": {"message": "bad tool", "type": "invalid_request_error"}}
    result, upstreams = ask(kit, kit.http(400, said), kit.http(200, ANSWER))
    assert result.answer is None
    assert (result.refused.status, json.loads(result.refused.body)) == (400, said)
    assert len(upstreams[1].requests) == 0


def test_an_error_that_says_400_under_status_200_ends_it_as_well(kit):
    said = {"error": {"message": "bad", "code": 400}}
    result, _ = ask(kit, kit.http(200, said), kit.http(200, ANSWER))
    assert (result.refused.status, json.loads(result.refused.body)) == (400, said)


def test_a_prompt_too_long_for_one_may_suit_another(kit):
    result, _ = ask(kit, kit.http(400, TOO_LONG), kit.http(200, ANSWER))
    assert result.answer.model_id == "m1"
    result, _ = ask(kit, kit.http(400, TOO_LONG), kit.http(400, TOO_LONG))
    assert (result.answer, result.refused.status) == (None, 400)
    result, _ = ask(kit, kit.http(400, TOO_LONG), kit.http(500, {}))
    assert result.refused is None
    assert isinstance(result.error(), AllTargetsFailedError)


def test_no_candidate_is_asked_twice_or_beyond_the_attempts(kit):
    result, upstreams = ask(
        kit,
        *[kit.http(500, {})] * 3,
        ranking=["m0", "m0", "m1", "m2"],
        rules=Rules(max_attempts=2),
    )
    assert [len(upstream.requests) for upstream in upstreams] == [1, 1, 0]
    error = result.error()
    assert isinstance(error, AllTargetsFailedError)
    assert "m0: status_500, m1: status_500" in str(error)
    assert len(error.attempts) == 2


def test_a_target_that_hangs_is_given_up_for_the_next(kit):
    async def hang(reader, writer):
        await reader.read()

    result, _ = ask(kit, hang, kit.http(200, ANSWER), timeout_s=0.05)
    assert tries(result) == [("m0", "timeout"), ("m1", None)]


def test_the_deadline_ends_all_attempts(kit):
    async def hang(reader, writer):
        await reader.read()

    result, _ = ask(kit, hang, kit.http(200, ANSWER), rules=Rules(deadline_s=0.05))
    assert tries(result) == [("m0", "timeout")]


def test_a_model_without_a_target_cannot_be_asked(kit):
    result, _ = ask(kit, ranking=["unknown"])
    assert isinstance(result.error(), NoEligibleModelError)


# --------------------------------------------------------------------------- budgets, breakers


def test_a_candidate_beyond_the_budget_is_passed_over(kit):
    async def before(model_id):
        if model_id == "m0":
            raise RequestError("no", status=402, code="budget_exceeded")

    result, upstreams = ask(kit, kit.http(200, ANSWER), kit.http(200, ANSWER), before=before)
    assert tries(result) == [("m0", "budget"), ("m1", None)]
    assert not upstreams[0].requests


def test_where_the_budget_allows_nobody_that_is_the_error(kit):
    refusal = RequestError("no", status=402, code="budget_exceeded")

    async def before(_):
        raise refusal

    assert ask(kit, kit.http(200, ANSWER), before=before)[0].error() is refusal


def test_another_refusal_of_the_reservation_ends_the_request(kit):
    async def before(_):
        raise RequestError("slow down", status=429, code="rate_limit_exceeded")

    with pytest.raises(RequestError, match="slow down"):
        ask(kit, kit.http(200, ANSWER), before=before)


def breaker(**settings):
    return Breaker(BreakerConfig(**{"failures": 1, "rest_s": 7, **settings}))


def test_a_resting_target_is_passed_over_and_a_single_one_is_said_to_rest(kit):
    breakers = {"m0": breaker()}
    breakers["m0"].permit().failure()
    result, _ = ask(kit, kit.http(200, ANSWER), kit.http(200, ANSWER), breakers=breakers)
    assert tries(result) == [("m0", "breaker_open"), ("m1", None)]
    error = ask(kit, kit.http(200, ANSWER), breakers=breakers)[0].error()
    assert (error.status, error.code) == (503, "no_target_available")
    assert 6 < error.retry_after_s <= 7


@pytest.mark.parametrize(
    ("reply", "state"),
    [
        ((200, ANSWER), State.CLOSED),
        ((500, {}), State.OPEN),
        ((200, EMPTY), State.OPEN),
        ((400, {}), State.CLOSED),
        ((400, TOO_LONG), State.CLOSED),
    ],
)
def test_a_breaker_learns_how_a_call_ended(kit, reply, state):
    breakers = {"m0": breaker()}
    ask(kit, kit.http(*reply), breakers=breakers)
    assert breakers["m0"].state is state


def test_a_bad_key_opens_the_breaker_at_once(kit):
    breakers = {"m0": breaker(failures=5)}
    ask(kit, kit.http(401, {}), breakers=breakers)
    assert breakers["m0"].state is State.OPEN


def test_an_odd_answer_counts_once_however_odd(kit):
    breakers = {"m0": breaker(failures=2)}
    redirect = kit.http(307, {})
    ask(kit, redirect, breakers=breakers)
    assert breakers["m0"].state is State.CLOSED
    ask(kit, redirect, breakers=breakers)
    assert breakers["m0"].state is State.OPEN


def test_want_of_time_is_not_the_targets_fault(kit):
    async def hang(reader, writer):
        await reader.read()

    breakers = {"m0": breaker()}
    result, _ = ask(kit, hang, breakers=breakers, rules=Rules(deadline_s=0.05))
    assert tries(result) == [("m0", "timeout")]
    assert breakers["m0"].state is State.CLOSED


def test_a_client_that_leaves_is_noted_and_blames_nobody(kit):
    async def hang(reader, writer):
        await reader.read()

    breakers, tried = {"m0": breaker(probes=1)}, []

    async def scene():
        async with kit.serving(hang) as upstream:
            config = CompatibleTargetConfig(kind="compatible", base_url=upstream.url)
            target = HttpForwarder("m0", config)
            call = asyncio.create_task(
                adispatch(["m0"], {"m0": target}, CHAT, BODY, breakers=breakers, tried=tried)
            )
            while not upstream.requests:
                await asyncio.sleep(0.005)
            call.cancel()
            await asyncio.wait([call])
            assert call.cancelled()
            await asyncio.wait_for(upstream.hung_up.wait(), 5)
            await target.aclose()

    asyncio.run(scene())
    assert [(one.model_id, one.error) for one in tried] == [("m0", "cancelled")]
    assert breakers["m0"].state is State.CLOSED


def test_a_busy_target_is_passed_over_without_blame(kit):
    async def scene():
        async with kit.serving(kit.http(200, ANSWER)) as upstream:
            config = CompatibleTargetConfig(kind="compatible", base_url=upstream.url)
            target = HttpForwarder("m0", config, max_in_flight=1)
            first = await target.open(CHAT, b"{}", timeout_s=5, idle_s=5)
            breakers = {"m0": breaker()}
            result = await adispatch(["m0"], {"m0": target}, CHAT, BODY, breakers=breakers)
            first.close()
            await target.aclose()
            assert breakers["m0"].state is State.CLOSED
            return result

    result = asyncio.run(scene())
    assert tries(result) == [("m0", "busy")]
    assert result.error().retry_after_s == 1.0


# --------------------------------------------------------------------------- streams

STREAMED = {**BODY, "stream": True}


def test_a_stream_that_begins_with_nothing_is_given_up_for_the_next(kit):
    hollow = kit.sse(kit.delta(role="assistant"), kit.delta(""), kit.delta(finish="stop"))
    good = kit.sse(kit.delta(role="assistant"), kit.delta("hi"), kit.delta(finish="stop"))

    async def scene():
        async with kit.serving(hollow) as one, kit.serving(good) as other:
            targets = {
                name: HttpForwarder(
                    name, CompatibleTargetConfig(kind="compatible", base_url=upstream.url)
                )
                for name, upstream in (("m0", one), ("m1", other))
            }
            result = await adispatch(list(targets), targets, CHAT, STREAMED)
            passed = b"".join([data async for data in result.answer.chunks()])
            ending = result.answer.ending
            await result.answer.aclose()
            for target in targets.values():
                await target.aclose()
            return result, passed + ending

    result, passed = asyncio.run(scene())
    assert tries(result) == [("m0", "empty"), ("m1", None)]
    assert passed.count(b"data: ") == 4
    assert passed.endswith(b"data: [DONE]\n\n")


# --------------------------------------------------------------------------- faults

HARMLESS = {"usage_missing", "usage_nonsense", "duplicate_ids", "content_filter"}
FINAL = {"status_400", "status_413", "status_422"}
SLOW = {"hang", "slow_trickle", "huge_body"}
PRICE = {"input_mtok": 1, "output_mtok": 2}


@pytest.fixture(scope="module")
def provider():
    models = {
        name: {"errors": {"rate": 1.0, "kinds": [name]}, "price": PRICE} for name in FAULT_KINDS
    }
    content = {"models": {**models, "good": {"price": PRICE}}}
    with SimulatorServer(SimulatorConfig.model_validate(content)) as server:
        yield server


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("kind", FAULT_KINDS)
def test_every_fault_ends_in_a_whole_answer_or_in_a_right_error(provider, kind, stream):
    async def scene():
        timeout_s = 0.3 if kind in SLOW else 10.0
        targets = {
            name: HttpForwarder(
                name,
                CompatibleTargetConfig(
                    kind="compatible", base_url=provider.base_url, timeout_s=timeout
                ),
                max_answer_bytes=2**20,
            )
            for name, timeout in ((kind, timeout_s), ("good", 10.0))
        }
        result = await adispatch(
            [kind, "good"], targets, CHAT, {**BODY, "stream": stream}, rules=Rules(idle_s=5)
        )
        passed = None
        if isinstance(result.answer, Stream):
            passed = b"".join([data async for data in result.answer.chunks()])
            await result.answer.aclose()
        assert all(target.in_flight == 0 for target in targets.values())
        for target in targets.values():
            await target.aclose()
        return result, passed

    result, passed = asyncio.run(scene())
    if kind in FINAL:
        assert result.refused.status == int(kind.removeprefix("status_"))
        return
    answer = result.answer
    if kind in HARMLESS:
        assert answer.model_id == kind
    elif not stream:
        assert answer.model_id == "good"
    if stream and answer.cut is not None:
        assert answer.model_id == kind, "a stream that began goes to nobody else"
        assert result.tried[-1].error == "cut"
        assert answer.ending == b""
    elif stream:
        assert answer.ending == b"data: [DONE]\n\n"
        assert passed.startswith(b"data: {")
        assert result.tried[-1].error is None
