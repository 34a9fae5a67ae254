"""The journal that records are written to before an answer ends, and read from into the database.

Each process appends to segments of its own, ``NAME.00000001.log`` and so on, and holds a lock on
``NAME.lock`` for as long as it lives. One ``write`` per record: once it has returned the kernel has
the record, and killing the process loses nothing. (A power failure may: there is no ``fsync``.)

A segment is deleted when all of it is in the database. What a dead process has left is found by its
lock being free, and read by whoever finds it first; reading a record twice is harmless, because the
database knows it by its id.
"""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from collections.abc import Generator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from uuid import uuid4

from router_runtime.errors import ConfigError

_READ: Final = 2**18
_SEGMENT: Final = 2 * 2**20
_TRIES: Final = 20
_LOCK_SUFFIX: Final = ".lock"
_SUFFIX: Final = ".log"
_KEPT_SUFFIX: Final = ".unread"


@dataclass(slots=True, eq=False)
class _Segment:
    path: Path
    size: int = 0
    read: int = 0
    done: int = 0


class Journal:
    """The segments of this process: appended to by requests, read by one other thread.

    Parameters
    ----------
    folder : Path
        Made if it is not there; may be shared by processes of one machine.
    max_bytes : int
        Of all segments in the folder; beyond it nothing is appended.

    Raises
    ------
    ConfigError
        The folder cannot be written to.
    """

    def __init__(self, folder: Path, *, max_bytes: int) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._segment_bytes = min(_SEGMENT, max(max_bytes // 8, 1))
        self._name = ""
        self._guard = threading.Lock()
        self._segments: list[_Segment] = []
        self._open: int | None = None
        self._number = 0
        self._own_bytes = 0
        self._others_bytes = 0
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock: int | None = self._locked_name()
        except OSError as error:
            raise ConfigError(
                f"service.store.spool: the folder '{folder}' cannot be written to "
                f"({error.strerror}); name another one."
            ) from error
        self.measure_others()

    @property
    def size(self) -> int:
        """Bytes of this process's segments, written to the database or not."""
        return self._own_bytes

    def append(self, line: bytes) -> bool:
        """Write a line; False where there is no room for it, or the disk refuses it."""
        with self._guard:
            if (
                self._lock is None
                or self._own_bytes + self._others_bytes + len(line) > self._max_bytes
            ):
                return False
            try:
                self._write(line)
            except OSError:
                self._end_segment()
                return False
            segment = self._segments[-1]
            segment.size += len(line)
            self._own_bytes += len(line)
            if segment.size >= self._segment_bytes:
                self._end_segment()
            return True

    def read(self) -> list[bytes]:
        """Return the next lines, some hundreds; none when all were read.

        After ``done`` they are gone, after ``rewind`` they are read again.
        """
        with self._guard:
            segment = next((s for s in self._segments if s.read < s.size), None)
            if segment is None:
                return []
            start, end = segment.read, segment.size
        data = _whole_lines(segment.path, start, end)
        segment.read += len(data)
        return data.splitlines(keepends=True)

    def rewind(self) -> None:
        """Let ``read`` begin again at the first line that is not ``done``."""
        for segment in self._segments:
            segment.read = segment.done

    def done(self) -> None:
        """Take what was read for written; delete the segments of which that is all."""
        with self._guard:
            for segment in self._segments:
                segment.done = segment.read
            if self._open is not None and self._segments[-1].size >= self._segment_bytes // 8:
                last = self._segments[-1]
                if last.read == last.size:
                    self._end_segment()
            written = self._take_written()
        _delete(written)

    def close(self) -> None:
        """Delete what is done, leave the rest to whoever comes next, and give the lock back."""
        with self._guard:
            if self._lock is None:
                return
            self._end_segment()
            _delete(self._take_written())
            if not self._segments:
                (self._folder / (self._name + _LOCK_SUFFIX)).unlink(missing_ok=True)
            os.close(self._lock)
            self._lock = None

    def leftovers(self) -> Generator[Leftover, None, None]:
        """Yield the segments of processes that are dead, each locked while it is being used."""
        for lock in sorted(self._dead_names()):
            path = self._folder / (lock + _LOCK_SUFFIX)
            try:
                held = _acquired(path)
            except OSError:
                continue
            try:
                for segment in sorted(self._folder.glob(f"{lock}.*{_SUFFIX}")):
                    yield Leftover(segment)
                if not any(self._folder.glob(f"{lock}.*{_SUFFIX}")):
                    path.unlink(missing_ok=True)
            finally:
                os.close(held)
        self.measure_others()

    def measure_others(self) -> None:
        """Look how much room the segments of other processes take."""
        found = 0
        for path in self._folder.glob(f"*{_SUFFIX}"):
            if not path.name.startswith(self._name):
                with suppress(OSError):  # its process has just deleted it
                    found += path.stat().st_size
        self._others_bytes = found

    def _locked_name(self) -> int:
        """Take a name; one that another process takes for dead before it is locked is given up."""
        for _ in range(_TRIES):
            self._name = uuid4().hex
            with suppress(BlockingIOError, FileNotFoundError):
                return _acquired(self._folder / (self._name + _LOCK_SUFFIX))
        raise OSError(errno.EAGAIN, "no lock could be taken")

    def _dead_names(self) -> set[str]:
        """Return the names of processes; a lock without segments is looked at as well."""
        names = {path.name.partition(".")[0] for path in self._folder.glob(f"*{_SUFFIX}")}
        names |= {path.name.partition(".")[0] for path in self._folder.glob(f"*{_LOCK_SUFFIX}")}
        return names - {self._name}

    def _write(self, line: bytes) -> None:
        if self._open is None:
            self._number += 1
            path = self._folder / f"{self._name}.{self._number:08d}{_SUFFIX}"
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            self._open = os.open(path, flags, 0o600)
            self._segments.append(_Segment(path))
        written = os.write(self._open, line)
        if written != len(line):
            # A full disk takes a part of it, which no other line may follow.
            raise OSError(errno.ENOSPC, "the disk is full")

    def _end_segment(self) -> None:
        if self._open is not None:
            os.close(self._open)
            self._open = None

    def _take_written(self) -> list[_Segment]:
        """Forget the segments that are written, and return them to be deleted.

        Deleting a file can take long, and ``append`` must not wait for it.
        """
        current = self._segments[-1:] if self._open is not None else []
        kept = [s for s in self._segments if s in current or s.done < s.size]
        written = [s for s in self._segments if s not in kept]
        self._own_bytes -= sum(segment.size for segment in written)
        self._segments = kept
        return written


def _delete(segments: list[_Segment]) -> None:
    for segment in segments:
        segment.path.unlink(missing_ok=True)


class Leftover:
    """A segment of a process that is dead.

    Parameters
    ----------
    path : Path
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._size = path.stat().st_size
        self._read = 0

    def read(self) -> list[bytes]:
        """Return the next lines, the last of them perhaps cut; none when all were read."""
        data = _whole_lines(self._path, self._read, self._size)
        self._read += len(data)
        return data.splitlines(keepends=True)

    def delete(self) -> None:
        """Delete the segment: all of it is in the database."""
        self._path.unlink(missing_ok=True)

    def keep(self) -> None:
        """Put the segment aside, where nobody reads it again: another version wrote it."""
        self._path.rename(self._path.with_suffix(_KEPT_SUFFIX))


def _whole_lines(path: Path, start: int, end: int) -> bytes:
    """Return some hundreds of whole lines, at least one; what is cut only at the very end."""
    size = _READ
    with path.open("rb") as file:
        while True:
            file.seek(start)
            data = file.read(min(size, end - start))
            if start + len(data) >= end or len(data) < min(size, end - start):
                return data
            if cut := data.rfind(b"\n") + 1:
                return data[:cut]
            size *= 2


def _acquired(path: Path) -> int:
    """Return the lock of a file, made if need be.

    Raises
    ------
    OSError
        It is held by another, or was deleted by who held it.
    """
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.stat(path).st_ino != os.fstat(file).st_ino:
            raise FileNotFoundError(errno.ENOENT, "another has deleted it", str(path))
    except OSError:
        os.close(file)
        raise
    return file
