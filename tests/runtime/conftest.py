"""Databases of either kind, made for one test and gone after it, and what to put into them."""

from __future__ import annotations

import itertools
import os
from decimal import Decimal
from pathlib import Path

import pytest
import sqlalchemy as sa

from router_runtime.pricing import Usage
from router_runtime.service.store.spool import Journal
from router_runtime.service.store.writer import Store
from router_runtime.service.values import Attempt, Routed, RouteEvent, Step
from router_runtime.types import Reason, RoutingDecision

_SERVER = os.environ.get(
    "MODEL_ROUTER_TEST_POSTGRES", "postgresql+psycopg://postgres@127.0.0.1:5432/postgres"
)
_NUMBERS = itertools.count()
NOON = 1_790_000_000.0


@pytest.fixture
def postgres_url():
    """A fresh database on the local PostgreSQL."""
    server = sa.create_engine(
        _SERVER, isolation_level="AUTOCOMMIT", connect_args={"connect_timeout": 3}
    )
    name = f"store_{os.getpid()}_{next(_NUMBERS)}"
    try:
        with server.connect() as connection:
            connection.exec_driver_sql(f'CREATE DATABASE "{name}"')
    except sa.exc.OperationalError:
        pytest.skip("no PostgreSQL at 127.0.0.1:5432 (MODEL_ROUTER_TEST_POSTGRES names another)")
    yield server.url.set(database=name).render_as_string(hide_password=False)
    with server.connect() as connection:
        connection.exec_driver_sql(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
    server.dispose()


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, tmp_path) -> str:
    """Both databases, one after the other."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'store.db'}"
    return request.getfixturevalue("postgres_url")


class Clock:
    """Seconds since the epoch, as the test says."""

    def __init__(self, now: float = NOON) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def opened(request, tmp_path, clock):
    """Opens stores, each with a journal of its own, and closes them before their database goes."""
    if "url" in request.fixturenames:
        request.getfixturevalue("url")
    from router_runtime.service.store.engine import open_engine

    stores: list[Store] = []

    def make(url: str, *, spool: Path = tmp_path / "spool", max_bytes=2**24, **options) -> Store:
        journal = Journal(spool, max_bytes=max_bytes)
        options = {"clock": clock, "linger_s": 0.0} | options
        store = Store(open_engine(url), journal, **options)
        stores.append(store)
        store.start()
        return store

    yield make
    for store in stores:
        store.close(2.0)


@pytest.fixture
def make_event():
    """Makes a request that ``failed`` models refused and ``model`` answered."""
    return _event


@pytest.fixture
def rows_of():
    """Reads all rows of a table."""
    return _rows_of


def _event(
    decision_id: str,
    *,
    key_id: str = "k1",
    at: float = NOON,
    cost: str | None = "0.01",
    model: str = "small",
    failed: tuple[str, ...] = (),
    expected: dict | None = None,
    **changed,
) -> RouteEvent:
    usd = None if cost is None else Decimal(cost)
    expected = {"small": 0.01, "large": 0.05} if expected is None else expected
    decision = RoutingDecision(
        model, ("small", "large"), {"small": 0.8, "large": 0.9}, expected, "usd", {},
        Reason.CHEAPEST_QUALIFIED, "artifact-1", "quality", 0.25,
    )  # fmt: skip
    routed = Routed(
        ("small", "large"), "cheapest_qualified", (Step("filter", "all", {}),), "quality",
        decision, expected, {"small": 0.7}, "f" * 64, "artifact-1", 0.002, 0.001, "session-1",
    )  # fmt: skip
    attempts = (
        *(Attempt(name, "status_503", 0.1) for name in failed),
        Attempt(model, None, 0.5, 0.2, Usage(100, 20, 10, 1), False, usd),
    )
    fields = {
        "decision_id": decision_id, "at": at, "key_id": key_id, "endpoint": "chat",
        "requested": "auto", "routed": routed, "attempts": attempts, "status": 200,
        "stream": False, "error": None, "total_s": 0.6, "config_sha256": "c" * 64,
    }  # fmt: skip
    return RouteEvent(**(fields | changed))


def _rows_of(engine: sa.Engine, table: sa.Table) -> list[dict]:
    with engine.connect() as connection:
        return [dict(row) for row in connection.execute(sa.select(table)).mappings()]
