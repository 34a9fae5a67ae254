"""Asking that is killed or interrupted: real processes, a real server, the real client."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from router_training.labelling.answer_store import AnswerStore

KILLS = 30
CONCURRENCY = 8
PROGRAM = Path(__file__).with_name("asking_process.py")


class ChatServer:
    """Answers ``question 7`` with ``answer 7`` after a while, and counts what it is asked."""

    def __init__(self, seconds):
        self.seconds = seconds
        self.asked = Counter()
        self.n_asked = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)

    def __enter__(self):
        self._thread.start()
        starting = asyncio.start_server(self._serve, "127.0.0.1", 0)
        self._server = asyncio.run_coroutine_threadsafe(starting, self._loop).result()
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/v1"
        return self

    def __exit__(self, *_):
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _end(self):
        self._server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader, writer):
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                length = int(head.partition("content-length:")[2].split("\r\n")[0])
                body = json.loads(await reader.readexactly(length))
                question = body["messages"][-1]["content"]
                self.asked[question] += 1
                self.n_asked += 1
                await asyncio.sleep(self.seconds)
                writer.write(answer(question.replace("question", "answer")))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


def answer(text):
    message = {"role": "assistant", "content": text}
    body = json.dumps(
        {
            "id": "c",
            "object": "chat.completion",
            "model": "m",
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
        }
    ).encode()
    head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
    return head.encode() + b"\r\n\r\n" + body


@pytest.fixture
def runs(tmp_path):
    """A function that starts a prepared program, which forks a run for every line."""
    started = []

    def start(url, *, n_samples):
        arguments = [url, tmp_path / "work", tmp_path / "acknowledged", n_samples, CONCURRENCY]
        started.append(
            subprocess.Popen(  # noqa: S603 - this interpreter, our program
                [sys.executable, str(PROGRAM), *map(str, arguments)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                bufsize=1,
            )
        )
        return started[-1]

    yield start
    for process in started:
        process.stdin.close()
        process.wait()
        process.stdout.close()


def begin(runs):
    runs.stdin.write("\n")
    return int(runs.stdout.readline())


def end(runs):
    return int(runs.stdout.readline())


def kept(folder):
    """Return the kept text per question's number, read past the program's own code."""
    path = folder / "work" / "answers.sqlite"
    if not path.exists():
        return []
    with sqlite3.connect(path) as file:
        rows = file.execute("SELECT payload FROM calls WHERE status = 'answered'").fetchall()
    return [json.loads(payload)["text"] for (payload,) in rows]


def acknowledged(folder):
    path = folder / "acknowledged"
    lines = path.read_text().splitlines() if path.exists() else []
    return dict(line.split(" ", 1) for line in lines)


def check_after_kill(folder):
    path = folder / "work" / "answers.sqlite"
    if path.exists():
        with sqlite3.connect(path) as file:
            assert file.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    with AnswerStore.read(folder / "work") as store:
        known = acknowledged(folder)
        found = store.find(list(known))
    assert {key: outcome.text for key, outcome in found.items()} == known


def wait_for_a_moment(moments, server):
    """Wait into the start of a run, or until it has sent some requests and then a little more."""
    if moments.random() < 0.25:
        time.sleep(moments.uniform(0.0, 0.2))
        return
    sent = server.n_asked + moments.randint(1, 30)
    until = time.monotonic() + 10
    while server.n_asked < sent and time.monotonic() < until:
        time.sleep(0.001)
    time.sleep(moments.uniform(0.0, 0.02))


def test_kill_at_any_moment_loses_no_answer_and_asks_none_again(tmp_path, runs):
    moments = random.Random(5)
    n_samples = 700
    killed_while_asking = 0
    with ChatServer(seconds=0.01) as server:
        program = runs(server.url, n_samples=n_samples)
        for _ in range(KILLS):
            before = server.asked.copy()
            done = {text.replace("answer", "question") for text in kept(tmp_path)}
            child = begin(program)
            wait_for_a_moment(moments, server)
            os.kill(child, signal.SIGKILL)
            assert end(program) == -signal.SIGKILL
            asked = server.asked.copy() - before
            killed_while_asking += bool(asked)
            assert not done & set(asked)  # what is kept is never asked again
            check_after_kill(tmp_path)
        assert killed_while_asking >= KILLS // 2
        begin(program)
        assert end(program) == 0
    answers = kept(tmp_path)
    assert sorted(answers) == sorted(f"answer {n}" for n in range(n_samples))
    assert server.n_asked <= n_samples + killed_while_asking * CONCURRENCY


def test_ctrl_c_lets_calls_in_flight_end_and_keeps_them(tmp_path, runs):
    with ChatServer(seconds=0.3) as server:
        program = runs(server.url, n_samples=100)
        child = begin(program)
        while server.n_asked < CONCURRENCY:
            time.sleep(0.01)
        os.kill(child, signal.SIGINT)
        assert end(program) == 130
    assert server.n_asked == CONCURRENCY
    assert len(kept(tmp_path)) == CONCURRENCY


def test_a_second_ctrl_c_abandons_calls_in_flight(tmp_path, runs):
    with ChatServer(seconds=600) as server:
        program = runs(server.url, n_samples=100)
        child = begin(program)
        while server.n_asked < CONCURRENCY:
            time.sleep(0.01)
        os.kill(child, signal.SIGINT)
        time.sleep(0.2)
        began = time.monotonic()
        os.kill(child, signal.SIGINT)
        assert end(program) == 130
        assert time.monotonic() - began < 10
    assert kept(tmp_path) == []
    AnswerStore.open(tmp_path / "work", holder="next").close()
