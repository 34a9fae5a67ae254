"""Opening and upgrading databases."""

import multiprocessing
import re
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from router_runtime.errors import ConfigError, RouterError
from router_runtime.service.store.engine import located, open_engine, require_current, upgrade
from router_runtime.service.store.tables import metadata
from router_runtime.service_config import StoreConfig


def test_an_upgraded_database_has_the_tables_that_the_code_describes(url):
    engine = open_engine(url)
    upgrade(engine)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []
    engine.dispose()


def test_upgrading_again_changes_nothing(url):
    engine = open_engine(url)
    assert upgrade(engine) == upgrade(engine)
    require_current(engine)
    engine.dispose()


def _upgrade(url, barrier, results):
    engine = open_engine(url)
    barrier.wait()
    try:
        results.put(upgrade(engine))
    except Exception as error:
        results.put(repr(error))


def test_replicas_that_start_together_upgrade_once(url):
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(3), context.Queue()
    replicas = [
        context.Process(target=_upgrade, args=(url, barrier, results), daemon=True)
        for _ in range(3)
    ]
    for replica in replicas:
        replica.start()
    found = [results.get(timeout=60) for _ in replicas]
    for replica in replicas:
        replica.join(10)
    assert found == [found[0]] * 3
    assert re.fullmatch(r"\d{4}", found[0])


def test_a_database_of_a_newer_version_is_refused_and_left_alone(url):
    engine = open_engine(url)
    upgrade(engine)
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    for check in (upgrade, require_current):
        with pytest.raises(ConfigError, match="revision 9999"):
            check(engine)
    engine.dispose()


def test_a_database_that_nobody_made_is_not_made_by_looking(tmp_path):
    engine = open_engine(f"sqlite:///{tmp_path / 'none.db'}")
    with pytest.raises(ConfigError, match="There is no database"):
        require_current(engine)
    assert not (tmp_path / "none.db").exists()


def test_a_database_without_tables_is_to_be_upgraded(postgres_url):
    engine = open_engine(postgres_url)
    with pytest.raises(ConfigError, match=r"\(none\).*model-router db upgrade"):
        require_current(engine)
    engine.dispose()


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("nonsense", "no URL of a database"),
        ("sqlite://", "names no file"),
        ("sqlite:///:memory:", "names no file"),
        ("mysql://u:canary-7@h/d", "works on sqlite and postgresql"),
        ("postgresql+nodriver://u:canary-7@h/d", "driver"),
        ("postgresql+psycopg://u:canary-7@[h/d", "no URL of a database|cannot be used"),
    ],
)
def test_unusable_urls_are_refused_without_showing_a_password(url, problem):
    with pytest.raises(RouterError, match=problem) as caught:
        upgrade(open_engine(url))
    assert "canary-7" not in str(caught.value)


def test_an_unreachable_database_is_named_without_its_password():
    engine = open_engine("postgresql+psycopg://u:canary-7@127.0.0.1:1/d")
    with pytest.raises(RouterError, match=r"u:\*\*\*@127.0.0.1:1/d cannot be used") as caught:
        upgrade(engine)
    assert "canary-7" not in str(caught.value)


def test_relative_paths_start_where_the_config_file_lies(tmp_path):
    found = located(StoreConfig(url="sqlite:///runs/a.db", spool=Path("runs/spool")), tmp_path)
    assert found.url == f"sqlite:///{tmp_path / 'runs/a.db'}"
    assert found.spool == tmp_path / "runs/spool"
    assert located(found, Path("/elsewhere")) == found


def test_the_password_of_a_server_stays_in_the_url(tmp_path):
    config = StoreConfig(url="postgresql+psycopg://u:p%40ss@h/d")
    assert located(config, tmp_path).url == "postgresql+psycopg://u:p%40ss@h/d"


def test_sqlite_lets_readers_and_a_writer_work_together(tmp_path):
    engine = open_engine(f"sqlite:///{tmp_path / 'a.db'}")
    upgrade(engine)
    with engine.connect() as reader, engine.begin() as writer:
        assert reader.execute(sa.text("SELECT count(*) FROM keys")).scalar() == 0
        writer.execute(
            sa.text("INSERT INTO keys (id, name, digest, limits, created_at) VALUES (1,1,1,1,1)")
        )
        assert reader.execute(sa.text("SELECT count(*) FROM keys")).scalar() == 0


def test_a_database_file_is_readable_by_its_owner_only(tmp_path):
    engine = open_engine(f"sqlite:///{tmp_path / 'new' / 'a.db'}")
    upgrade(engine)
    with engine.connect() as connection:
        connection.execute(sa.text("SELECT 1"))
        modes = {path.stat().st_mode & 0o077 for path in (tmp_path / "new").iterdir()}
    assert modes == {0}


def test_a_database_file_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"file/a\.db' cannot be written to"):
        upgrade(open_engine(f"sqlite:///{tmp_path / 'file' / 'a.db'}"))
