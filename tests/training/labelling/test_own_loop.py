from __future__ import annotations

import asyncio
import signal
import threading

import pytest

from router_training.labelling.own_loop import OwnLoop


async def thread_of(told: str) -> tuple[str, int]:
    await asyncio.sleep(0)
    return told, threading.get_ident()


def both() -> list[tuple[str, int]]:
    with OwnLoop() as loop:
        return [loop.run(thread_of(told)) for told in ("one", "two")]


def test_without_a_loop_in_this_thread_work_runs_here():
    here = threading.get_ident()
    assert both() == [("one", here), ("two", here)]


def test_beside_a_running_loop_work_runs_elsewhere_and_is_waited_for():
    async def within() -> list[tuple[str, int]]:
        return both()

    first, second = asyncio.run(within())
    assert (first[0], second[0]) == ("one", "two")
    assert first[1] == second[1] != threading.get_ident()


def test_an_error_arrives_where_the_work_was_given():
    async def fails() -> None:
        raise ValueError("bad")

    async def within() -> None:
        with OwnLoop() as loop:
            loop.run(fails())

    with pytest.raises(ValueError, match="bad"):
        asyncio.run(within())


def test_ctrl_c_cancels_the_work_and_waits_for_its_end():
    ended = []

    async def long() -> None:
        main = threading.main_thread().ident
        threading.Timer(0.05, signal.pthread_kill, (main, signal.SIGINT)).start()
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(True)

    async def within() -> None:
        with OwnLoop() as loop:
            loop.run(long())

    loop = asyncio.new_event_loop()  # which, unlike asyncio.run, leaves Ctrl-C as it is
    try:
        with pytest.raises(KeyboardInterrupt):
            loop.run_until_complete(within())
    finally:
        loop.close()
    assert ended == [True]
