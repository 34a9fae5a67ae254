"""The admin API: its own credential, default deny; reload swaps whole or not at all."""

from __future__ import annotations

import json
import os

import pytest
import yaml

from router_runtime.errors import ConfigError
from router_runtime.service.serve import admin_credential


@pytest.mark.parametrize("key", [None, "", "wrong-wrong-wrong-wrong", "none"])
@pytest.mark.parametrize("path", ["/admin/status", "/admin/nothing", "/", "/v1/models"])
def test_nothing_answers_without_the_credential(site, key, path):
    status, body = site.admin("GET", path, key=key)
    assert (status, body["error"]["code"]) == (401, "invalid_admin_key")


def test_the_admin_api_is_not_on_the_services_port(site):
    assert site.http("GET", "/admin/status")[0] == 404


def test_the_status_tells_of_every_part(site):
    site.chat()
    status, told = site.admin("GET", "/admin/status")
    assert status == 200
    assert set(told) >= {"config", "breakers", "store", "limiter", "keys", "in_flight", "sinks"}
    assert told["breakers"]["sim-large-vl"] == "closed"
    assert told["store"]["lost"] == 0
    assert len(told["config"]["config_sha256"]) == 64


def test_a_reload_serves_the_new_config_and_a_rollback_the_old(open_site):
    site = open_site()
    first = site.admin("GET", "/admin/status")[1]["config"]["config_sha256"]
    path = site.folder / "service.yml"
    content = yaml.safe_load(path.read_text())
    content["candidates"] = content["candidates"][:1]
    del content["policies"]
    path.write_text(yaml.safe_dump(content))
    status, told = site.admin("POST", "/admin/reload")
    assert status == 200
    assert told["config_sha256"] != first
    assert site.chat()[1]["x-router-model"] == "sim-large-vl"
    assert site.chat(model="sim-small-text")[0] == 404
    assert site.admin("POST", "/admin/rollback")[1]["config_sha256"] == first
    assert site.chat(model="sim-small-text")[0] == 200


def test_a_broken_config_or_artifact_changes_nothing(open_site):
    site = open_site()
    path = site.folder / "service.yml"
    good = path.read_text()
    path.write_text("candidates: [")
    status, body = site.admin("POST", "/admin/reload")
    assert (status, body["error"]["code"]) == (409, "not_done")
    broken = yaml.safe_load(good)
    broken["artifact"] = str(site.folder / "nothing")
    path.write_text(yaml.safe_dump(broken))
    assert site.admin("POST", "/admin/reload")[0] == 409
    assert site.chat()[0] == 200
    assert site.admin("POST", "/admin/rollback")[0] == 409  # there is no previous one


def test_a_change_that_needs_a_restart_is_told(open_site):
    site = open_site()
    path = site.folder / "service.yml"
    content = yaml.safe_load(path.read_text())
    content["service"]["port"] = 9999
    path.write_text(yaml.safe_dump(content))
    site.admin("POST", "/admin/reload")
    assert site.admin("GET", "/admin/status")[1]["restart_needed_for"] == ["port"]


def test_keys_are_listed_without_digests_and_revoked_at_once(open_site):
    from router_runtime.service.keys import create_key

    site = open_site()
    made = create_key(site.service.store.engine, b"pepper-of-the-tests-0123456789", name="app")
    site.service.keys.refresh()
    sent = {"authorization": f"Bearer {made.key}"}
    assert site.chat()[0] == 401
    assert site.chat(headers=sent)[0] == 200
    status, told = site.admin("GET", "/admin/keys")
    assert status == 200
    assert told["data"][0]["name"] == "app"
    assert "digest" not in json.dumps(told)
    assert site.admin("POST", f"/admin/keys/{made.id}/revoke")[0] == 200
    assert site.chat(headers=sent)[0] == 401
    assert site.admin("POST", "/admin/keys/nobody/revoke")[0] == 409
    assert site.admin("POST", "/admin/keys/nobody")[0] == 404


def test_a_credential_that_can_be_guessed_is_refused():
    assert admin_credential("NAME", {}) is None
    with pytest.raises(ConfigError, match="openssl"):
        admin_credential("NAME", {"NAME": "short"})


def test_no_credential_no_admin_api(site_maker, tmp_path, monkeypatch):
    from contextlib import ExitStack

    from router_runtime.service.serve import ServiceServer

    with ExitStack() as stack:
        made = site_maker(stack, tmp_path)
        with ServiceServer(made.folder / "service.yml", environ=dict(os.environ)) as other:
            assert other.admin_url is None
