"""The dashboard in a real browser says what the store says."""

from __future__ import annotations

import pytest

from router_runtime.service.spending import spending
from router_runtime.service.store.queries import recent

SCRIPTED = "scripted/a-model-whose-name-is-much-longer-than-any-column-would-like-it-to-be-v2.5"
TILES = """Object.fromEntries([...document.querySelectorAll('#totals > div')].map(tile =>
  [tile.querySelector('dt').textContent, tile.querySelector('.figure').textContent]))"""
CELLS = """[...document.querySelectorAll('%s tbody tr')].map(row =>
  [...row.children].map(cell => cell.textContent))"""
DRAWN = "document.querySelectorAll('#recent tbody tr').length"


@pytest.fixture(scope="module")
def busy(seen_site, upstream):
    """The site after some traffic: answers, decisions only, failures, feedback."""
    site = seen_site
    upstream.says("half an ans", end=None)
    for n in range(12):
        site.chat(f"What is {n} + 25?", headers=site.sent)
    site.chat("Hello", model="auto:quality", headers=site.sent)
    site.chat("Hello", model="dead", headers=site.sent)
    site.chat("Hello", model="dead", headers=site.sent)
    site.chat("Hello", router={"dry_run": True}, headers=site.sent)
    scripted = {"model": SCRIPTED, "messages": [{"role": "user", "content": "Say"}], "stream": True}
    site.http("POST", "/v1/chat/completions", scripted, site.sent)
    liked = site.chat("Hello", headers=site.sent)[1]["x-router-decision-id"]
    site.post("/v1/feedback", {"decision_id": liked, "verdict": "good"}, site.sent)
    site.service.store.flush()
    return site


@pytest.fixture
def seen(busy, let_in):
    """The dashboard of it, drawn; time goes on by ``tick`` only."""
    page = let_in(before="window.ticks = []; window.setInterval = tick => ticks.push(tick)")
    page.click("#tab-dashboard")
    page.wait(f"{DRAWN} > 10")
    return page


def dollars(text):
    return float(text.strip("<$").replace(",", ""))


def test_totals_are_the_stores(busy, seen):
    report = spending(busy.service.store.engine, key_id=busy.key_id, baseline="sim-large-vl")
    tiles = seen.run(TILES)
    assert tiles["Requests"] == str(report.total.requests) == "18"
    assert tiles["Failed"] == "2"
    assert dollars(tiles["Spent"]) == pytest.approx(float(report.total.cost_usd), rel=0.05)
    assert dollars(tiles["Saved"]) == pytest.approx(report.total.saved_usd, rel=0.05)
    assert "1 decided only" in seen.text("#totals")
    assert "less than sim-large-vl" in seen.text("#totals")
    assert seen.complaints == []


def test_calls_by_model_are_the_stores(busy, seen):
    report = spending(busy.service.store.engine, key_id=busy.key_id)
    lines = {line.name: line for line in report.lines}
    answered = sum(line.requests for line in report.lines if line.name != "(no answer)")
    rows = seen.run(CELLS % "#shares")
    assert {row[0] for row in rows} == {name for name in lines if name != "(no answer)"}
    for model, _, share, failed, cost in rows:
        assert share == f"{100 * lines[model].requests / answered:.1f} %"
        assert failed == (str(lines[model].failed) if lines[model].failed else "–")  # noqa: RUF001
        assert dollars(cost) == pytest.approx(float(lines[model].cost_usd), abs=1e-6)


def test_the_latency_is_split(seen):
    parts = [row[0] for row in seen.run(CELLS % "#latency")]
    assert parts == ["Whole request", "Waiting for models", "Deciding", "of it, encoding"]


def test_breakers_are_told_in_words(seen):
    states = dict(seen.run(CELLS % "#breakers"))
    assert states["dead"] == "open, resting"
    assert states["sim-small-vl"] == "closed"


def test_recent_decisions_are_the_stores(busy, seen):
    found = recent(busy.service.store.engine, limit=25, key_id=busy.key_id)
    rows = seen.run(CELLS % "#recent")
    assert [row[1] for row in rows] == [each.requested for each in found]
    assert [row[4] for row in rows] == [str(each.status) for each in found]
    assert rows[0][7] == "good"
    assert sum("(not called)" in row[2] for row in rows) == 1


def test_the_timeline_is_described_in_words(seen):
    drawing = "document.querySelector('#timeline svg')"
    assert "Requests over time" in seen.run(f"{drawing}.getAttribute('aria-label')")
    heights = (
        f"[...{drawing}.querySelectorAll('.value')].filter(bar => +bar.getAttribute('height') > 0)"
    )
    assert 1 <= seen.run(f"{heights}.length") <= 3


TICK = "ticks.forEach(tick => tick())"


def one_more(site):
    site.chat("Hello again", model="sim-small-vl", headers=site.sent)
    site.service.store.flush()


def test_new_requests_appear_by_themselves_unless_paused(busy, seen):
    rows = seen.run(DRAWN)
    one_more(busy)
    seen.run(TICK)
    seen.wait(f"{DRAWN} === {rows + 1}")
    seen.click("#live")
    before = len(seen.requests)
    one_more(busy)
    seen.run(TICK)
    assert len(seen.requests) == before
    seen.click("#live")
    seen.wait(f"{DRAWN} === {rows + 2}")


def test_nothing_is_asked_while_the_dashboard_is_not_on_show(seen):
    seen.click("#tab-playground")
    before = len(seen.requests)
    seen.run(TICK)
    assert len(seen.requests) == before


def test_another_window_is_asked_for(seen):
    seen.choose("#window", "3600")
    seen.wait("document.querySelector('.axis').innerText.includes('1.3 min')")
    assert any(url.endswith("seconds=3600") for url in seen.requests)


def test_an_empty_dashboard_says_so(site, new_page):
    page = new_page(f"{site.url}/ui")
    page.click("#tab-dashboard")
    page.wait_text("#recent", "No decisions yet")
    assert "No requests in this window" in page.text("#timeline")
    assert page.run(TILES)["Saved"] == "–"  # noqa: RUF001
    assert page.complaints == []


def test_a_database_that_is_away_is_told_until_it_is_back(busy, seen, monkeypatch):
    from sqlalchemy.exc import OperationalError

    from router_runtime.service.dashboard import Dashboard

    def away(*_):
        raise OperationalError("", {}, Exception())

    with monkeypatch.context() as patch:
        patch.setattr(Dashboard, "_read", away)
        seen.choose("#window", "604800")
        seen.wait_text("#notice", "nothing to show yet")
    seen.choose("#window", "86400")
    seen.wait("document.querySelector('#notice').innerText === ''")
