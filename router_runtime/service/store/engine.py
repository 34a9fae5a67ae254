"""Opening the database, bringing it to this version's tables, and what the two dialects differ in.

The upgrade runs at start under a lock, so that replicas that start together do not race: an
advisory lock that ends with the transaction on PostgreSQL, the write lock on SQLite. A database
that a newer version has upgraded is refused, not guessed at.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import orjson
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import JSON, Connection, Engine, Insert, Table, create_engine, event, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, OperationalError

from router_runtime.errors import ConfigError, MissingDependencyError, RouterError
from router_runtime.service_config import StoreConfig

_PATIENCE_S: Final = 10.0
_LOCK: Final = 0x6D6F64656C2D7274  # any number that nothing else in the database locks
_POSTGRES_ARGS: Final = {
    "connect_timeout": 5,
    "keepalives_idle": 10,
    "tcp_user_timeout": 15_000,
    "options": "-c statement_timeout=30000 -c lock_timeout=10000",
}
"""A database that has gone silent is an error within seconds, not a thread that waits for ever."""


def located(config: StoreConfig, folder: Path) -> StoreConfig:
    """Return the config with relative paths, of the spool and of an SQLite file, below ``folder``.

    Parameters
    ----------
    config : StoreConfig
    folder : Path
        Where the config file lies.
    """
    url = _parsed(config.url)
    if url.get_backend_name() == "sqlite" and url.database not in (None, "", ":memory:"):
        url = url.set(database=str((folder / str(url.database)).resolve()))
    return config.model_copy(
        update={
            "url": url.render_as_string(hide_password=False),
            "spool": (folder / config.spool).resolve(),
        }
    )


def open_engine(url: str) -> Engine:
    """Return an engine; nothing is connected yet.

    Parameters
    ----------
    url : str
        SQLAlchemy URL of an SQLite file or a PostgreSQL database.

    Raises
    ------
    ConfigError
        It is no such URL.
    MissingDependencyError
        The driver is not installed.
    """
    parsed = _parsed(url)
    backend = parsed.get_backend_name()
    options: dict[str, Any] = {"json_serializer": _json, "json_deserializer": orjson.loads}
    if backend == "sqlite":
        if parsed.database in (None, "", ":memory:"):
            raise ConfigError(
                "service.store.url names no file, and a database in memory forgets what was spent; "
                "give sqlite:///FILE or postgresql+psycopg://..."
            )
    elif backend == "postgresql":
        options |= {"connect_args": dict(_POSTGRES_ARGS), "pool_pre_ping": True, "pool_timeout": 10}
    else:
        raise ConfigError(
            f"service.store.url is for '{backend}'; the store works on sqlite and postgresql."
        )
    try:
        engine = create_engine(parsed, **options)
    except NoSuchModuleError:
        raise ConfigError(
            f"service.store.url asks for the driver '{parsed.drivername}', which is not known; use "
            "sqlite:///FILE or postgresql+psycopg://..."
        ) from None
    except ModuleNotFoundError as error:
        raise MissingDependencyError(error.name or parsed.drivername, "service") from None
    if backend == "sqlite":
        event.listen(engine, "connect", _settle_sqlite)
    return engine


def upgrade(engine: Engine) -> str:
    """Bring the database to this version's tables and return the revision that it has then.

    Raises
    ------
    ConfigError
        A newer version has been here.
    RouterError
        The database cannot be reached or changed.
    """
    try:
        if engine.dialect.name == "sqlite":
            _make_file(Path(str(engine.url.database)))
            _use_wal(engine)
        with engine.connect() as connection:
            if engine.dialect.name == "sqlite":
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            else:
                for setting in ("statement_timeout", "lock_timeout"):
                    connection.exec_driver_sql(f"SET LOCAL {setting} = '10min'")
                connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_LOCK})")
            revision = _upgrade(connection)
            connection.commit()
    except DBAPIError as error:
        raise unreachable(engine) from error
    return revision


def require_current(engine: Engine) -> None:
    """Refuse a database that has not this version's tables, without changing it.

    Raises
    ------
    ConfigError
        There is no database, or it is of another version.
    RouterError
        The database cannot be reached.
    """
    file = engine.url.database
    if engine.dialect.name == "sqlite" and not Path(str(file)).is_file():
        raise ConfigError(
            f"There is no database '{file}' yet; 'model-router serve' or 'model-router db upgrade' "
            "makes it."
        )
    try:
        with engine.connect() as connection:
            found = MigrationContext.configure(connection).get_current_heads()
    except DBAPIError as error:
        raise unreachable(engine) from error
    head = _scripts().get_current_head()
    if found != (head,):
        raise ConfigError(
            f"The database at {engine.url.render_as_string(hide_password=True)} has revision "
            f"{', '.join(found) or '(none)'}, this version needs {head}; run 'model-router db "
            "upgrade', or use the version of model-router that upgraded it."
        )


def unreachable(engine: Engine) -> RouterError:
    """Return the error of a database that does not answer, without what its driver says.

    Drivers quote what they were given; a password has no place in a log.
    """
    return RouterError(
        f"The database at {engine.url.render_as_string(hide_password=True)} cannot be used. Check "
        "that it runs, that service.store.url is right, and the rights of its user."
    )


def insert_new(engine: Engine, table: Table) -> Insert:
    """Return an insert that leaves rows alone whose primary key is there."""
    if engine.dialect.name == "sqlite":
        return sqlite.insert(table).on_conflict_do_nothing()
    return postgresql.insert(table).on_conflict_do_nothing()


def write(connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert the rows that are not there yet, as the tables keep them: dollars are whole numbers.

    Every row has the same keys. The statement and its values are made here: SQLAlchemy would spend
    more on compiling and converting them than SQLite on inserting. PostgreSQL takes all rows as one
    JSON document and a statement that takes it apart; its driver, given them one by one, would
    spend more time on a request's rows than all of the service on the request.
    """
    if not rows:
        return
    names = list(rows[0])
    columns = ", ".join(connection.dialect.identifier_preparer.quote(name) for name in names)
    into = f"INTO {table.name} ({columns})"
    if connection.dialect.name == "sqlite":
        documents = [name for name in names if isinstance(table.c[name].type, JSON)]
        found = [{**row, **{name: _json(row[name]) for name in documents}} for row in rows]
        marks = ", ".join("?" * len(names))
        connection.exec_driver_sql(
            f"INSERT {into} VALUES ({marks}) ON CONFLICT DO NOTHING",  # noqa: S608 - our own names
            [tuple(row.values()) for row in found],
        )
        return
    connection.execute(
        text(
            f"INSERT {into} SELECT {columns} "  # noqa: S608 - our own names
            f"FROM json_populate_recordset(NULL::{table.name}, CAST(:rows AS json)) "
            "ON CONFLICT DO NOTHING"
        ),
        {"rows": orjson.dumps(rows).decode()},
    )


def _parsed(url: str) -> URL:
    try:
        return make_url(url)
    except ArgumentError:  # its message may quote the password
        raise ConfigError(
            "service.store.url is no URL of a database, such as sqlite:///runs/service.db or "
            "postgresql+psycopg://user@host/name."
        ) from None


def _json(value: object) -> str:
    return orjson.dumps(value).decode()


def _settle_sqlite(connection: sqlite3.Connection, _record: object) -> None:
    connection.execute(f"PRAGMA busy_timeout = {int(_PATIENCE_S * 1000)}")
    connection.execute("PRAGMA synchronous = NORMAL")  # with WAL: whole after a crash


def _make_file(path: Path) -> None:
    """Make the database's file readable by its owner only; SQLite alone would ask the umask."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise ConfigError(
            f"service.store.url: the file '{path}' cannot be written to ({error.strerror}); name "
            "another one."
        ) from error


def _use_wal(engine: Engine) -> None:
    """Let readers and the writer work at the same time; the file remembers it.

    SQLite does not wait for others while it changes this, so the waiting is done here.
    """
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        try:
            with engine.connect() as connection:
                connection.exec_driver_sql("PRAGMA journal_mode = WAL")
            return
        except OperationalError as error:
            if "locked" not in str(error.orig) or time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def _alembic() -> Config:
    config = Config()
    config.set_main_option("script_location", "router_runtime.service.store:migrations")
    config.set_main_option("path_separator", "os")
    return config


def _scripts() -> ScriptDirectory:
    return ScriptDirectory.from_config(_alembic())


def _upgrade(connection: Connection) -> str:
    scripts = _scripts()
    head = str(scripts.get_current_head())
    known = {revision.revision for revision in scripts.walk_revisions()}
    found = MigrationContext.configure(connection).get_current_heads()
    if newer := sorted(set(found) - known):
        raise ConfigError(
            f"The database at {connection.engine.url.render_as_string(hide_password=True)} has "
            f"revision {newer[0]}; this version knows revisions up to {head}. Use the version of "
            "model-router that upgraded it, or another database."
        )
    if found != (head,):
        config = _alembic()
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
    return head
