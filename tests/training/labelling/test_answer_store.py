from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from dataclasses import replace
from decimal import Decimal

import pytest

from router_runtime.errors import ConfigError, RouterError
from router_runtime.pricing import Usage
from router_training.labelling.answer_store import AnswerStore
from router_training.labelling.calls import Outcome, Status

ANSWER = Outcome(
    "k1",
    "small",
    Status.ANSWERED,
    text='Blue.\n"\x00\ud800 青',
    finish_reason="stop",
    usage=Usage(12, 3, cached_input_tokens=2, images=1),
    cost_usd=Decimal("0.00000123456789012345678901234567890123456789"),
    seconds=0.25,
    tries=2,
)


def append(store, *outcomes, estimated_usd=None):
    async def main():
        await asyncio.gather(*(store.append(o, estimated_usd=estimated_usd) for o in outcomes))

    asyncio.run(main())


def outcome(key, status, text=None):
    return Outcome(key, "m", status, text=text, reason=None if text else "because")


def test_what_is_kept_comes_back_to_the_last_character_and_digit(tmp_path):
    refused = Outcome("k2", "big", Status.REFUSED, reason="HTTP 400", tries=1)
    with AnswerStore.open(tmp_path, holder="test") as store:
        append(store, ANSWER, refused)
        assert store.find(["k1", "k2", "unknown"]) == {"k1": ANSWER, "k2": refused}
    with AnswerStore.read(tmp_path) as store:
        assert store.find(["k1", "k2"]) == {"k1": ANSWER, "k2": refused}


def test_an_answer_beats_a_refusal_beats_a_failure_and_the_newest_of_equals_wins(tmp_path):
    with AnswerStore.open(tmp_path, holder="test") as store:
        for key, status, text in [
            ("a", Status.FAILED, None),
            ("a", Status.ANSWERED, "first"),
            ("a", Status.ANSWERED, "second"),
            ("a", Status.REFUSED, None),
            ("b", Status.REFUSED, None),
            ("b", Status.FAILED, None),
            ("c", Status.PENDING, None),
        ]:
            append(store, outcome(key, status, text))
        found = store.find(["a", "b", "c"])
    assert found["a"].text == "second"
    assert found["b"].status is Status.REFUSED
    assert "c" not in found


def test_a_failure_is_settled_only_in_the_run_that_met_it(tmp_path):
    failed, refused = outcome("f", Status.FAILED), outcome("r", Status.REFUSED)
    with AnswerStore.open(tmp_path, holder="first") as store:
        append(store, failed, refused)
        assert store.settled("f") == failed
        assert store.settled("nothing") is None
    with AnswerStore.open(tmp_path, holder="second") as store:
        assert store.settled("f") is None
        assert store.settled("r") == refused


def test_totals_are_exact_over_runs_and_keep_estimates_apart(tmp_path):
    dime = replace(ANSWER, cost_usd=Decimal("0.1"))
    tiny = replace(ANSWER, cost_usd=Decimal("1e-40"))
    with AnswerStore.open(tmp_path, holder="first") as store:
        assert store.spent() == store.estimated() == 0
        append(store, *[dime] * 10, tiny)
    with AnswerStore.open(tmp_path, holder="second") as store:
        append(store, outcome("p", Status.PENDING), estimated_usd=Decimal("0.25"))
        append(store, dime)
    with AnswerStore.read(tmp_path) as store:
        assert str(store.spent()) == "1.1000000000000000000000000000000000000001"
        assert store.estimated() == Decimal("0.25")


def test_means_of_tokens_are_known_per_model(tmp_path):
    with AnswerStore.open(tmp_path, holder="test") as store:
        append(store, ANSWER, replace(ANSWER, key="k2", usage=Usage(20, 5)))
        append(store, outcome("n", Status.ANSWERED, "no usage"))
        observed = store.observed()
    assert {
        name: (o.answered, o.input_tokens, o.output_tokens) for name, o in observed.items()
    } == {"small": (2, 16.0, 4.0)}


def test_many_appends_at_once_share_commits_and_all_last(tmp_path):
    outcomes = [replace(ANSWER, key=f"k{i}") for i in range(2000)]
    with AnswerStore.open(tmp_path, holder="test") as store:
        append(store, *outcomes)
        wal = (tmp_path / "answers.sqlite-wal").stat().st_size
        found = store.find([o.key for o in outcomes])
    assert len(found) == 2000
    assert wal < 2000 * 4096  # a commit each would write three pages each


def test_totals_of_a_commit_are_those_of_its_rows_in_order(tmp_path):
    costs = [Decimal(i) / 1000 for i in range(250)]
    with AnswerStore.open(tmp_path, holder="test") as store:
        append(store, *(replace(ANSWER, key=f"k{i}", cost_usd=c) for i, c in enumerate(costs)))
        rows = store._fetch("SELECT key, cost_usd, total_usd FROM calls ORDER BY id", ())
    assert [key for key, _, _ in rows] == [f"k{i}" for i in range(250)]
    assert [Decimal(total) for _, _, total in rows] == [sum(costs[: i + 1]) for i in range(250)]


def test_an_answer_is_in_the_file_when_append_returns(tmp_path):
    async def main(store):
        for i in range(5):
            await store.append(replace(ANSWER, key=f"k{i}"))
            with AnswerStore.read(tmp_path) as other:
                assert f"k{i}" in other.find([f"k{i}"])

    with AnswerStore.open(tmp_path, holder="test") as store:
        asyncio.run(main(store))


def test_the_second_opener_is_told_who_is_writing(tmp_path):
    with AnswerStore.open(tmp_path, holder="router-train collect a.yml"):
        with pytest.raises(ConfigError, match=r"'router-train collect a\.yml' \(process") as caught:
            AnswerStore.open(tmp_path, holder="router-train judge b.yml")
        assert str(os.getpid()) in str(caught.value)
    AnswerStore.open(tmp_path, holder="later").close()


def test_a_killed_holder_leaves_no_lock_behind(tmp_path):
    program = (
        "import sys, time\nfrom router_training.labelling.answer_store import AnswerStore\n"
        "store = AnswerStore.open(sys.argv[1], holder='the other')\nprint('open', flush=True)\n"
        "time.sleep(60)"
    )
    with subprocess.Popen(  # noqa: S603 - this interpreter, this program
        [sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE
    ) as other:
        assert other.stdout.readline() == b"open\n"
        with pytest.raises(ConfigError, match=f"'the other' .process {other.pid} on "):
            AnswerStore.open(tmp_path, holder="me")
        with AnswerStore.read(tmp_path) as reading:
            assert reading.spent() == 0
        other.send_signal(signal.SIGKILL)
        other.wait()
    AnswerStore.open(tmp_path, holder="me").close()


def test_nothing_kept_yet_reads_as_empty_and_makes_no_file(tmp_path):
    with AnswerStore.read(tmp_path / "work") as store:
        assert store.find(["k"]) == {}
        assert store.observed() == {}
        with pytest.raises(RouterError, match="open to read only"):
            append(store, ANSWER)
    assert not (tmp_path / "work").exists()


def test_another_format_is_refused_with_what_to_do(tmp_path):
    AnswerStore.open(tmp_path, holder="test").close()
    with sqlite3.connect(tmp_path / "answers.sqlite") as file:
        file.execute("PRAGMA user_version = 99")
    for opened in (AnswerStore.read, lambda folder: AnswerStore.open(folder, holder="x")):
        with pytest.raises(ConfigError, match=r"format 99; this version reads 1\. Use"):
            opened(tmp_path)


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "answers.sqlite").write_bytes(b"no database at all" * 500)
    with pytest.raises(RouterError, match=r"cannot be used: .*not a database"):
        AnswerStore.open(tmp_path, holder="test")
    with pytest.raises(RouterError, match="not a database"):
        AnswerStore.read(tmp_path)


def test_a_full_disk_fails_the_append_and_every_later_one(tmp_path):
    with AnswerStore.open(tmp_path, holder="test") as store:
        append(store, ANSWER)
        store._writer._connection.execute("PRAGMA max_page_count = 6")
        large = replace(ANSWER, key="large", text="x" * 500_000)
        with pytest.raises(RouterError, match=r"cannot be kept in .*full"):
            append(store, large)
        with pytest.raises(RouterError, match="cannot be kept"):
            append(store, replace(ANSWER, key="k2"))
        assert store.spent() == ANSWER.cost_usd
        assert set(store.find(["k1", "large", "k2"])) == {"k1"}


def test_a_caller_that_gave_up_does_not_disturb_the_others(tmp_path):
    async def main(store):
        hasty = asyncio.create_task(store.append(ANSWER))
        await asyncio.sleep(0)
        hasty.cancel()
        await store.append(replace(ANSWER, key="k2"))

    with AnswerStore.open(tmp_path, holder="test") as store:
        asyncio.run(main(store))
        assert "k2" in store.find(["k2"])


def test_the_lock_note_is_read_by_people(tmp_path):
    with AnswerStore.open(tmp_path, holder="a command"):
        note = json.loads((tmp_path / "answers.lock").read_text())
    assert note["command"] == "a command"
    assert note["since"][:4] == str(time.gmtime().tm_year)
    assert (tmp_path / "answers.lock").read_text() == ""
