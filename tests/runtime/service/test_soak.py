"""Many requests at once over a provider that often fails: whole answers or errors, all counted."""

from __future__ import annotations

import asyncio
import json
import time
from decimal import Decimal

import openai
from sqlalchemy import func, select

from router_runtime.service.store import tables

KINDS = [
    "status_500",
    "status_429",
    "status_503",
    "closed",
    "reset_midway",
    "chunked_cut_off",
    "truncated_json",
    "empty_content",
    "empty_choices",
    "html_page",
    "error_body_200",
    "duplicate_ids",
]
MODELS = ("sim-large-vl", "sim-small-vl", "sim-large-text", "sim-small-text")


async def ask(client, number):
    stream = number % 2 == 0
    model = "auto" if number % 3 else MODELS[number % 4]
    messages = [{"role": "user", "content": f"What is {number} + {number * 7}?"}]
    try:
        answer = await client.chat.completions.create(model=model, messages=messages, stream=stream)
        if not stream:
            return "whole" if answer.choices[0].message.content else "empty"
        chunks = [chunk async for chunk in answer]
        return "whole" if chunks[-1].choices[0].finish_reason else "unfinished"
    except openai.APIStatusError as error:
        return f"refused {error.status_code}"
    except openai.APIError:
        return "cut"


def test_every_answer_is_whole_or_a_said_error_and_spend_is_what_was_billed(open_site):
    site = open_site(
        models={name: {"errors": {"rate": 0.15, "kinds": KINDS}} for name in MODELS},
        service={"breaker": {"failures": 1000}},
    )

    async def many():
        async with site.async_client() as client:
            gate = asyncio.Semaphore(16)

            async def one(number):
                async with gate:
                    return await ask(client, number)

            return await asyncio.gather(*(one(number) for number in range(240)))

    ends = asyncio.run(many())
    assert set(ends) <= {"whole", "cut", "refused 502", "refused 429"}
    assert ends.count("whole") > 180
    assert site.service.store.flush()
    with site.service.store.engine.connect() as connection:
        stored = connection.execute(select(func.count()).select_from(tables.decisions)).scalar()
        rows = connection.execute(
            select(tables.attempts.c.cost_usd).where(~tables.attempts.c.estimated)
        )
        told = sum((cost for (cost,) in rows if cost is not None), Decimal(0))
        cut = connection.execute(
            select(func.count()).where(tables.decisions.c.error == "cut")
        ).scalar()
    assert stored == len(ends)
    assert cut == ends.count("cut")
    assert told == site.ledger_usd(), json.dumps(site.ledger())
    deadline = time.monotonic() + 10
    while site.service.gateway.in_flight:  # connections to the provider end after the answers
        assert time.monotonic() < deadline
        time.sleep(0.02)
