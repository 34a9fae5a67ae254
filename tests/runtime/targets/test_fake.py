from __future__ import annotations

import asyncio

import pytest

from router_runtime.errors import TargetTimeoutError
from router_runtime.pricing import Usage
from router_runtime.targets.base import ChatCall, Completion, Target
from router_runtime.targets.fake import FakeTarget

CALL = ChatCall(({"role": "user", "content": "hello"},))


def test_a_text_a_completion_or_an_error_is_answered():
    completion = Completion("m", "whole", Usage(1, 2), "length", 0.5)
    error = TargetTimeoutError("too slow", retryable=True)
    answers = iter(["text", completion, error])
    target: Target = FakeTarget("m", lambda call: next(answers), model="served")

    async def scene():
        first, second = await target.acomplete(CALL), await target.acomplete(CALL)
        with pytest.raises(TargetTimeoutError, match="too slow"):
            await target.acomplete(CALL)
        await target.aclose()
        return first, second

    first, second = asyncio.run(scene())
    assert (first.model_id, first.text, first.usage) == ("m", "text", None)
    assert (first.finish_reason, second) == ("stop", completion)
    assert (target.model, target.calls, target.closed) == ("served", 3, True)


def test_the_call_is_seen_and_calls_at_a_time_are_counted():
    target = FakeTarget("m", lambda call: call.messages[0]["content"], seconds=0.01)

    async def scene():
        return await asyncio.gather(*[target.acomplete(CALL) for _ in range(5)])

    answers = asyncio.run(scene())
    assert {answer.text for answer in answers} == {"hello"}
    assert answers[0].seconds == 0.01
    assert (target.calls, target.most_in_flight, target.in_flight) == (5, 5, 0)
