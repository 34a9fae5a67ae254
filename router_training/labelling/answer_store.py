"""Where every answer that was paid for is kept: one SQLite file that is only ever added to.

A row is one ended call. It is on the disk (write-ahead log, ``synchronous=FULL``) before ``append``
returns, so a process that is killed at any moment loses no answer whose caller was told of it.
Calls that end together share one commit. Writing takes a lock, which the kernel gives back when the
holder dies, however it dies; reading takes none and works while another process writes. The file
must lie on a local disk: SQLite's log does not work over a network.

What was spent is kept as a running total beside every row, exactly (``Decimal``), so asking for it
costs the same with ten rows and ten million.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import queue
import socket
import sqlite3
import threading
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from decimal import Context, Decimal, localcontext
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NamedTuple, NoReturn

from router_runtime.errors import ConfigError, RouterError
from router_runtime.pricing import Usage
from router_training.labelling.calls import Outcome, Status

_FILE: Final = "answers.sqlite"
_LOCK: Final = "answers.lock"
_FORMAT: Final = 1  # PRAGMA user_version; raise when a column changes its meaning
_EXACT: Final = Context(prec=100)
_COLUMNS: Final = 11
_GROUP: Final = 90  # rows of one commit at most: SQLite may allow 999 values in a statement
_KEYS_PER_QUERY: Final = 500
_BEST: Final = {Status.ANSWERED: 3, Status.REFUSED: 2, Status.FAILED: 1}

# Large values stand last: reading the others then touches no overflow page.
_SCHEMA: Final = """
CREATE TABLE runs (run INTEGER PRIMARY KEY, holder TEXT NOT NULL);
CREATE TABLE calls (
    id INTEGER PRIMARY KEY,
    run INTEGER NOT NULL,
    key TEXT NOT NULL,
    model_id TEXT NOT NULL,
    status TEXT NOT NULL,
    input_tokens INTEGER,
    output_tokens INTEGER,
    cost_usd TEXT,
    estimated_usd TEXT,
    total_usd TEXT NOT NULL,
    total_estimated_usd TEXT NOT NULL,
    payload BLOB NOT NULL
);
CREATE INDEX calls_by_key ON calls (key);
"""
_ROW: Final = f"(NULL{', ?' * _COLUMNS})"
_TOTALS: Final = "SELECT total_usd, total_estimated_usd FROM calls ORDER BY id DESC LIMIT 1"


@dataclass(frozen=True)
class Observed:
    """What the answers of one model were like.

    Parameters
    ----------
    answered : int
        Answers whose usage is known.
    input_tokens, output_tokens : float
        Their means.
    """

    answered: int
    input_tokens: float
    output_tokens: float


class _Row(NamedTuple):
    """What is to be written, and who waits for it."""

    outcome: Outcome
    estimated_usd: Decimal | None
    done: asyncio.Future[None]


class _Kept(NamedTuple):
    """What was written, as far as it is asked for."""

    id: int
    run: int
    key: str
    model_id: str
    status: str
    cost_usd: str | None
    payload: bytes

    @property
    def rank(self) -> tuple[int, int]:
        return _BEST[Status(self.status)], self.id

    def outcome(self) -> Outcome:
        content = json.loads(self.payload.decode("utf-8", "surrogatepass"))
        usage = content["usage"]
        return Outcome(
            key=self.key,
            model_id=self.model_id,
            status=Status(self.status),
            text=content["text"],
            reason=content["reason"],
            finish_reason=content["finish_reason"],
            usage=None if usage is None else Usage(**usage),
            cost_usd=None if self.cost_usd is None else Decimal(self.cost_usd),
            seconds=content["seconds"],
            tries=content["tries"],
        )


class AnswerStore:
    """Ended calls by their key.

    Made by ``open`` (to write) or ``read``; closed by ``close`` or at the end of a ``with``.
    """

    def __init__(
        self,
        folder: Path,
        reader: sqlite3.Connection,
        *,
        writer: _Writer | None = None,
        lock: int | None = None,
        run: int | None = None,
    ) -> None:
        self.folder = folder
        self._reader = reader
        self._writer = writer
        self._lock = lock
        self._run = run

    @classmethod
    def open(cls, folder: str | Path, *, holder: str) -> AnswerStore:
        """Open the store of a folder to write into it, making both where they are not there.

        Parameters
        ----------
        folder : path
        holder : str
            What a second opener is told: the command that has it open.

        Raises
        ------
        ConfigError
            Another process has it open, or another version of this program wrote it.
        RouterError
            It cannot be written or is damaged.
        """
        folder = Path(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = _locked(folder / _LOCK, holder)
        except OSError as error:
            raise RouterError(f"Answers cannot be kept in '{folder}': {error}.") from error
        try:
            connection = _connect(folder, writable=True)
            run = connection.execute("INSERT INTO runs (holder) VALUES (?)", (holder,)).lastrowid
            reader = _connect(folder, writable=False)
        except sqlite3.Error as error:
            os.close(lock)
            _refuse(folder, error)
        except BaseException:
            os.close(lock)
            raise
        writer = _Writer(folder, connection, run or 0)
        return cls(folder, reader, writer=writer, lock=lock, run=run)

    @classmethod
    def read(cls, folder: str | Path) -> AnswerStore:
        """Open the store of a folder to read; one that is not there yet is empty.

        Raises
        ------
        ConfigError
            Another version of this program wrote it.
        RouterError
            It cannot be read or is damaged.
        """
        folder = Path(folder)
        try:
            return cls(folder, _connect(folder, writable=False))
        except sqlite3.Error as error:
            _refuse(folder, error)

    def __enter__(self) -> AnswerStore:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Write what is waiting, and let others open it; closing again does nothing."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        self._reader.close()
        if self._lock is not None:
            os.ftruncate(self._lock, 0)
            os.close(self._lock)
            self._lock = None

    async def append(self, outcome: Outcome, *, estimated_usd: Decimal | None = None) -> None:
        """Keep an ended call; return when it would survive the loss of power.

        Parameters
        ----------
        outcome : Outcome
            One that is ``PENDING`` is kept for its cost alone and never found.
        estimated_usd : Decimal, optional
            What the call may have cost, where nobody says what it did.

        Raises
        ------
        RouterError
            It cannot be kept (a full disk), or the store is open to read only.
        """
        if self._writer is None:
            raise RouterError(f"The answers in '{self.folder}' are open to read only.")
        await self._writer.append(outcome, estimated_usd)

    def find(self, keys: Sequence[str]) -> dict[str, Outcome]:
        """Return the best outcome of each key that has one.

        An answer is better than a refusal, that better than a failure; among equals the newest
        is taken.
        """
        return {key: outcome for key, (outcome, _) in self._best(keys).items()}

    def settled(self, key: str) -> Outcome | None:
        """Return the key's outcome, unless asking (again) in this run could better it.

        A failure of an earlier run is none; a failure of this run is.
        """
        found = self._best([key]).get(key)
        if found is None:
            return None
        outcome, run = found
        return None if outcome.status is Status.FAILED and run != self._run else outcome

    @asynccontextmanager
    async def claimed(self, key: str) -> AsyncIterator[Outcome | None]:
        """Give what ``settled`` returns; that one asker asks nothing twice is its own concern."""
        yield self.settled(key)

    def spent(self) -> Decimal:
        """Return the exact US dollars of all calls whose cost is known, over all runs."""
        return self._totals()[0]

    def estimated(self) -> Decimal:
        """Return the most that calls of unknown cost may have cost, in US dollars, over all runs.

        Such are calls that timed out or broke off after they were sent, and answers without usage.
        """
        return self._totals()[1]

    def observed(self) -> Mapping[str, Observed]:
        """Return per model what its answers consumed; a pass over all rows."""
        rows = self._fetch(
            "SELECT model_id, count(*), avg(input_tokens), avg(output_tokens) FROM calls "
            "WHERE status = ? AND output_tokens IS NOT NULL GROUP BY model_id ORDER BY model_id",
            (Status.ANSWERED,),
        )
        return {model: Observed(count, sent, made) for model, count, sent, made in rows}

    def _best(self, keys: Sequence[str]) -> dict[str, tuple[Outcome, int]]:
        best: dict[str, _Kept] = {}
        for row in self._rows(keys):
            if row.key not in best or row.rank > best[row.key].rank:
                best[row.key] = row
        return {key: (row.outcome(), row.run) for key, row in best.items()}

    def _rows(self, keys: Sequence[str]) -> Iterator[_Kept]:
        for start in range(0, len(keys), _KEYS_PER_QUERY):
            some = keys[start : start + _KEYS_PER_QUERY]
            marks = ",".join("?" * len(some))
            rows = self._fetch(
                "SELECT id, run, key, model_id, status, cost_usd, payload FROM calls "  # noqa: S608
                f"WHERE key IN ({marks}) AND status != 'pending'",  # only placeholders
                tuple(some),
            )
            yield from (_Kept(*row) for row in rows)

    def _totals(self) -> tuple[Decimal, Decimal]:
        rows = self._fetch(_TOTALS, ())
        return (Decimal(rows[0][0]), Decimal(rows[0][1])) if rows else (Decimal(0), Decimal(0))

    def _fetch(self, query: str, values: tuple[str, ...]) -> list[Any]:
        try:
            return self._reader.execute(query, values).fetchall()
        except sqlite3.Error as error:
            _refuse(self.folder, error)


class _Writer:
    """The one thread that writes; whatever waits when it is free goes into one commit."""

    def __init__(self, folder: Path, connection: sqlite3.Connection, run: int) -> None:
        self._folder = folder
        self._connection = connection
        self._run = run
        self._queue: queue.SimpleQueue[_Row | None] = queue.SimpleQueue()
        self._broken: str | None = None
        totals = connection.execute(_TOTALS).fetchone() or ("0", "0")
        self._spent, self._estimated = Decimal(totals[0]), Decimal(totals[1])
        self._thread = threading.Thread(target=self._work, name="answers", daemon=True)
        self._thread.start()

    async def append(self, outcome: Outcome, estimated_usd: Decimal | None) -> None:
        if self._broken is not None:
            raise RouterError(self._broken)
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.put(_Row(outcome, estimated_usd, done))
        await done

    def close(self) -> None:
        self._queue.put(None)
        self._thread.join()
        self._connection.close()

    def _work(self) -> None:
        more = True
        while more:
            waiting = [self._queue.get()]
            with suppress(queue.Empty):
                while len(waiting) < _GROUP:
                    waiting.append(self._queue.get_nowait())
            rows = [row for row in waiting if row is not None]
            more = len(rows) == len(waiting)
            self._tell(rows, self._commit(rows))

    def _commit(self, rows: Sequence[_Row]) -> str | None:
        """Write the rows; return what went wrong."""
        if self._broken is not None or not rows:
            return self._broken
        before = self._spent, self._estimated
        try:
            # One statement is its own transaction, and one turn of waiting for the event loop's
            # thread to let go of the interpreter; with three and one for each row, answers waited.
            values = [value for row in rows for value in self._columns(row)]
            self._connection.execute(
                f"INSERT INTO calls VALUES {', '.join([_ROW] * len(rows))}",  # noqa: S608 - marks
                values,
            )
        except (sqlite3.Error, ValueError) as error:
            self._spent, self._estimated = before
            self._broken = f"Answers cannot be kept in '{self._folder}': {error}."
        return self._broken

    def _columns(self, row: _Row) -> tuple[object, ...]:
        outcome, usage = row.outcome, row.outcome.usage
        with localcontext(_EXACT):
            self._spent += outcome.cost_usd or 0
            self._estimated += row.estimated_usd or 0
        return (
            self._run,
            outcome.key,
            outcome.model_id,
            outcome.status.value,
            None if usage is None else usage.input_tokens,
            None if usage is None else usage.output_tokens,
            None if outcome.cost_usd is None else str(outcome.cost_usd),
            None if row.estimated_usd is None else str(row.estimated_usd),
            str(self._spent),
            str(self._estimated),
            _payload(outcome),
        )

    def _tell(self, rows: Sequence[_Row], problem: str | None) -> None:
        for loop in {row.done.get_loop() for row in rows}:
            ended = [row.done for row in rows if row.done.get_loop() is loop]
            with suppress(RuntimeError):  # the loop is closed: nobody waits
                loop.call_soon_threadsafe(_resolve, ended, problem)


def _resolve(futures: Sequence[asyncio.Future[None]], problem: str | None) -> None:
    for future in futures:
        if future.done():  # its caller gave up
            continue
        if problem is None:
            future.set_result(None)
        else:
            future.set_exception(RouterError(problem))


def _payload(outcome: Outcome) -> bytes:
    content = {
        "text": outcome.text,
        "reason": outcome.reason,
        "finish_reason": outcome.finish_reason,
        "usage": None if outcome.usage is None else asdict(outcome.usage),
        "seconds": outcome.seconds,
        "tries": outcome.tries,
        "ended": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8", "surrogatepass")  # models do send lone surrogates


def _connect(folder: Path, *, writable: bool) -> sqlite3.Connection:
    path = folder / _FILE
    if not writable and not path.is_file():
        connection = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        connection.executescript(_SCHEMA)
        return connection
    mode = "rwc" if writable else "ro"
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={mode}",
        uri=True,
        isolation_level=None,
        check_same_thread=False,
        timeout=60.0,
    )
    try:
        if writable:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
        _check_format(connection, folder, make=writable)
    except BaseException:
        connection.close()
        raise
    return connection


def _check_format(connection: sqlite3.Connection, folder: Path, *, make: bool) -> None:
    with closing(connection.execute("PRAGMA user_version")) as cursor:
        version = cursor.fetchone()[0]
    if version == 0 and make:
        connection.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {_FORMAT}; COMMIT;")
    elif version != _FORMAT:
        raise ConfigError(
            f"The answers in '{folder}' have format {version}; this version reads {_FORMAT}. Use "
            "the version that wrote them, or another work_dir."
        )


def _locked(path: Path, holder: str) -> int:
    """Take the lock and leave a note of who has it; the kernel frees it with the process."""
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        who = _note(file)
        os.close(file)
        raise ConfigError(
            f"The answers in '{path.parent}' are being written by {who}. Wait until it is done or "
            "stop it, or take another work_dir."
        ) from None
    except OSError:
        os.close(file)
        raise
    note = {
        "command": holder,
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    os.ftruncate(file, 0)
    os.pwrite(file, json.dumps(note).encode(), 0)
    return file


def _note(file: int) -> str:
    """Say who holds the lock; its note is not yet written in the first instant."""
    try:
        note = json.loads(os.pread(file, 65_536, 0))
        return (
            f"'{note['command']}' (process {note['pid']} on {note['host']}, since {note['since']})"
        )
    except (ValueError, LookupError, TypeError):
        return "another process"


def _refuse(folder: Path, error: sqlite3.Error) -> NoReturn:
    raise RouterError(
        f"The answers in '{folder}' cannot be used: {error}. Check the disk's space and rights; a "
        f"damaged '{_FILE}' can be rescued with sqlite3's .recover."
    ) from error
