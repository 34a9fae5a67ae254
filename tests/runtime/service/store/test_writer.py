"""The store as a whole, on both databases."""

import logging
import os
import signal
import subprocess
import sys
import threading
from decimal import Decimal

import pytest

from router_runtime.errors import ConfigError, RequestError
from router_runtime.service.store import open_store, tables
from router_runtime.service.store.engine import open_engine, upgrade
from router_runtime.service.store.spool import Journal
from router_runtime.service.store.writer import Store
from router_runtime.service_config import StoreConfig

NOON = 1_790_000_000.0
CONTENT = ({"role": "user", "content": "canary-5"},)


def wait_until(condition, seconds=20.0):
    pause = threading.Event()
    for _ in range(int(seconds / 0.02)):
        if condition():
            return
        pause.wait(0.02)
    raise AssertionError("it did not come to pass")


class Breakable:
    """A database that can be taken away: its tables go by another name meanwhile."""

    def __init__(self, url):
        self.engine = open_engine(url)

    def take_away(self):
        self._rename("decisions", "gone")

    def bring_back(self):
        self._rename("gone", "decisions")

    def _rename(self, old, new):
        with self.engine.begin() as connection:
            connection.exec_driver_sql(f"ALTER TABLE {old} RENAME TO {new}")


def test_what_is_recorded_is_in_the_tables_after_a_flush(opened, url, make_event, rows_of):
    store = opened(url)
    store.record(make_event("d1", failed=("large",)))
    assert store.flush()
    decision = rows_of(store.engine, tables.decisions)[0]
    assert (decision["decision_id"], decision["served"], decision["chosen"]) == (
        "d1", "small", "small",
    )  # fmt: skip
    assert decision["expected_cost"] == {"small": 0.01, "large": 0.05}
    assert decision["cost_usd"] == Decimal("0.01")
    assert [row["number"] for row in rows_of(store.engine, tables.attempts)] == [0, 1]
    assert store.status().queued == 0


def test_the_same_decision_is_kept_once(opened, url, make_event, rows_of):
    store = opened(url)
    for _ in range(3):
        store.record(make_event("d1", failed=("large",)))
        assert store.flush()
    assert len(rows_of(store.engine, tables.decisions)) == 1
    assert len(rows_of(store.engine, tables.attempts)) == 2


def test_content_is_kept_only_where_it_is_switched_on(opened, url, make_event, rows_of, tmp_path):
    for kept in (False, True):
        store = opened(url, content=kept)
        store.record(make_event(f"d{kept}", messages=CONTENT))
        assert store.flush()
    rows = rows_of(store.engine, tables.content)
    assert [(row["decision_id"], "canary-5" in row["messages"]) for row in rows] == [
        ("dTrue", True)
    ]


def test_content_is_deleted_after_its_retention_and_decisions_stay(
    opened, url, make_event, rows_of, clock
):
    store = opened(url, content=True, retention_days=1)
    store.record(make_event("old", messages=CONTENT, at=NOON))
    store.record(make_event("new", messages=CONTENT, at=NOON + 80_000))
    assert store.flush()
    clock.now += 90_000
    store._look_at = 0.0
    assert store.flush()
    wait_until(lambda: len(rows_of(store.engine, tables.content)) == 1)
    assert rows_of(store.engine, tables.content)[0]["decision_id"] == "new"
    assert len(rows_of(store.engine, tables.decisions)) == 2


def test_requests_go_on_without_the_database_and_all_arrives_when_it_is_back(
    opened, url, make_event, rows_of, caplog
):
    store = opened(url)
    database = Breakable(url)
    database.take_away()
    with caplog.at_level(logging.WARNING):
        for number in range(20):
            store.record(make_event(f"d{number}"))
        assert not store.flush()
        status = store.status()
        assert (status.queued, status.lost) == (20, 0)
        assert status.last_error in ("OperationalError", "UndefinedTable")
        database.bring_back()
        wait_until(lambda: store.status().queued == 0)
    assert store.status().last_error is None
    assert len(rows_of(store.engine, tables.decisions)) == 20
    told = [record for record in caplog.records if record.name.endswith("store.writer")]
    assert len(told) == 2  # that it is away, and that it is back


def test_what_finds_no_room_is_counted_and_its_cost_still_counts(opened, url, make_event, rows_of):
    store = opened(url, max_bytes=2000)
    database = Breakable(url)
    database.take_away()
    for number in range(5):
        store.record(make_event(f"d{number}", cost="0.01"))
    kept = 5 - store.status().lost
    assert 0 < kept < 5
    assert store.status().losses == {"spool_full": 5 - kept}
    database.bring_back()
    wait_until(lambda: store.status().queued == 0 and rows_of(store.engine, tables.losses))
    assert len(rows_of(store.engine, tables.decisions)) == kept
    assert sum(row["records"] for row in rows_of(store.engine, tables.losses)) == 5 - kept
    assert store.spent("k1", NOON - 1) == Decimal("0.05")


def test_where_messages_find_no_room_the_decision_still_does(opened, url, make_event, rows_of):
    store = opened(url, content=True, max_bytes=3000)
    store.record(make_event("d1", messages=({"role": "user", "content": "x" * 4000},)))
    assert store.flush()
    assert len(rows_of(store.engine, tables.decisions)) == 1
    assert rows_of(store.engine, tables.content) == []
    assert (store.status().content_dropped, store.status().lost) == (1, 0)


def test_a_row_that_the_database_refuses_keeps_no_other_out(opened, url, make_event, rows_of):
    store = opened(url)
    database = Breakable(url)
    database.take_away()  # so that all three are one batch
    for name, status in (("d1", 200), ("bad", None), ("d3", 200)):
        store.record(make_event(name, status=status))
    database.bring_back()
    wait_until(lambda: store.status().queued == 0 and rows_of(store.engine, tables.losses))
    assert {row["decision_id"] for row in rows_of(store.engine, tables.decisions)} == {"d1", "d3"}
    assert store.status().losses == {"rejected": 1}
    assert store.spent("k1", 0) == Decimal("0.03")


@pytest.mark.parametrize("broken", [{"requested": object()}, {"cost": "NaN"}, {"cost": "1e30"}])
def test_a_record_that_cannot_be_written_down_is_lost_and_counted_and_raises_nothing(
    opened, url, make_event, broken
):
    store = opened(url)
    store.record(make_event("d1", **broken))
    assert store.flush()
    assert store.status().losses == {"unreadable": 1}
    assert store.spent("k1", 0) == 0


def test_connections_that_the_server_ended_are_made_anew(opened, postgres_url, make_event, rows_of):
    store = opened(postgres_url)
    for number in range(5):
        store.record(make_event(f"d{number}"))
        with open_engine(postgres_url).connect() as other:
            other.exec_driver_sql(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
    wait_until(lambda: store.status().queued == 0)
    assert len(rows_of(store.engine, tables.decisions)) == 5
    assert store.status().lost == 0


def test_what_was_spent_counts_before_and_after_it_is_written(opened, url, make_event):
    store = opened(url, linger_s=30.0)
    store.record(make_event("d1", cost="0.000000000001"))
    store.record(make_event("d2", cost="2.5", at=NOON + 5000))
    store.record(make_event("other", key_id="k2", cost="9"))
    before = store.spent("k1", NOON - 100)
    assert store.flush()
    assert before == store.spent("k1", NOON - 100) == Decimal("2.500000000001")
    assert store.spent("k1", NOON + 5000) == Decimal("2.5")
    assert store.spent("nobody", 0) == 0


def test_sums_beyond_what_sqlite_can_add_up_are_exact(opened, url, make_event):
    store = opened(url)
    for number in range(3):
        store.record(make_event(f"d{number}", cost="9000000.000000000001"))
    assert store.flush()
    assert store.spent("k1", 0) == Decimal("27000000.000000000003")


def test_what_was_spent_is_never_told_too_low_while_batches_are_written(opened, url, make_event):
    store = opened(url)
    told, known = [], []
    for number in range(60):
        store.record(make_event(f"d{number}", cost="1"))
        known.append(number + 1)
        told.append(store.spent("k1", 0))
    assert all(spent >= least for spent, least in zip(told, known, strict=True))
    assert store.flush()
    assert store.spent("k1", 0) == 60


def test_the_owner_of_a_decision_is_known_at_once(opened, url, make_event):
    store = opened(url, linger_s=30.0)
    store.record(make_event("d1", key_id="k7"))
    assert store.decision_owner("d1") == "k7"
    assert store.decision_owner("d2") is None


def test_without_the_database_questions_are_answered_with_503(opened, tmp_path, make_event):
    store = opened(f"sqlite:///{tmp_path / 'a.db'}")
    Breakable(f"sqlite:///{tmp_path / 'a.db'}").take_away()
    for question in (lambda: store.spent("k1", 0), lambda: store.decision_owner("d1")):
        with pytest.raises(RequestError) as caught:
            question()
        assert (caught.value.status, caught.value.code) == (503, "store_unavailable")
        assert "decisions" not in str(caught.value)


def test_closing_writes_what_there_is(opened, url, make_event, rows_of, tmp_path):
    store = opened(url, linger_s=30.0)
    for number in range(300):
        store.record(make_event(f"d{number}"))
    status = store.close(20.0)
    assert (status.queued, status.lost) == (0, 0)
    assert len(rows_of(open_engine(url), tables.decisions)) == 300
    assert list((tmp_path / "spool").iterdir()) == []


def test_what_closing_cannot_write_is_written_by_the_next(opened, url, make_event, rows_of):
    store = opened(url)
    database = Breakable(url)
    database.take_away()
    for number in range(10):
        store.record(make_event(f"d{number}"))
    assert store.close(0.2).queued == 10
    database.bring_back()
    after = opened(url)
    assert len(rows_of(after.engine, tables.decisions)) == 10
    assert after.spent("k1", 0) == Decimal("0.10")


def test_a_store_whose_database_is_away_at_the_start_works_when_it_is_there(
    tmp_path, make_event, rows_of
):
    journal = Journal(tmp_path / "spool", max_bytes=2**20)
    store = Store(open_engine("postgresql+psycopg://u@127.0.0.1:1/d"), journal, linger_s=0.0)
    store.start()
    store.record(make_event("d1"))
    assert (store.status().last_error, store.status().queued) == ("OperationalError", 1)
    store.engine = open_engine(f"sqlite:///{tmp_path / 'a.db'}")  # now it answers
    wait_until(lambda: store.status().queued == 0)
    assert [row["decision_id"] for row in rows_of(store.engine, tables.decisions)] == ["d1"]
    store.close(5.0)


def test_a_torn_line_is_counted_and_the_rest_is_replayed(
    opened, url, make_event, rows_of, tmp_path
):
    from router_runtime.service.store.events import encode

    dead = Journal(tmp_path / "spool", max_bytes=2**20)
    dead.append(encode(make_event("d1"), content=False))
    dead.append(encode(make_event("d2"), content=False)[:-20])
    os.close(dead._lock)
    dead._lock = None
    store = opened(url)
    assert [row["decision_id"] for row in rows_of(store.engine, tables.decisions)] == ["d1"]
    assert store.status().losses == {"torn": 1}


def test_a_journal_of_another_version_is_kept_for_it(opened, url, tmp_path, caplog):
    from zlib import crc32

    dead = Journal(tmp_path / "spool", max_bytes=2**20)
    dead.append(b'%08x {"v":7}\n' % crc32(b'{"v":7}'))
    os.close(dead._lock)
    dead._lock = None
    with caplog.at_level(logging.WARNING):
        store = opened(url)
    assert store.status().lost == 0
    assert len(list((tmp_path / "spool").glob("*.unread"))) == 1
    assert "another version" in caplog.text


_VICTIM = """
import sys, threading
from pathlib import Path
from router_runtime.service.store import open_store
from router_runtime.service.values import Attempt, RouteEvent
from router_runtime.service_config import StoreConfig
from decimal import Decimal
store = open_store(StoreConfig(url=sys.argv[1]), folder=Path(sys.argv[2]))
number = 0
while True:
    attempt = Attempt("small", None, 0.1, cost_usd=Decimal("0.001"))
    store.record(RouteEvent(f"d{number}", 1790000000.0, "k1", "chat", "auto", None, (attempt,),
                            200, False, None, 0.1))
    print(number, flush=True)  # what a client was told
    number += 1
"""


def test_a_killed_process_loses_nothing_that_was_acknowledged(url, tmp_path, rows_of):
    upgrade(open_engine(url))
    victim = subprocess.Popen(  # noqa: S603 - this interpreter, and the text above
        [sys.executable, "-c", _VICTIM, url, str(tmp_path)], stdout=subprocess.PIPE
    )
    lines = iter(victim.stdout.readline, b"")
    told = [int(next(lines)) for _ in range(2000)]
    victim.send_signal(signal.SIGKILL)
    told += [int(line) for line in lines if line.endswith(b"\n")]
    victim.wait(20)
    config = StoreConfig(url=url, spool=tmp_path / "runs" / "spool")
    store = open_store(config, folder=tmp_path)
    found = {row["decision_id"] for row in rows_of(store.engine, tables.decisions)}
    assert {f"d{number}" for number in told} <= found
    assert store.spent("k1", 0) == len(found) * Decimal("0.001")
    store.close(5.0)
    assert not list((tmp_path / "runs" / "spool").glob("*.log"))


def test_two_processes_share_a_spool_folder_and_a_database(opened, url, make_event, rows_of):
    stores = [opened(url) for _ in range(2)]
    for number in range(50):
        for which, store in enumerate(stores):
            store.record(make_event(f"d{which}-{number}", cost="0.01"))
    assert all(store.flush() for store in stores)
    assert len(rows_of(stores[0].engine, tables.decisions)) == 100
    assert [store.spent("k1", 0) for store in stores] == [Decimal("1.00")] * 2


def test_a_newer_database_stops_the_start_and_gives_the_journal_back(url, tmp_path):
    engine = open_engine(url)
    upgrade(engine)
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(ConfigError, match="9999"):
        open_store(StoreConfig(url=url, spool=tmp_path / "spool"), folder=tmp_path)
    assert list((tmp_path / "spool").iterdir()) == []
