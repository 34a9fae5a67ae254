"""The journal: what was appended is read, in order, whatever happens to processes and disks."""

import os
from contextlib import closing

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from router_runtime.errors import ConfigError
from router_runtime.service.store.spool import Journal


def journal(folder, *, max_bytes=2**20):
    return Journal(folder, max_bytes=max_bytes)


def everything(source):
    found = []
    while lines := source.read():
        found += lines
    return found


def left(source):
    found = []
    with closing(source.leftovers()) as leftovers:
        for leftover in leftovers:
            found += everything(leftover)
            leftover.delete()
    return found


def die(dead):
    """Let go of a journal's lock as the end of its process does."""
    os.close(dead._lock)
    dead._lock = None


def names(folder):
    return sorted(path.suffix for path in folder.iterdir())


def test_lines_are_read_in_the_order_in_which_they_were_appended(tmp_path):
    spool = journal(tmp_path, max_bytes=2**13)  # segments of a kibibyte
    lines = [b"%d %b\n" % (at, b"x" * 100) for at in range(50)]
    assert all(spool.append(line) for line in lines)
    assert names(tmp_path).count(".log") > 1
    assert everything(spool) == lines


def test_a_line_is_on_the_disk_when_append_returns(tmp_path):
    spool = journal(tmp_path)
    spool.append(b"one\n")
    assert [path.read_bytes() for path in tmp_path.glob("*.log")] == [b"one\n"]


def test_lines_longer_than_one_read_are_read_whole(tmp_path):
    spool = journal(tmp_path, max_bytes=2**24)
    lines = [b"a" * 2**20 + b"\n", b"b\n", b"c" * 2**19 + b"\n"]
    for line in lines:
        spool.append(line)
    assert everything(spool) == lines


def test_what_was_read_and_not_done_is_read_again(tmp_path):
    spool = journal(tmp_path)
    spool.append(b"one\n")
    assert spool.read() == [b"one\n"]
    spool.done()
    spool.append(b"two\n")
    assert spool.read() == [b"two\n"]
    spool.rewind()
    assert spool.read() == [b"two\n"]


def test_segments_that_are_done_are_deleted(tmp_path):
    spool = journal(tmp_path, max_bytes=2**13)
    for _ in range(40):
        spool.append(b"x" * 99 + b"\n")
    assert len(everything(spool)) == 40
    spool.done()
    assert spool.size == sum(path.stat().st_size for path in tmp_path.glob("*.log")) < 1100
    spool.close()
    assert names(tmp_path) == []


def test_beyond_its_bound_nothing_is_appended_until_there_is_room(tmp_path):
    spool = journal(tmp_path, max_bytes=1000)
    line = b"x" * 99 + b"\n"
    assert [spool.append(line) for _ in range(11)] == [True] * 10 + [False]
    everything(spool)
    spool.done()
    assert spool.append(line)


def test_the_segments_of_other_processes_count_towards_the_bound(tmp_path):
    other = journal(tmp_path)
    other.append(b"x" * 899 + b"\n")
    spool = journal(tmp_path, max_bytes=1000)
    assert not spool.append(b"x" * 150 + b"\n")
    assert spool.append(b"x" * 50 + b"\n")


def test_what_a_dead_process_left_is_found_once_and_what_a_living_one_has_is_not(tmp_path):
    living, dead, finder = (journal(tmp_path) for _ in range(3))
    living.append(b"mine\n")
    dead.append(b"one\n")
    dead.append(b"two\n")
    assert left(finder) == []
    die(dead)
    assert left(finder) == [b"one\n", b"two\n"]
    assert left(finder) == []
    assert everything(living) == [b"mine\n"]


def test_what_is_being_replayed_is_not_replayed_by_another(tmp_path):
    dead, first, second = (journal(tmp_path) for _ in range(3))
    dead.append(b"one\n")
    die(dead)
    with closing(first.leftovers()) as leftovers:
        assert next(leftovers).read() == [b"one\n"]
        assert left(second) == []
    assert left(second) == [b"one\n"]  # the first has not deleted it


def test_the_cut_line_of_a_killed_process_is_read_as_it_is(tmp_path):
    dead, finder = journal(tmp_path), journal(tmp_path)
    dead.append(b"one\ntw")
    die(dead)
    assert left(finder) == [b"one\n", b"tw"]


def test_a_closed_journal_leaves_what_was_not_done_to_others(tmp_path):
    spool, finder = journal(tmp_path), journal(tmp_path)
    spool.append(b"one\n")
    spool.close()
    assert not spool.append(b"two\n")
    assert left(finder) == [b"one\n"]


def test_a_disk_that_takes_half_a_line_loses_that_line_and_no_other(tmp_path, monkeypatch):
    spool = journal(tmp_path)
    spool.append(b"one\n")
    with monkeypatch.context() as patched:
        write = os.write
        patched.setattr(os, "write", lambda file, data: write(file, data[:3]))
        assert not spool.append(b"two two\n")
    assert spool.append(b"three\n")
    assert everything(spool) == [b"one\n", b"three\n"]


def test_a_segment_that_is_kept_is_not_read_again(tmp_path):
    dead, finder = journal(tmp_path), journal(tmp_path)
    dead.append(b"one\n")
    die(dead)
    with closing(finder.leftovers()) as leftovers:
        next(leftovers).keep()
    assert left(finder) == []
    assert [path.read_bytes() for path in tmp_path.glob("*.unread")] == [b"one\n"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"service\.store\.spool.*file/spool"):
        journal(tmp_path / "file" / "spool")


class JournalMachine(RuleBasedStateMachine):
    """Every line that was appended comes out, in order, once it is ``done`` exactly once."""

    @initialize()
    def start(self):
        import tempfile

        self.tmp = tempfile.TemporaryDirectory()
        from pathlib import Path

        self.folder = Path(self.tmp.name)
        self.spool = journal(self.folder, max_bytes=4096)
        self.appended, self.out, self.unsure, self.number = [], [], [], 0

    @rule(length=st.integers(0, 700))
    def append(self, length):
        line = b"%d %b\n" % (self.number, b"x" * length)
        self.number += 1
        if self.spool.append(line):
            self.appended.append(line)

    @rule()
    def read(self):
        self.unsure += self.spool.read()

    @rule()
    def done(self):
        self.spool.done()
        self.out += self.unsure
        self.unsure = []

    @rule()
    def rewind(self):
        self.spool.rewind()
        self.unsure = []

    @precondition(lambda self: hasattr(self, "spool"))
    @rule()
    def die_and_be_replayed(self):
        """What was done may come again; what was not done must come."""
        die(self.spool)
        self.spool = journal(self.folder, max_bytes=4096)
        again = left(self.spool)
        rest = self.appended[len(self.out) :]
        assert again[len(again) - len(rest) :] == rest
        assert set(again) <= set(self.appended)
        self.out, self.unsure = list(self.appended), []

    @invariant()
    def in_order_and_bounded(self):
        if hasattr(self, "spool"):
            seen = self.out + self.unsure
            assert seen == self.appended[: len(seen)]
            on_disk = sum(path.stat().st_size for path in self.folder.glob("*.log"))
            assert self.spool.size == on_disk <= 4096

    def teardown(self):
        if hasattr(self, "spool"):
            self.spool.close()
            self.tmp.cleanup()


TestJournalMachine = JournalMachine.TestCase
TestJournalMachine.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
