"""``Store``: requests hand over what happened, one thread brings it into the database.

``record`` writes a line to the journal and returns; nothing of a request waits for the database.
The thread reads lines back, in batches, and inserts those that the database does not know. While
that fails it tries again, slower and slower; requests go on, and the journal grows up to its bound.
A record that finds no room is lost, and counted: in ``status``, and, once the database answers, in
its table ``losses`` with what it had cost.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Final, TypeVar

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as NoConnectionError

from router_runtime.errors import ConfigError, RequestError, RouterError
from router_runtime.service.store import events, queries, tables
from router_runtime.service.store.engine import located, open_engine, upgrade, write
from router_runtime.service.store.events import Rows
from router_runtime.service.store.inserting import error_kind, insert_rows
from router_runtime.service.store.pending import HOUR_S, Losses, PendingSpend, loss_row
from router_runtime.service.store.spool import Journal, Leftover
from router_runtime.service.values import RouteEvent
from router_runtime.service_config import StoreConfig

T = TypeVar("T")

_LOG: Final = logging.getLogger(__name__)
_LINGER_S: Final = 0.25
"""A batch is collected for this long; so long feedback on another replica may have to wait."""
_LOOK_S: Final = 5.0
_SLOWEST_S: Final = 5.0
_REPLAY_S: Final = 30.0
_DAY_S: Final = 86_400


@dataclass(frozen=True, slots=True)
class StoreStatus:
    """How far the store is behind, and what it has lost.

    Parameters
    ----------
    queued : int
        Records of this process that are not in the database yet.
    lag_s : float
        For about how long the oldest of them has waited.
    spool_bytes : int
        What this process's journal takes on disk.
    lost : int
        Records that could not be kept since the start.
    losses : mapping
        The same by reason: ``spool_full`` (or its disk), ``torn`` (cut by a crash), ``rejected``
        (by the database), ``unreadable`` (by JSON).
    content_dropped : int
        Records that were kept without their messages, for want of room.
    last_error : str or None
        Kind of the error that the database gave last; None while it works.
    """

    queued: int
    lag_s: float
    spool_bytes: int
    lost: int
    losses: Mapping[str, int]
    content_dropped: int
    last_error: str | None


class Store:
    """The store of one process; a ``Sink``.

    Parameters
    ----------
    engine : Engine
        Also what keys, feedback and reports are read through.
    journal : Journal
    content : bool
        Keep messages.
    retention_days : int or None
        Messages older than this are deleted.
    clock : callable
        Seconds since the epoch.
    linger_s : float
        How long a batch is collected.
    """

    def __init__(
        self,
        engine: Engine,
        journal: Journal,
        *,
        content: bool = False,
        retention_days: int | None = None,
        clock: Callable[[], float] = time.time,
        linger_s: float = _LINGER_S,
    ) -> None:
        self.engine = engine
        self._journal = journal
        self.keeps_content = content
        self._retention_days = retention_days
        self._clock = clock
        self._linger_s = linger_s
        self._guard = threading.Condition()
        self._wake = threading.Event()
        self._hurry = threading.Event()
        self._pending = PendingSpend()
        self._losses = Losses()
        self._recorded = self._written = self._failures = self._failed_in_a_row = 0
        self._content_dropped = 0
        self._commits = 0  # odd while a batch is on its way
        self._behind_since: float | None = None
        self._problem: str | None = None
        self._upgraded = False
        self._forget_at = clock()
        self._look_at = 0.0
        self._deadline: float | None = None
        self._thread = threading.Thread(target=self._run, name="store-writer", daemon=True)

    def start(self) -> None:
        """Bring the tables to this version, replay what dead processes left, begin to write.

        Where the database does not answer this is done as soon as it does.

        Raises
        ------
        ConfigError
            A newer version has upgraded the database.
        """
        try:
            self._upgraded = bool(upgrade(self.engine))
        except ConfigError:
            raise
        except RouterError as error:
            self._failed(error)
        else:
            self._cycle(until=time.monotonic() + _REPLAY_S)
        self._thread.start()

    def record(self, event: RouteEvent) -> None:
        """Keep a request; when this returns, killing the process does not lose it."""
        try:
            pico, line = events.cost_pico(event), events.encode(event, content=self.keeps_content)
        except (TypeError, ValueError, ArithmeticError):
            pico, line = 0, b""
        with self._guard:  # counted first: the thread may be done with it before this returns
            self._pending.add(event.key_id, event.at, pico)
            if self._behind_since is None:
                self._behind_since = self._clock()
        reason = self._append(event, line)
        with self._guard:
            if reason is None:
                self._recorded += 1
            else:
                self._losses.add(reason, key_id=event.key_id, at=event.at, pico=pico)
        if not self._wake.is_set():
            self._wake.set()

    def flush(self, timeout_s: float = 5.0) -> bool:
        """Wait until what was recorded is in the database; False where that fails or takes longer.

        Blocks; not for an event loop's thread.
        """
        with self._guard:
            target, failures = self._recorded, self._failures
            self._hurry.set()
            self._wake.set()
            self._guard.wait_for(
                lambda: self._written >= target or self._failures > failures, timeout_s
            )
            return self._written >= target

    @property
    def alive(self) -> bool:
        """Whether the thread that writes still runs."""
        return self._thread.is_alive()

    def status(self) -> StoreStatus:
        """Return how far behind the store is."""
        with self._guard:
            since = self._behind_since
            return StoreStatus(
                queued=max(0, self._recorded - self._written),
                lag_s=0.0 if since is None else max(0.0, self._clock() - since),
                spool_bytes=self._journal.size,
                lost=self._losses.total.total(),
                losses=dict(self._losses.total),
                content_dropped=self._content_dropped,
                last_error=self._problem,
            )

    def spent(self, key_id: str, since: float) -> Decimal:
        """Return what a key spent, in the database and on its way there. Blocks.

        It is never too little. Of what is on its way, all of the hour of ``since`` counts.

        Parameters
        ----------
        key_id : str
        since : float
            Seconds since the epoch.

        Raises
        ------
        RequestError
            503 ``store_unavailable``.
        """
        for _ in range(5):
            with self._guard:
                before = self._commits
                pending = self._pending.since(key_id, since)
            kept = self.ask(lambda: queries.spent(self.engine, key_id, since))
            with self._guard:
                if self._commits == before and before % 2 == 0:
                    break  # else a batch may be counted twice
                self._guard.wait_for(lambda: self._commits % 2 == 0, 0.2)
        return kept + tables.from_pico(pending)

    def decision_owner(self, decision_id: str) -> str | None:
        """Return the key that a decision was made for; None where nobody knows it. Blocks.

        Raises
        ------
        RequestError
            503 ``store_unavailable``: the database does not answer, so nobody can say.
        """

        def look() -> str | None:
            with self.engine.connect() as connection:
                return queries.owner(connection, decision_id)

        queued = self.status().queued  # before looking: it may be written in between
        found = self.ask(look)
        if found is None and queued:
            if not self.flush():
                raise unavailable()
            found = self.ask(look)
        return found

    def ask(self, question: Callable[[], T]) -> T:
        """Return what a query returns; a database that does not answer is 503.

        Raises
        ------
        RequestError
            503 ``store_unavailable``.
        """
        try:
            return question()
        except (DBAPIError, NoConnectionError) as error:
            raise unavailable() from error

    def close(self, timeout_s: float = 10.0) -> StoreStatus:
        """Write what there is, as far as time allows, and stop; the rest stays in the journal."""
        with self._guard:
            self._deadline = time.monotonic() + timeout_s
            self._guard.notify_all()
        self._hurry.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s + 1.0)
        status = self.status()
        if self._thread.is_alive():  # the database is silent; the lock goes with the process
            _LOG.warning("the store's thread did not end in time; its records stay in the journal")
        else:
            self._journal.close()
            self.engine.dispose()
        return status

    # ----------------------------------------------------------------------- a request's side

    def _append(self, event: RouteEvent, line: bytes) -> str | None:
        """Write the event's line to the journal; return the reason if it cannot be."""
        if not line:
            return "unreadable"
        if self._journal.append(line):
            return None
        if self.keeps_content and event.messages is not None:
            if self._journal.append(events.encode(event, content=False)):
                with self._guard:
                    self._content_dropped += 1
                return None
        return "spool_full"

    # ----------------------------------------------------------------------- the thread's side

    def _run(self) -> None:
        while True:
            if self._problem is None:
                self._wake.wait(0 if self._deadline else _LOOK_S)
                self._hurry.wait(self._linger_s)
            else:
                self._hurry.wait(min(_SLOWEST_S, 0.05 * 2 ** min(self._failed_in_a_row, 10)))
            self._wake.clear()
            self._hurry.clear()
            deadline = self._deadline  # read after clearing: close sets it first
            worked = self._cycle(until=deadline or time.monotonic() + _REPLAY_S)
            if deadline is not None:
                if worked or time.monotonic() >= deadline:
                    return
                time.sleep(min(0.1, max(0.0, deadline - time.monotonic())))
                self._hurry.set()

    def _cycle(self, *, until: float) -> bool:
        """Bring over what there is; return whether the database took it."""
        try:
            if not self._upgraded:
                self._upgraded = bool(upgrade(self.engine))
            enough = self._recorded  # what comes meanwhile is collected for the next time
            while lines := self._journal.read():
                self._commit(lines, own=True)
                self._journal.done()
                if self._written >= enough or time.monotonic() > until:
                    break
            if time.monotonic() >= self._look_at:
                self._replay(until=until)
                self._forget()
                self._look_at = time.monotonic() + _LOOK_S
            self._tell_losses()
        except Exception as error:  # whatever it is, the thread goes on
            self._journal.rewind()
            self._failed(error)
            return False
        self._worked()
        return True

    def _commit(self, lines: Sequence[bytes], *, own: bool) -> bool:
        """Insert what the lines say; return whether all that are whole were understood."""
        texts = [events.checked(line) for line in lines]
        found = [None if text is None else events.decode(text) for text in texts]
        rows = [row for row in found if row is not None]
        torn = texts.count(None)
        with self._guard:
            self._commits += 1
        try:
            rejected = insert_rows(self.engine, rows)
        except BaseException:
            with self._guard:
                self._commits += 1
                self._guard.notify_all()
            raise
        with self._guard:
            self._commits += 1
            self._settle(rows, rejected, torn=torn, own=own)
            if own:
                self._written += len(lines)
                last = max((row.at for row in rows), default=None)
                self._behind_since = last if self._written < self._recorded else None
            self._guard.notify_all()
        return len(rows) + torn == len(lines)

    def _settle(
        self, rows: Sequence[Rows], rejected: Sequence[Rows], *, torn: int, own: bool
    ) -> None:
        """Take what arrived out of what is pending; what was refused stays until that is told."""
        for row in rows if own else ():
            self._pending.add(row.key_id, row.at, -row.cost_pico)
        for row in rejected:
            self._lose("rejected", row.key_id, row.at, row.cost_pico)
        for _ in range(torn):
            self._lose("torn", "", self._clock(), 0)

    def _lose(self, reason: str, key_id: str, at: float, pico: int) -> None:
        self._pending.add(key_id, at, pico)
        self._losses.add(reason, key_id=key_id, at=at, pico=pico)

    def _tell_losses(self) -> None:
        with self._guard:
            untold = self._losses.take()
            self._commits += bool(untold)
        if not untold:
            return
        told = False
        try:
            with self.engine.begin() as connection:
                write(connection, tables.losses, [loss_row(row) for row in untold])
            told = True
        finally:
            with self._guard:
                self._commits += 1
                if told:
                    for row in untold:
                        self._pending.add(row["key_id"], row["at"], -row["pico"])
                else:
                    self._losses.give_back(untold)
                self._guard.notify_all()

    def _replay(self, *, until: float) -> None:
        """Bring over what dead processes left."""
        with closing(self._journal.leftovers()) as leftovers:
            for leftover in leftovers:
                self._replay_one(leftover)
                if time.monotonic() > until:
                    break

    def _replay_one(self, leftover: Leftover) -> None:
        understood = True
        while lines := leftover.read():
            understood &= self._commit(lines, own=False)
        if understood:
            leftover.delete()
        else:
            leftover.keep()
            _LOG.warning("a segment of another version's journal is kept as *.unread")

    def _forget(self) -> None:
        now = self._clock()
        if self._retention_days is not None and now >= self._forget_at:
            queries.forget_content(self.engine, before=now - self._retention_days * _DAY_S)
            self._forget_at = now + HOUR_S

    def _failed(self, error: BaseException) -> None:
        kind = error_kind(error)
        if kind != self._problem:
            _LOG.warning("the store's database cannot be written to (%s); records wait", kind)
        with self._guard:
            self._problem = kind
            self._failures += 1
            self._failed_in_a_row += 1
            self._guard.notify_all()

    def _worked(self) -> None:
        if self._problem is not None:
            _LOG.warning("the store's database can be written to again")
        with self._guard:
            self._problem = None
            self._failed_in_a_row = 0
            self._guard.notify_all()


def open_store(
    config: StoreConfig, *, folder: Path, clock: Callable[[], float] = time.time
) -> Store:
    """Open the store that a config names, and start it.

    Parameters
    ----------
    config : StoreConfig
    folder : Path
        Where relative paths of the config start: where the config file lies.
    clock : callable
        Seconds since the epoch.

    Raises
    ------
    ConfigError
        The URL or the spool's folder is unusable, or a newer version has upgraded the database.
    MissingDependencyError
        The database's driver is not installed.
    """
    settled = located(config, folder)
    engine = open_engine(settled.url)
    journal = Journal(settled.spool, max_bytes=settled.max_spool_bytes)
    store = Store(
        engine,
        journal,
        content=settled.content,
        retention_days=settled.retention_days,
        clock=clock,
    )
    try:
        store.start()
    except BaseException:
        journal.close()
        engine.dispose()
        raise
    return store


def unavailable() -> RequestError:
    """Return the error of a question that only the database can answer, while it does not."""
    return RequestError(
        "The store does not answer at the moment; try again.",
        status=503,
        code="store_unavailable",
        retry_after_s=_SLOWEST_S,
    )
