"""The page's files and its summary over HTTP."""

from __future__ import annotations

import json
import re
from importlib.resources import files

import pytest
from sqlalchemy.exc import OperationalError

from router_runtime.service.dashboard import Dashboard
from router_runtime.service.web import FILES, SUMMARY

FOLDER = files("router_runtime.service").joinpath("ui")


@pytest.mark.parametrize("path", sorted(FILES))
def test_files_come_with_their_type_and_a_policy_that_keeps_them_at_home(site, path):
    status, headers, body = site.http("GET", path)
    assert status == 200
    assert headers["content-type"].encode() == FILES[path][1]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    policy = headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self';")
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert body == FOLDER.joinpath(FILES[path][0]).read_bytes()


def test_every_file_of_the_folder_is_served():
    assert {name for name, _ in FILES.values()} == {each.name for each in FOLDER.iterdir()}


def test_what_files_import_and_link_is_served():
    for name, _ in FILES.values():
        text = FOLDER.joinpath(name).read_text(encoding="utf-8")
        found = re.findall(r'from "\./([^"]+)"', text) + re.findall(r'"ui/([^"?]+\.\w+)"', text)
        assert {f"/ui/{each}" for each in found} <= set(FILES), name


def test_files_name_no_other_host_and_hold_no_script_or_style_inline():
    for name, _ in FILES.values():
        text = FOLDER.joinpath(name).read_text(encoding="utf-8")
        hosts = set(re.findall(r"(?:https?:)?//([\w.-]+\.\w+)", text))
        assert hosts <= {"www.w3.org"}, name  # the name of SVG, which nobody loads
        assert not re.search(r"innerHTML|outerHTML|insertAdjacent|eval\(|\bstyle=|\bon\w+=", text)


def test_a_file_that_has_not_changed_is_not_sent_again(site):
    _, headers, _ = site.http("GET", "/ui/app.js")
    again = {"if-none-match": headers["etag"]}
    assert site.http("GET", "/ui/app.js", headers=again)[::2] == (304, b"")
    assert site.http("GET", "/ui/style.css", headers=again)[0] == 200


def test_heads_are_answered_without_a_body(site):
    status, headers, body = site.http("HEAD", "/ui")
    assert (status, body) == (200, b"")
    assert headers["content-type"].startswith("text/html")


def test_the_path_with_a_slash_leads_to_the_page(site):
    status, headers, _ = site.http("GET", "/ui/")
    assert (status, headers["location"]) == (308, "../ui")


def summary(site, query="", headers=None):
    status, found, data = site.http("GET", f"{SUMMARY}{query}", headers=headers)
    return status, found, json.loads(data)


def test_the_summary_is_not_kept_by_caches(site):
    status, headers, told = summary(site)
    assert (status, headers["cache-control"]) == (200, "no-store")
    assert told["baseline"] == "sim-large-vl"


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf", "x", "1e99", "31622401"])
def test_seconds_that_are_none_are_refused(site, seconds):
    status, _, told = summary(site, f"?seconds={seconds}")
    assert (status, told["error"]["param"]) == (400, "seconds")


def test_the_summary_of_a_key_needs_the_key_and_tells_its_own_requests(open_site):
    from router_runtime.service.keys import create_key

    site = open_site()
    sent = []
    for name in ("one", "two"):
        made = create_key(site.service.store.engine, b"pepper-of-the-tests-0123456789", name=name)
        sent.append({"authorization": f"Bearer {made.key}"})
    site.service.keys.refresh()
    site.chat(headers=sent[0])
    site.service.store.flush()
    assert summary(site)[0] == 401
    assert summary(site, headers=sent[0])[2]["requests"] == 1
    assert summary(site, headers=sent[1])[2]["requests"] == 0


def test_a_database_that_is_away_is_told(site, monkeypatch):
    def away(*_):
        raise OperationalError("", {}, Exception("secret"))

    monkeypatch.setattr(Dashboard, "_read", away)
    status, headers, told = summary(site)
    assert (status, told["error"]["code"]) == (503, "store_unavailable")
    assert headers["retry-after"] == "5"
    assert "secret" not in json.dumps(told)
