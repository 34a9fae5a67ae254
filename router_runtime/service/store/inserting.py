"""Rows of requests into the tables; which errors are about a row, which about the database."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, StatementError

from router_runtime.errors import RouterError
from router_runtime.service.store import tables
from router_runtime.service.store.engine import write
from router_runtime.service.store.events import Rows

_REFUSALS: Final = (StatementError, TypeError, ValueError, OverflowError)


def insert_rows(engine: Engine, rows: Sequence[Rows]) -> list[Rows]:
    """Insert rows in one transaction; return those that the database refuses for what they are.

    One that is refused must not keep the others out, nor stop the journal for ever.
    """
    if not rows:
        return []
    try:
        with engine.begin() as connection:
            _write(connection, rows)
    except _REFUSALS as error:
        if isinstance(error, DBAPIError) and not isinstance(error, DataError | IntegrityError):
            raise
        if len(rows) == 1:
            return [*rows]
        half = len(rows) // 2
        return insert_rows(engine, rows[:half]) + insert_rows(engine, rows[half:])
    return []


def _write(connection: Connection, rows: Sequence[Rows]) -> None:
    write(connection, tables.decisions, [row.decision for row in rows])
    write(connection, tables.attempts, [attempt for row in rows for attempt in row.attempts])
    write(connection, tables.content, [row.content for row in rows if row.content is not None])


def error_kind(error: BaseException) -> str:
    """Name an error without its message, which may quote anything."""
    if isinstance(error, RouterError) and error.__cause__ is not None:
        return error_kind(error.__cause__)
    if isinstance(error, DBAPIError) and error.orig is not None:
        return type(error.orig).__name__
    return type(error).__name__
