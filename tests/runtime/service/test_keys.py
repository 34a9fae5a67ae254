from __future__ import annotations

import hmac
import logging
import time
import uuid
from decimal import Decimal

import pytest
import sqlalchemy
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import create_engine, text
from sqlalchemy.exc import SQLAlchemyError

from router_runtime.errors import ConfigError, DataError, RequestError
from router_runtime.service.keys import (
    Keys,
    create_key,
    limits_from_json,
    limits_to_json,
    list_keys,
    need_pepper,
    read_pepper,
    revoke_key,
)
from router_runtime.service.store.engine import open_engine, upgrade
from router_runtime.service.store.tables import keys as table
from router_runtime.service.values import ANONYMOUS, KeyLimits
from router_runtime.service_config import KeysConfig

PEPPER = b"a pepper of the tests"
POSTGRES = "postgresql+psycopg://postgres@127.0.0.1:5432/test"


def postgres_url():
    """A database of its own, or a skip."""
    name = f"test_keys_{uuid.uuid4().hex}"
    server = create_engine(POSTGRES, isolation_level="AUTOCOMMIT")
    try:
        with server.connect() as connection:
            connection.execute(text(f"CREATE DATABASE {name}"))
    except SQLAlchemyError:
        pytest.skip("no PostgreSQL answers at 127.0.0.1:5432")
    yield sqlalchemy.make_url(POSTGRES).set(database=name).render_as_string(hide_password=False)
    with server.connect() as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    server.dispose()


@pytest.fixture(params=["sqlite", "postgresql"])
def engine(request, tmp_path):
    urls = postgres_url() if request.param == "postgresql" else iter([f"sqlite:///{tmp_path}/s.db"])
    engine = open_engine(next(urls))
    upgrade(engine)
    yield engine
    engine.dispose()
    next(urls, None)


def bearer(key: str) -> bytes:
    return b"Bearer " + key.encode()


def refused(keys: Keys, header: bytes | None) -> RequestError:
    with pytest.raises(RequestError) as error:
        keys.authenticate(header)
    return error.value


def test_a_key_opens_what_it_was_made_for_until_it_is_revoked(engine):
    limits = KeyLimits(requests_per_minute=3, usd_per_day=Decimal("0.10"))
    made = create_key(engine, PEPPER, name="app", allowed_models=["b", "a"], limits=limits)
    keys = Keys(engine, pepper=PEPPER)
    keys.load()
    caller = keys.authenticate(bearer(made.key))
    assert (caller.key_id, caller.name, caller.limits) == (made.id, "app", limits)
    assert caller.may_use("a")
    assert not caller.may_use("c")
    assert keys.authenticate(b"bearer  " + made.key.encode()) == caller

    assert revoke_key(engine, made.id)
    assert keys.refresh()
    assert refused(keys, bearer(made.key)).status == 401
    assert not revoke_key(engine, made.id)
    assert not keys.open_to_all


def test_a_wrong_key_is_refused_whatever_is_wrong_with_it(engine):
    made = create_key(engine, PEPPER, name="app")
    other = create_key(engine, PEPPER, name="other")
    keys = Keys(engine, pepper=PEPPER)
    keys.load()
    swapped = made.key[:14] + other.key[14:]
    cut, longer, unknown = made.key[:-1], made.key + "A", f"mr-aaaaaaaaaa-{made.key[14:]}"
    wrong = [None, b"", b"Bearer", b"Bearer ", b"Basic abc", b"Bearer \xff\x00", made.key.encode()]
    for header in [*wrong, *map(bearer, (swapped, cut, longer, unknown, made.key.upper()))]:
        error = refused(keys, header)
        assert (error.status, error.code) == (401, "invalid_api_key")
        assert made.key[14:] not in str(error)


@pytest.fixture(scope="module")
def revoked(tmp_path_factory):
    """Keys of which none is in force."""
    engine = open_engine(f"sqlite:///{tmp_path_factory.mktemp('keys')}/s.db")
    upgrade(engine)
    revoke_key(engine, create_key(engine, PEPPER, name="app").id)
    keys = Keys(engine, pepper=PEPPER)
    keys.load()
    yield keys
    engine.dispose()


@given(header=st.binary(max_size=80))
def test_no_header_is_an_error_of_our_own(revoked, header):
    assert refused(revoked, header).status == 401


def test_unknown_ids_take_the_same_path_as_known_ones(engine, monkeypatch):
    made = create_key(engine, PEPPER, name="app")
    keys = Keys(engine, pepper=PEPPER)
    keys.load()
    compared = []
    compare = hmac.compare_digest
    monkeypatch.setattr(
        "router_runtime.service.keys.hmac.compare_digest",
        lambda a, b: compared.append((len(a), len(b))) or compare(a, b),
    )
    refused(keys, b"Bearer nonsense")
    refused(keys, bearer(f"mr-aaaaaaaaaa-{made.key[14:]}"))
    keys.authenticate(bearer(made.key))
    assert compared == [(32, 32)] * 3


def test_a_key_that_was_right_is_not_digested_again_until_keys_are_read_again(engine, monkeypatch):
    made = create_key(engine, PEPPER, name="app")
    keys = Keys(engine, pepper=PEPPER)
    keys.load()
    digested = []
    digest = hmac.digest
    monkeypatch.setattr(
        "router_runtime.service.keys.hmac.digest",
        lambda *given: digested.append(1) or digest(*given),
    )
    for _ in range(3):
        assert keys.authenticate(bearer(made.key)).key_id == made.id
    assert len(digested) == 1
    assert keys.refresh()
    assert keys.authenticate(bearer(made.key)).key_id == made.id
    assert len(digested) == 2


def test_without_any_key_everybody_is_anonymous_and_the_first_key_ends_that(engine):
    keys = Keys(engine, pepper=None)
    keys.load()
    assert keys.open_to_all
    assert keys.authenticate(None) is ANONYMOUS
    assert keys.authenticate(b"Bearer anything") is ANONYMOUS
    create_key(engine, PEPPER, name="app")
    assert not keys.refresh()  # no pepper to check it with: nobody is let in
    assert refused(keys, b"Bearer anything").status == 401
    with pytest.raises(ConfigError, match="no pepper"):
        keys.load()


def test_before_the_database_was_read_nobody_is_let_in(tmp_path):
    engine = open_engine(f"sqlite:///{tmp_path}/s.db")
    keys = Keys(engine, pepper=PEPPER)
    assert not keys.refresh()  # there are no tables
    error = refused(keys, b"Bearer x")
    assert (error.status, error.code) == (503, "keys_unavailable")
    assert error.retry_after_s > 0
    assert not keys.open_to_all


def test_a_database_that_dies_leaves_the_last_known_keys_in_force(engine, caplog):
    made = create_key(engine, PEPPER, name="app")
    keys = Keys(engine, pepper=PEPPER)
    keys.load()
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE keys RENAME TO gone"))
    assert not keys.refresh()
    assert not keys.refresh()
    assert keys.authenticate(bearer(made.key)).key_id == made.id
    assert (keys.status()["stale"], keys.status()["refresh_failures"]) == (True, 2)
    assert [record.getMessage() for record in caplog.records].count(
        "keys cannot be read; those last known are in force"
    ) == 1
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE gone RENAME TO keys"))
    assert keys.refresh()
    assert not keys.stale


def test_new_keys_work_in_a_running_service(engine):
    keys = Keys(engine, pepper=PEPPER, refresh_s=0.01)
    keys.load()
    keys.start()
    made = create_key(engine, PEPPER, name="app")
    for _ in range(1000):
        if not keys.open_to_all:
            break
        time.sleep(0.01)
    assert keys.authenticate(bearer(made.key)).key_id == made.id
    keys.close()


def test_a_row_that_cannot_be_read_refuses_its_key_and_no_other(engine, caplog):
    good, bad = create_key(engine, PEPPER, name="good"), create_key(engine, PEPPER, name="bad")
    with engine.begin() as connection:
        damaged = table.update().where(table.c.id == bad.id)
        connection.execute(damaged.values(limits={"usd_per_day": "much"}))
    keys = Keys(engine, pepper=PEPPER)
    keys.load()
    keys.load()
    assert keys.authenticate(bearer(good.key)).key_id == good.id
    assert refused(keys, bearer(bad.key)).status == 401
    assert keys.status()["unusable"] == [bad.id]
    assert len(caplog.records) == 1


def test_nothing_but_the_answer_of_create_ever_shows_a_key(engine, caplog):
    caplog.set_level(logging.DEBUG)
    made = create_key(engine, PEPPER, name="app")
    secret = made.key[14:]
    keys = Keys(engine, pepper=PEPPER)
    keys.load()
    caller = keys.authenticate(bearer(made.key))
    error = refused(keys, bearer(made.key + "x"))
    with engine.connect() as connection:
        stored = connection.execute(table.select()).all()
    shown = [made, caller, keys.status(), list_keys(engine), stored, vars(error), caplog.text]
    for value in shown:
        assert secret not in repr(value)
        assert PEPPER.decode() not in repr(value)


def test_keys_are_listed_with_what_they_may_do(engine):
    limits = KeyLimits(tokens_per_minute=5, usd_per_month=Decimal("1.50"))
    first = create_key(engine, PEPPER, name="a", limits=limits, now_s=1.0)
    second = create_key(engine, PEPPER, name="b", allowed_models=["x", "x"], now_s=2.0)
    revoke_key(engine, first.id, now_s=3.0)
    one, two = list_keys(engine)
    assert (one.id, one.limits, one.revoked_at) == (first.id, limits, 3.0)
    assert (two.id, two.allowed_models, two.revoked_at) == (second.id, ("x",), None)
    with pytest.raises(ConfigError, match="no key with the id 'nobody'"):
        revoke_key(engine, "nobody")


def test_a_key_needs_its_own_pepper(engine):
    made = create_key(engine, PEPPER, name="app")
    keys = Keys(engine, pepper=b"another pepper of the tests")
    keys.load()
    assert refused(keys, bearer(made.key)).status == 401


def test_the_pepper_comes_from_the_environment_and_is_long_enough():
    config = KeysConfig(pepper_env="PEPPER")
    assert read_pepper(config, {}) is None
    assert read_pepper(config, {"PEPPER": "0123456789abcdef"}) == b"0123456789abcdef"
    with pytest.raises(ConfigError, match="PEPPER has 5 bytes") as error:
        read_pepper(config, {"PEPPER": "short"})
    assert "short" not in str(error.value)
    with pytest.raises(ConfigError, match=r"PEPPER is not set.*openssl rand"):
        need_pepper(config, {})


usd = st.none() | st.decimals(min_value=0, max_value=10**9, places=9)
counts = st.none() | st.integers(1, 10**9)


@given(st.builds(KeyLimits, counts, counts, counts, usd, usd))
def test_limits_survive_being_kept(limits):
    assert limits_from_json(limits_to_json(limits), key_id="k") == limits


@pytest.mark.parametrize(
    "content",
    [None, [], "x", {"requests_per_hour": 1}, {"usd_per_day": "-1"}, {"usd_per_day": "NaN"},
     {"max_concurrency": None}, {"tokens_per_minute": []}],
)  # fmt: skip
def test_a_limit_that_cannot_be_read_is_no_licence(content):
    with pytest.raises(DataError, match="Key 'k'"):
        limits_from_json(content, key_id="k")
