"""The playground in a real browser, by keyboard and mouse, against the real service."""

from __future__ import annotations

import http.server
import threading
from contextlib import contextmanager

import pytest
from PIL import Image

CONTROL = 2
SCRIPTED = "scripted/a-model-whose-name-is-much-longer-than-any-column-would-like-it-to-be-v2.5"
HOSTILE = (
    "<img src=x onerror=\"document.title='RUN'\"><script>document.title = 'RUN'</script>"
    "<svg onload=\"document.title='RUN'\"></svg>"
)
ROWS = """[...document.querySelectorAll('.candidates .candidate')].map(row => ({
  model: row.querySelector('.name').firstChild.textContent,
  chosen: row.classList.contains('chosen'),
  out: row.classList.contains('out'),
  width: Number(row.querySelector('.value').getAttribute('width')),
  line: row.querySelector('.threshold') &&
    Number(row.querySelector('.threshold').getAttribute('x1')),
  probability: Number(row.querySelector('.probability').textContent),
  cost: row.querySelector('.cost').textContent,
  remark: row.querySelector('.remark')?.textContent ?? null,
}))"""
LOADED = """new Promise(done => {
  const script = document.createElement('script');
  script.src = '%s';
  script.onload = () => done('got');
  script.onerror = () => done('blocked');
  document.head.append(script);
})"""
IDLE = "document.querySelector('#stop').hidden"
ANSWERED = "!document.querySelector('#verdict').hidden"


def explained(page, site, text, *, model="auto"):
    """Press Explain; return the rows on show and what the service says of the same request."""
    page.choose("#model", model)
    page.run("document.querySelector('#text').value = ''")
    page.click("#text")
    page.type(text)
    page.click("#explain")
    page.wait(f"{IDLE} && document.querySelectorAll('.candidates .candidate').length > 0")
    body = {"model": model, "messages": [{"role": "user", "content": text}]}
    return page.run(ROWS), site.post("/v1/route", body, site.sent)[2]


def test_a_key_is_asked_for_kept_in_the_tab_and_forgotten(seen_site, let_in):
    page = let_in()
    assert page.text("#key-id") == f"mr-{seen_site.key_id}"
    assert page.run("document.querySelector('#key').value") == ""
    assert page.run("localStorage.length") == 0
    page.click("#key-forget")
    page.wait_text("#notice", "enter yours above")
    assert page.run("sessionStorage.length") == 0


def test_a_wrong_key_is_told_as_text_and_asked_for_again(seen_site, new_page):
    page = new_page(f"{seen_site.url}/ui")
    page.wait_text("#notice", "enter yours above")
    page.click("#key")
    page.type("mr-abcdefghij-wrong")
    page.press("Enter")
    page.wait_text("#notice", "key")
    page.wait("!document.querySelector('#notice').innerText.includes('enter yours above')")
    assert "wrong" not in page.text("#notice")
    assert page.run("sessionStorage.length") == 0
    assert page.run("document.querySelector('#key-form').hidden") is False


def test_no_key_is_asked_for_where_none_is_needed(site, new_page):
    page = new_page(f"{site.url}/ui")
    page.wait("document.querySelectorAll('#model option').length > 4")
    assert page.run("document.querySelector('#key-form').hidden")
    assert page.run("document.querySelector('#key-held').hidden")
    assert page.text("#notice") == ""
    assert page.complaints == []


def test_models_are_offered_in_two_groups(let_in):
    page = let_in()
    groups = page.run(
        "[...document.querySelectorAll('#model optgroup')].map("
        "g => [...g.children].map(o => o.value))"
    )
    assert {"auto", "auto:picky"} <= set(groups[0])
    assert {"sim-small-vl", SCRIPTED} <= set(groups[1])


def test_thresholds_are_lines_over_bars_of_probability(seen_site, let_in):
    page = let_in()
    rows, told = explained(page, seen_site, "What is 17 + 25?", model="auto:picky")
    assert page.complaints == []
    by_model = {each["model"]: each for each in told["candidates"]}
    assert [row["model"] for row in rows] == [each["model"] for each in told["candidates"]]
    for row in rows:
        probability = by_model[row["model"]]["probability"]
        assert row["width"] == pytest.approx(100 * probability)
        assert row["probability"] == pytest.approx(probability, abs=5e-4)
        assert row["line"] == pytest.approx(75)
        said = "reaches" if probability >= 0.75 else "below"
        assert row["remark"] == f"{said} its threshold of 0.75"
        assert float(row["cost"].strip("$<")) == pytest.approx(
            by_model[row["model"]]["expected_cost"], abs=1e-6
        )
    assert [row["model"] for row in rows if row["chosen"]] == [told["model"]]


def test_a_utility_policy_shows_what_each_is_worth_after_its_price(seen_site, let_in):
    page = let_in()
    rows, told = explained(page, seen_site, "What is 17 + 25?", model="auto:thrifty")
    by_model = {each["model"]: each for each in told["candidates"]}
    worths = []
    for row in rows:
        found = by_model[row["model"]]
        worths.append(found["probability"] - 100 * found["expected_cost"])
        assert row["line"] is None
        assert row["remark"] == f"worth {worths[-1]:.3f} after its price"
    assert worths == sorted(worths, reverse=True)
    assert "a cent weighs 1 of P(good)" in page.text("#decision")


def test_other_policies_show_bars_without_remarks(seen_site, let_in):
    page = let_in()
    rows, _ = explained(page, seen_site, "What is 17 + 25?", model="auto:quality")
    assert [row["remark"] for row in rows] == [None] * 4
    assert "the highest probability" in page.text("#decision .lead")


def test_steps_and_the_decisions_id_are_told(seen_site, let_in):
    page = let_in()
    explained(page, seen_site, "What is 17 + 25?")
    page.click("#decision summary")
    steps = page.wait_text("#decision details", "choose")
    assert "normalise: read" in steps
    assert page.text("#decision code").startswith("dec_")


def test_a_picture_leaves_those_out_that_cannot_see_it(seen_site, let_in, tmp_path):
    for name in ("one.png", "two.png"):
        Image.new("RGB", (20, 12), "teal").save(tmp_path / name)
    page = let_in()
    page.put_files("#pictures", tmp_path / "one.png", tmp_path / "two.png")
    page.wait("document.querySelectorAll('#thumbnails img').length === 2")
    page.wait("[...document.images].every(image => image.naturalWidth === 20)")
    page.click("#thumbnails li:first-child button")
    page.wait("document.querySelectorAll('#thumbnails img').length === 1")
    assert page.run("document.querySelector('#thumbnails img').alt") == "two.png"
    page.click("#explain")
    page.wait("document.querySelectorAll('.candidate.out').length === 2")
    for row in page.run(ROWS):
        assert row["out"] == row["model"].endswith("-text")
        assert ("does not accept image" in (row["remark"] or "")) == row["out"]
    page.click("#thumbnails li:first-child button")
    page.click("#text")
    page.type("What is 17 + 25?")
    page.click("#explain")
    page.wait(f"{IDLE} && !document.querySelector('.candidate.out')")
    assert page.complaints == []


def test_an_answer_by_keyboard_alone_and_feedback_that_the_store_keeps(seen_site, let_in):
    page = let_in()
    page.run("document.querySelector('#text').focus()")
    page.type("What is 17 + 25?")
    page.press("Enter", CONTROL)
    page.wait(ANSWERED)
    told = page.text("#told")
    assert page.run("document.querySelector('#answer').textContent.length") > 0
    assert "done" in told
    assert "tokens" in told
    decision = page.text("#told code")
    page.run("document.querySelector('[data-verdict=bad]').focus()")
    page.press(" ")
    page.wait_text("#verdict-said", "kept")
    assert page.run("document.querySelector('[data-verdict=bad]').ariaPressed") == "true"
    seen_site.service.store.flush()
    summary = seen_site.http("GET", "/ui/api/summary", headers=seen_site.sent)[2].decode()
    assert f'"{decision}"' in summary
    assert '"score":0.0' in summary
    assert page.complaints == []


def test_an_answer_is_shown_while_it_comes(seen_site, let_in, upstream):
    page = let_in()
    upstream.says("first ", None, "second")
    page.choose("#model", SCRIPTED)
    page.click("#text")
    page.type("Say it")
    page.click("#send")
    page.wait_text("#answer", "first")
    assert page.text("#answer").strip() == "first"
    assert page.run("document.querySelector('#send').disabled")
    upstream.gate.set()
    page.wait(ANSWERED)
    assert page.text("#answer") == "first second"
    assert "nothing is predicted" in page.text("#decision .lead")


def test_stop_ends_the_call_to_the_model_too(seen_site, let_in, upstream):
    page = let_in()
    upstream.says("begun", None, "never said")
    page.choose("#model", SCRIPTED)
    page.click("#text")
    page.type("Say it")
    page.click("#send")
    page.wait_text("#answer", "begun")
    page.click("#stop")
    page.wait(IDLE)
    assert "stopped" in page.text("#told")
    assert page.text("#notice") == ""
    assert page.focused() == "send"
    assert upstream.left.wait(10)
    assert page.text("#answer") == "begun"


def test_an_answer_that_breaks_off_is_told(seen_site, let_in, upstream):
    page = let_in()
    upstream.says("half an ans", end=None)
    page.choose("#model", SCRIPTED)
    page.click("#text")
    page.type("Say it")
    page.click("#send")
    page.wait(ANSWERED)
    assert "broke off" in page.text("#told")
    assert page.text("#notice") != ""
    assert page.text("#answer") == "half an ans"


def test_an_empty_prompt_is_not_sent(let_in):
    page = let_in()
    before = len(page.requests)
    page.click("#send")
    page.wait_text("#notice", "nothing to ask")
    assert page.focused() == "text"
    assert len(page.requests) == before


def test_a_refused_request_is_told_as_text(seen_site, let_in):
    page = let_in()
    page.choose("#model", "dead")
    page.click("#text")
    page.type("Say it")
    page.click("#send")
    page.wait_text("#told", "No answer")
    assert page.text("#notice") != ""
    assert page.run("document.querySelector('#verdict').hidden")
    assert page.run(IDLE)


def test_markup_in_prompts_answers_and_file_names_stays_text(seen_site, let_in, upstream, tmp_path):
    page = let_in()
    upstream.says(HOSTILE)
    picture = tmp_path / 'a"onerror="document.title=\'RUN\'".png'
    Image.new("RGB", (2, 2)).save(picture, format="PNG")
    page.put_files("#pictures", picture)
    page.wait("document.querySelector('#thumbnails img')?.naturalWidth === 2")
    page.choose("#model", SCRIPTED)
    page.click("#text")
    page.type(HOSTILE)
    page.click("#send")
    page.wait(ANSWERED)
    assert page.text("#answer") == HOSTILE
    assert page.run("document.title") == "model-router"
    assert page.run("document.querySelectorAll('#answer *').length") == 0
    assert page.complaints == []


@contextmanager
def other_server():
    class Counting(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.server.asked.append(self.path)
            self.send_error(404)

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Counting)
    server.asked = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def test_the_policy_holds_even_against_markup_that_got_in(seen_site, let_in):
    page = let_in()
    with other_server() as (server, url):
        markup = (
            f"<img src='{url}/i' onerror='document.title=1'><iframe src='{url}/f'></iframe>"
            f"<link rel=stylesheet href='{url}/l'><form action='{url}/s'><button>go</button></form>"
        )
        page.run(f"document.querySelector('#answer').innerHTML = {markup!r}")
        page.run("document.querySelector('#answer form').submit()")
        assert page.run(f"fetch('{url}/x').then(() => 'got', () => 'blocked')") == "blocked"
        assert page.run(LOADED % f"{url}/js") == "blocked"
        assert page.run("document.title") == "model-router"
        assert server.asked == []
    assert any("Content Security Policy" in str(each) for each in page.complaints)


def test_nothing_is_asked_of_another_host(seen_site, let_in):
    page = let_in()
    explained(page, seen_site, "What is 17 + 25?")
    asked = [url for url in page.requests if not url.startswith("data:")]
    assert len(asked) >= 9
    assert {url.startswith(f"{seen_site.url}/") for url in asked} == {True}
