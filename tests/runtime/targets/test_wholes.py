from __future__ import annotations

import asyncio

import pytest

from router_runtime.target_config import CompatibleTargetConfig
from router_runtime.targets.dispatch import adispatch
from router_runtime.targets.forward_http import HttpForwarder
from router_runtime.targets.wholes import Whole

CHOICE = b'{"index":0,"message":{"role":"assistant","content":"abcd"},"finish_reason":"stop"%s}'


def answered(kit, content, *, media_type="application/json"):
    async def scene():
        async with kit.serving(kit.http(200, content, media_type=media_type)) as upstream:
            target = HttpForwarder(
                "m", CompatibleTargetConfig(kind="compatible", base_url=upstream.url)
            )
            result = await adispatch(["m"], {"m": target}, "chat/completions", {"messages": []})
            await target.aclose()
            return result

    return asyncio.run(scene())


@pytest.mark.parametrize(
    "more", [b"", b',"logprobs":NaN', b',"x":"\\ud83d"', b',"seed":%d' % 2**70]
)
def test_what_strict_readers_refuse_is_still_passed_on_as_it_came(kit, more):
    content = b'{"choices":[' + CHOICE % more + b"]}"
    result = answered(kit, content)
    assert isinstance(result.answer, Whole)
    assert result.answer.content == content


def test_an_answer_without_usage_is_measured_for_an_estimate(kit):
    assert answered(kit, b'{"choices":[' + CHOICE % b"" + b"]}").tried[0].text_bytes == 4
    told = b'{"choices":[' + CHOICE % b"" + b'],"usage":{"prompt_tokens":1}}'
    assert answered(kit, told).tried[0].text_bytes == 0


def test_json_under_another_name_is_no_answer(kit):
    content = b'{"choices":[' + CHOICE % b"" + b"]}"
    assert answered(kit, content, media_type="image/png").tried[0].error == "protocol"
    assert answered(kit, content, media_type="application/problem+json").answer is not None
