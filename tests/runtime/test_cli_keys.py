"""``model-router keys`` as a user types it, on a real database file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from router_runtime.cli_keys import keys_app
from router_runtime.console import run_app
from router_runtime.service.keys import Keys
from router_runtime.service.store.engine import open_engine

PEPPER = "a pepper of the tests"


@pytest.fixture
def config(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("MODEL_ROUTER_PEPPER", PEPPER)
    monkeypatch.setenv("COLUMNS", "200")
    file = tmp_path / "router.yml"
    file.write_text(
        "artifact: nowhere\n"
        "candidates: [{id: small}, {id: large}]\n"
        "service: {store: {url: 'sqlite:///runs/service.db'}}\n"
    )
    return file


@pytest.fixture
def call(monkeypatch, capsys):
    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["keys", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            run_app(keys_app)
        return (ended.value.code, *capsys.readouterr())

    return run


def test_a_key_is_shown_once_works_and_is_revoked(config, call, tmp_path):
    limits = ("--usd-per-day", "2.50", "--requests-per-minute", 60, "--allow", "small")
    status, key, said = call("create", "--config", config, "--name", "app", *limits)
    assert (status, key.count("\n")) == (0, 1)
    assert key.strip() not in said
    keys = Keys(open_engine(f"sqlite:///{tmp_path}/runs/service.db"), pepper=PEPPER.encode())
    keys.load()
    caller = keys.authenticate(b"Bearer " + key.strip().encode())
    assert caller.allowed_models == {"small"}
    assert str(caller.limits.usd_per_day) == "2.50"

    status, shown, _ = call("list", "--config", config)
    assert status == 0
    assert all(part in shown for part in (caller.key_id, "app", "small", "usd_per_day 2.50"))
    assert key.strip()[14:] not in shown
    (row,) = json.loads(call("list", "--config", config, "--json")[1])["keys"]
    assert row["limits"] == {"requests_per_minute": 60, "usd_per_day": "2.50"}
    assert (row["allowed_models"], row["revoked_at"]) == (["small"], None)

    assert "is revoked" in call("revoke", caller.key_id, "--config", config)[1]
    assert "revoked before" in call("revoke", caller.key_id, "--config", config)[1]
    again = json.loads(call("revoke", caller.key_id, "--config", config, "--json")[1])
    assert again == {"id": caller.key_id, "revoked_now": False}
    assert "revoked 20" in call("list", "--config", config)[1]
    keys.load()
    assert keys.status()["keys"] == 0


def test_a_key_is_created_as_json(config, call):
    status, shown, _ = call("create", "--config", config, "--name", "app", "--json")
    made = json.loads(shown)
    assert (status, made["name"]) == (0, "app")
    assert set(made) == {"id", "name", "key"}
    assert made["id"] in call("list", "--config", config)[1]


def test_an_empty_list_says_what_that_means(config, call):
    assert "open to everybody on this machine" in call("list", "--config", config)[1]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("create", "--name", "x", "--allow", "smal"), "'smal' is no candidate (known: small,"),
        (("create", "--name", "x", "--usd-per-day", "much"), "--usd-per-day must be US dollars"),
        (("create", "--name", "x", "--usd-per-month", "-1"), "--usd-per-month must be US dollars"),
        (("revoke", "nobody"), "no key with the id 'nobody'"),
    ],
)
def test_a_mistake_is_one_line_that_says_how_to_mend_it(config, call, arguments, problem):
    status, _, said = call(*arguments, "--config", config)
    assert status == 2
    assert problem in said
    assert said.count("\n") == 1


def test_without_a_pepper_no_key_is_made(config, call, monkeypatch):
    monkeypatch.delenv("MODEL_ROUTER_PEPPER")
    status, key, said = call("create", "--config", config, "--name", "x")
    assert (status, key) == (2, "")
    assert "MODEL_ROUTER_PEPPER is not set" in said
