"""Keys know nothing of each other, and none of them opens the admin API."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
from sqlalchemy import select

from router_runtime.service import admin
from router_runtime.service.keys import create_key
from router_runtime.service.store import tables

PEPPER = b"pepper-of-the-tests-0123456789"


@pytest.fixture(scope="module")
def two_keys(site_maker, tmp_path_factory):
    """A site with two keys: (site, headers of one, headers of the other)."""
    with ExitStack() as stack:
        site = site_maker(stack, tmp_path_factory.mktemp("two"))
        made = [create_key(site.service.store.engine, PEPPER, name=n).key for n in ("a", "b")]
        site.service.keys.refresh()
        yield site, *({"authorization": f"Bearer {key}"} for key in made)


def test_feedback_on_anothers_answer_is_refused_like_feedback_on_none(two_keys):
    site, mine, theirs = two_keys
    decision = site.chat(headers=mine)[1]["x-router-decision-id"]
    site.service.store.flush()
    found = [
        site.post("/v1/feedback", {"decision_id": name, "score": 1}, headers)[::2]
        for name, headers in ((decision, theirs), ("dec_unknown", theirs), ("dec_unknown", mine))
    ]
    assert found[0][0] == 404
    assert found[0] == found[1] == found[2]
    assert site.post("/v1/feedback", {"decision_id": decision, "score": 1}, mine)[0] == 201


def test_what_one_key_asked_is_not_known_before_to_another(two_keys):
    site, mine, theirs = two_keys
    body = {"messages": [{"role": "user", "content": "Has anybody else asked precisely this?"}]}

    def features(headers):
        steps = site.post("/v1/route", body, headers)[2]["steps"]
        return next(step["reason"] for step in steps if step["name"] == "features")

    assert [features(mine), features(mine)] == ["encoded", "cached"]
    assert [features(theirs), features(theirs)] == ["encoded", "cached"]


def test_a_conversation_of_one_key_is_not_continued_by_another(two_keys):
    site, mine, theirs = two_keys
    named = {"x-session-id": "the same name"}
    stays = {"router": {"allow": ["sim-large-text"]}, "model": "auto"}
    assert site.chat("Hi", headers={**mine, **named}, **stays)[0] == 200
    reasons = [
        site.chat("What is 17 + 25?", headers={**headers, **named})[1]["x-router-reason"]
        for headers in (mine, theirs)
    ]
    assert reasons[1] != "sticky"
    site.service.store.flush()
    with site.service.store.engine.connect() as connection:
        rows = connection.execute(select(tables.decisions.c.key_id, tables.decisions.c.session))
        sessions: dict[str, set[str]] = {}
        for key_id, session in rows:
            sessions.setdefault(session, set()).add(key_id)
    assert all(len(keys) == 1 for session, keys in sessions.items() if session)


def test_the_admin_api_is_no_part_of_the_service_and_keys_do_not_open_it(two_keys):
    site, mine, _ = two_keys
    for path in ("/admin/status", "/admin/keys", "/admin/reload"):
        assert site.http("GET", path, None, mine)[0] == 404
        status, headers, _ = site.http("GET", path, None, mine, url=site.server.admin_url)
        assert status == 401
        assert headers["www-authenticate"] == "Bearer"
    assert site.server.admin_url.startswith("http://127.0.0.1:")


def test_wrong_admin_credentials_are_compared_whole(two_keys, monkeypatch):
    """Every wrong credential, whatever its length, takes the path that the right one takes."""
    site, compare = two_keys[0], admin.hmac.compare_digest
    compared = []

    def watched(one, other):
        compared.append((len(one), len(other)))
        return compare(one, other)

    monkeypatch.setattr(admin.hmac, "compare_digest", watched)
    right = "admin-credential-of-the-tests"
    for wrong in ("", "x", right[:-1], right + "x", "é" * 40):
        assert site.admin("GET", "/admin/status", key=wrong.encode().decode("latin-1"))[0] == 401
    assert site.admin("GET", "/admin/status")[0] == 200
    assert compared == [(32, 32)] * 6
