"""Alive, ready and started are three things."""

from __future__ import annotations

import asyncio
import json

from router_runtime.service.health import Health


def ask(question):
    sent = []

    async def send(message):
        sent.append(message)

    asyncio.run(question({}, None, send))
    return sent[0]["status"], json.loads(sent[1]["body"])["status"]


def test_before_the_start_it_lives_and_is_not_ready():
    health = Health()
    assert ask(health.alive) == (200, "ok")
    assert ask(health.ready) == (503, "starting")
    assert ask(health.startup) == (503, "starting")


def test_after_the_start_it_is_ready_until_it_leaves():
    health = Health(started=True)
    assert ask(health.ready) == (200, "ok")
    assert ask(health.startup) == (200, "ok")
    health.draining = True
    assert ask(health.ready) == (503, "draining")
    assert ask(health.startup) == (200, "ok")
    assert ask(health.alive) == (200, "ok")


def test_a_dead_database_degrades_and_takes_nothing_away():
    health = Health({"store": lambda: "degraded"}, started=True)
    assert ask(health.ready) == (200, "degraded")
    assert ask(health.alive) == (200, "ok")


def test_a_dead_part_of_the_process_asks_for_a_restart():
    health = Health({"store": lambda: "dead"}, started=True)
    assert ask(health.alive) == (503, "dead")
