"""Keys, texts and pictures are nowhere but where they belong, whatever a provider quotes."""

from __future__ import annotations

import base64
import io
import json
import logging
import sqlite3
import threading
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import PIL.Image
import pytest
from PIL.PngImagePlugin import PngInfo

from router_runtime.service.keys import create_key
from router_runtime.service.logs import configure_logs

PEPPER = "pepper-of-the-tests-0123456789"
ADMIN_KEY = "admin-credential-of-the-tests"
UPSTREAM_KEY = "sk-canary-upstream-5d1c0b7e9f"
WORDS = "the canary sings at midnight"
SPELT = {
    "user": "canary-user-name",
    "metadata": {"note": "canary-metadata"},
    "tools": [
        {"type": "function", "function": {"name": "canary_tool", "parameters": {"type": "object"}}}
    ],
}
SESSION, COMMENT, NO_MODEL = "canary-session-name", "canary-comment", "canary-model-name"
STATUSES = (400, 401, 403, 404, 422, 429, 500, 503)


def picture():
    """A PNG whose bytes hold a canary, as a data URI."""
    told = PngInfo()
    told.add_text("Comment", "canary-in-a-picture")
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (16, 16), "red").save(buffer, "PNG", pnginfo=told)
    return buffer.getvalue()


class Quoting(BaseHTTPRequestHandler):
    """A provider that quotes key and request in everything that it says; ``model`` says how."""

    def do_POST(self):
        sent = self.rfile.read(int(self.headers["content-length"])).decode()
        how = json.loads(sent)["model"].removeprefix("quotes-")
        said = f"{self.headers['authorization']} asked {sent}"
        error = {"error": {"message": said, "type": said, "code": said, "param": said}}
        if how == "stream":
            chunk = {"choices": [{"index": 0, "delta": {"content": "So"}, "finish_reason": None}]}
            events = b"".join(b"data: %s\n\n" % json.dumps(e).encode() for e in (chunk, error))
            return self._send(200, events, "text/event-stream")
        if how == "words":
            return self._send(200, said.encode(), "text/plain")
        return self._send(200 if how == "ok" else int(how), json.dumps(error).encode())

    def _send(self, status, body, kind="application/json"):
        self.send_response(status, "quoted")
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.send_header("x-request-id", "of-the-provider")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class Collector(BaseHTTPRequestHandler):
    """Takes spans, and keeps their bytes."""

    def do_POST(self):
        self.server.bodies.append(self.rfile.read(int(self.headers["content-length"])))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


def served(stack, handler):
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.bodies = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    stack.callback(server.server_close)
    stack.callback(server.shutdown)
    return server


@pytest.fixture(scope="module")
def logged():
    """All that is logged at the level of debug, as serving logs it."""
    root, ours = logging.getLogger(), logging.getLogger("router_runtime")
    before = root.handlers[:], root.level, ours.level
    stream = io.StringIO()
    configure_logs("debug", stream=stream)
    yield stream
    root.handlers[:], level, our_level = before
    root.setLevel(level)
    ours.setLevel(our_level)


@pytest.fixture(scope="module")
def played(site_maker, tmp_path_factory, logged):
    """A site after every kind of request and failure: (site, key, answers, places)."""
    with ExitStack() as stack:
        provider, collector = served(stack, Quoting), served(stack, Collector)
        ways = [*map(str, STATUSES), "ok", "stream", "words"]

        def edit(content):
            content["direct"] += [
                {
                    "id": f"quotes-{how}",
                    "target": {
                        "kind": "compatible",
                        "base_url": f"http://127.0.0.1:{provider.server_port}/v1",
                        "api_key_env": "UPSTREAM_KEY",
                    },
                }
                for how in ways
            ]
            content["service"]["traces"] = {
                "endpoint": f"http://127.0.0.1:{collector.server_port}/v1/traces"
            }

        site = site_maker(
            stack,
            tmp_path_factory.mktemp("site"),
            edit=edit,
            environ={"UPSTREAM_KEY": UPSTREAM_KEY},
        )
        key = create_key(site.service.store.engine, PEPPER.encode(), name="of a test").key
        site.service.keys.refresh()
        answers = play(site, key, ways)
        assert site.service.store.flush()
        site.service.tracing.flush()
        places = {
            "metrics": site.http("GET", "/metrics", None, {"authorization": f"Bearer {key}"})[2],
            "admin": json.dumps(
                [site.admin("GET", path)[1] for path in ("/admin/status", "/admin/keys")]
            ).encode(),
            "traces": b"".join(collector.bodies),
            "log": logged.getvalue().encode(),
            **{
                str(path.relative_to(site.folder)): path.read_bytes()
                for path in site.folder.rglob("*")
                if path.is_file() and path.name != "service.yml"
            },
        }
        yield site, key, answers, places


def play(site, key, ways):
    """Ask in every way; return (what, status, headers, body) of each answer."""
    sent = {"authorization": f"Bearer {key}", "x-session-id": SESSION, "content-type": JSON}
    parts = [
        {"type": "text", "text": WORDS},
        {"type": "image_url", "image_url": {"url": data_uri(picture())}},
    ]
    plain = {"messages": [{"role": "user", "content": WORDS}], **SPELT}
    bodies = {
        "routed": {**plain, "model": "auto"},
        "streamed": {**plain, "model": "auto", "stream": True},
        "seen": {"model": "auto", "messages": [{"role": "user", "content": parts}]},
        "unknown": {**plain, "model": NO_MODEL},
        "controls": {**plain, "model": "auto", "router": {WORDS: WORDS}},
        "policy": {**plain, "model": f"auto:{NO_MODEL}"},
        "allowed": {**plain, "model": "auto", "router": {"allow": [NO_MODEL]}},
        "role": {**plain, "model": "auto", "messages": [{"role": WORDS, "content": WORDS}]},
        "bad picture": {
            "model": "auto",
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "image_url", "image_url": {"url": data_uri(WORDS.encode())}}
                    ],
                }
            ],
        },
        **{how: {**plain, "model": f"quotes-{how}"} for how in ways},
        "stream": {**plain, "model": "quotes-stream", "stream": True},
    }
    answers = [
        (what, *site.http("POST", "/v1/chat/completions", body, sent))
        for what, body in bodies.items()
    ]
    answers.append(("broken", *site.http("POST", "/v1/chat/completions", WORDS.encode(), sent)))
    decision = answers[0][2]["x-router-decision-id"]
    told = {"decision_id": decision, "score": 1, "comment": COMMENT}
    answers.append(("feedback", *site.http("POST", "/v1/feedback", told, sent)))
    wrong = {**sent, "authorization": f"Bearer {key[:-4]}wxyz"}
    answers.append(("wrong key", *site.http("POST", "/v1/route", plain, wrong)))
    answers.append(("no path", *site.http("GET", f"/{NO_MODEL}", None, sent)))
    return answers


JSON = "application/json"


def data_uri(data):
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def test_every_way_was_gone(played):
    statuses = {what: status for what, status, _, _ in played[2]}
    assert statuses["routed"] == statuses["streamed"] == statuses["seen"] == 200
    assert statuses["400"] == 400
    assert statuses["422"] == 422
    assert statuses["401"] == statuses["500"] == statuses["ok"] == statuses["words"] == 502
    assert statuses["429"] == 429
    assert statuses["feedback"] == 201
    assert statuses["wrong key"] == 401
    places = played[3]
    assert len(places["traces"]) > 500
    assert b"request failed" in places["log"]
    assert any(name.endswith(".db") for name in places)


def test_no_key_is_in_logs_metrics_traces_or_files(played):
    for secret in (played[1], UPSTREAM_KEY, PEPPER, ADMIN_KEY):
        for part in (secret, secret.rpartition("-")[2]):
            for place, data in played[3].items():
                assert part.encode() not in data, place


@pytest.mark.parametrize(
    "words",
    [
        WORDS,
        "sings at",
        "canary-user-name",
        "canary-metadata",
        "canary_tool",
        "canary-in-a-picture",
        SESSION,
        COMMENT,
        NO_MODEL,
    ],
)
def test_nothing_that_was_asked_is_in_logs_metrics_traces_or_files(played, words):
    for place, data in played[3].items():
        assert words.encode() not in data, place


def test_what_waits_in_the_journal_is_no_content_either(played):
    site, key, _, _ = played
    with sqlite3.connect(site.folder / "service.db", isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        body = {"model": "auto", "messages": [{"role": "user", "content": WORDS}], **SPELT}
        sent = {"authorization": f"Bearer {key}", "x-session-id": SESSION}
        decision = site.post("/v1/chat/completions", body, sent)[1]["x-router-decision-id"]
        spool = b"".join(p.read_bytes() for p in (site.folder / "spool").iterdir() if p.is_file())
        other.execute("ROLLBACK")
    assert decision.encode() in spool
    for words in (WORDS, "canary", key, key.rpartition("-")[2]):
        assert words.encode() not in spool


def test_no_part_of_a_picture_is_kept(played):
    encoded = base64.b64encode(picture())
    for place, data in played[3].items():
        for piece in (encoded[40:80], picture()[33:60]):
            assert piece not in data, place


def test_no_answer_holds_a_key(played):
    _, key, answers, _ = played
    for what, _, headers, body in answers:
        told = json.dumps(headers).encode() + body
        for secret in (key, UPSTREAM_KEY, PEPPER, ADMIN_KEY):
            assert secret.encode() not in told, what


def test_what_a_provider_says_of_the_request_reaches_its_author_without_the_key(played):
    bodies = {what: body for what, _, _, body in played[2]}
    for what in ("400", "422", "stream"):
        assert WORDS.encode() in bodies[what], what
        assert b"Bearer ***" in bodies[what], what


def test_other_errors_repeat_nothing_of_the_request(played):
    ours = ("unknown", "bad picture", "broken", "401", "500", "words")
    for what, status, headers, body in played[2]:
        if what in ours:
            told = json.dumps(headers).encode() + body
            assert status >= 400, what
            assert b"canary" not in told, (what, told)
            assert b"sings" not in told, (what, told)
