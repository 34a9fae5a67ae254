"""Paths lead to endpoints; others are refused in the envelope."""

from __future__ import annotations

import asyncio
import json

from router_runtime.service.app import App
from router_runtime.service.asgi import send_json


async def hello(scope, receive, send):
    await send_json(send, {"path": scope["path"]})


APP = App({"/a": {"GET": hello}, "/b": {"POST": hello}}, below=[("/m/", {"*": hello})])


def ask(method, path, app=APP):
    sent = []

    async def send(message):
        sent.append(message)

    async def receive():
        return {"type": "http.request", "body": b""}

    scope = {"type": "http", "method": method, "path": path, "headers": []}
    asyncio.run(app(scope, receive, send))
    body = json.loads(b"".join(message.get("body", b"") for message in sent))
    return sent[0]["status"], dict(sent[0]["headers"]), body


def test_a_path_leads_to_its_endpoint():
    assert ask("GET", "/a")[0] == 200
    assert ask("POST", "/b")[2] == {"path": "/b"}
    assert ask("HEAD", "/a")[0] == 200


def test_what_lies_below_a_prefix_is_found_with_any_method():
    assert ask("GET", "/m/x/y")[2] == {"path": "/m/x/y"}
    assert ask("PUT", "/m/")[0] == 200


def test_an_unknown_path_is_refused_in_the_envelope():
    status, _, body = ask("GET", "/c")
    assert status == 404
    assert body["error"]["code"] == "not_found"


def test_another_method_is_refused_and_the_right_one_named():
    status, headers, body = ask("DELETE", "/b")
    assert status == 405
    assert headers[b"allow"] == b"POST"
    assert body["error"]["code"] == "method_not_allowed"


def test_web_sockets_are_closed():
    sent = []

    async def send(message):
        sent.append(message)

    asyncio.run(APP({"type": "websocket", "path": "/a"}, None, send))
    assert sent == [{"type": "websocket.close", "code": 1000}]
