"""Hostile requests: each is refused in the envelope, at once, and the service goes on."""

from __future__ import annotations

import base64
import io
import json
import socket
import struct
import threading
import time
import zlib
from contextlib import ExitStack

import openai
import PIL.Image
import pytest

from router_runtime.service.keys import create_key

PEPPER = b"pepper-of-the-tests-0123456789"
ANSWER_S = 20.0
SMALL_BODY = {"requests": {"max_body_bytes": 65_536}}


@pytest.fixture(scope="module")
def small(site_maker, tmp_path_factory):
    """A site that takes bodies up to 64 KiB."""
    with ExitStack() as stack:
        yield site_maker(stack, tmp_path_factory.mktemp("small"), service=SMALL_BODY)


def raw(site, data, *, close_after=None):
    """Send bytes as they are; return all that comes back until the service hangs up."""
    host, port = site.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=ANSWER_S) as connection:
        connection.sendall(data)
        received = b""
        while chunk := connection.recv(65_536):
            received += chunk
            if close_after is not None and close_after(received):
                break
    return received


def request_head(path="/v1/route", **headers):
    lines = [f"POST {path} HTTP/1.1", "host: 127.0.0.1", "content-type: application/json"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def status_of(answer):
    return int(answer.split(b" ", 2)[1])


def code_of(answer):
    return json.loads(answer.rpartition(b"\r\n\r\n")[2])["error"]["code"]


def route(site, body):
    status, _, data = site.http("POST", "/v1/route", body)
    return status, json.loads(data)


def still_serves(site):
    return site.chat()[0] == 200


# --------------------------------------------------------------------------- bodies


def test_a_length_beyond_the_cap_is_refused_before_the_body_comes(small):
    answer = raw(small, request_head(content_length=10**12))
    assert status_of(answer) == 413
    assert code_of(answer) == "request_too_large"
    assert b"connection: close" in answer.lower()


def test_chunks_without_end_are_cut_off_at_the_cap(small):
    chunk = b"4000\r\n" + b" " * 0x4000 + b"\r\n"
    answer = raw(small, request_head(transfer_encoding="chunked") + chunk * 8 + b"0\r\n\r\n")
    assert status_of(answer) == 413
    host, port = small.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=ANSWER_S) as connection:
        connection.sendall(request_head(transfer_encoding="chunked"))
        with pytest.raises(ConnectionError):
            for _ in range(10_000):
                connection.sendall(chunk)
    assert still_serves(small)


def test_a_client_that_sends_all_before_it_reads_hears_that_it_was_too_much(small):
    for body in (b" " * 200_000, b"x" * 70_000):
        assert small.http("POST", "/v1/route", body)[0] == 413
    with pytest.raises(openai.APIStatusError) as caught:
        small.client().chat.completions.create(
            model="auto", messages=[{"role": "user", "content": "long " * 40_000}]
        )
    assert caught.value.status_code == 413


def test_more_bytes_than_the_length_says_are_no_part_of_the_body(small):
    body = json.dumps({"messages": [{"role": "user", "content": "Hi"}]}).encode()
    head = request_head(content_length=len(body))
    more = b"GET /secret HTTP/1.1\r\nhost: x\r\n\r\n"
    answer = raw(small, head + body + more * 2, close_after=two)
    assert status_of(answer) == 200
    assert answer.count(b"HTTP/1.1 ") >= 2
    assert b"HTTP/1.1 404" in answer


def two(received):
    return received.count(b"HTTP/1.1 ") >= 2


def test_a_body_that_comes_slowly_keeps_nobody_else_waiting(small):
    host, port = small.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=ANSWER_S) as slow:
        slow.sendall(request_head(content_length=1000) + b'{"messages"')
        assert still_serves(small)
        until(lambda: small.service.gateway.in_flight == 1)
    until(lambda: small.service.gateway.in_flight == 0)


def until(true, timeout_s=10):
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"[" * 100_000 + b"]" * 100_000, "json_too_deep"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "json_too_deep"),
        (b"[" * 100_000, "invalid_json"),
        (b'{"messages": NaN}', "invalid_json"),
        (b'{"messages": [], "temperature": Infinity}', "invalid_json"),
        (b'{"messages": [{"role": "user", "content": "\xff\xfe"}]}', "invalid_json"),
        (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', "invalid_json"),
        (b"\xef\xbb\xbf{}", "invalid_json"),
        (b'{"messages": [{"role": "user", "content": "a\x00b"}]}', "invalid_json"),
        (b"", "invalid_json"),
        (b"{" + b'"a":1,' * 10_000 + b'"messages": []}', "invalid_request"),
        (b'{"messages": [' + b"{}," * 100_000 + b"{}]}", "too_many_messages"),
    ],
)
def test_json_that_is_none_or_too_much_is_refused(site, body, code):
    status, answer = route(site, body)
    assert (status, answer["error"]["code"]) == (400, code)


def test_of_a_doubled_field_the_last_is_checked_and_sent(site):
    """Checks, router and provider read one value: nothing is checked and another thing sent."""
    asked = (
        b'{"model": "sim-large-text", "messages": [{"role": "user", "content": "Hi"}],'
        b' "max_tokens": 1, "max_tokens": 10000000}'
    )
    status, _, data = site.http("POST", "/v1/chat/completions", asked)
    assert (status, json.loads(data)["error"]["code"]) == (400, "max_tokens_too_large")
    twice = asked.replace(b', "max_tokens": 10000000', b', "model": "sim-small-text"')
    status, headers, data = site.http("POST", "/v1/chat/completions", twice)
    assert status == 200
    assert headers["x-router-model"] == json.loads(data)["model"] == "sim-small-text"


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
def test_answers_longer_than_the_cap_cannot_be_asked_for(site, field):
    body = {"messages": [{"role": "user", "content": "Hi"}], field: 10**6}
    for path, model in (("/v1/chat/completions", "sim-small-text"), ("/v1/completions", "auto")):
        status, _, data = site.http("POST", path, {**body, "model": model, "prompt": "Hi"})
        assert (status, json.loads(data)["error"]["code"]) == (400, "max_tokens_too_large")


def test_a_long_text_is_routed_in_bounded_time_and_a_long_name_is_not_repeated(site):
    status, answer = route(site, {"messages": [{"role": "user", "content": "word " * 10**6}]})
    assert status in (200, 422), answer
    name = "x" * 10**6
    for body in (
        {"model": name},
        {"model": f"auto:{name}"},
        {"router": {name: 1}},
        {"router": {"policy": name}},
        {"router": {"allow": [name]}},
        {"router": {"thresholds": {name: 0.5}}},
        {"messages": [{"role": name, "content": "Hi"}]},
    ):
        hello = {"model": "auto", "messages": [{"role": "user", "content": "Hi"}]}
        status, _, data = site.http("POST", "/v1/route", {**hello, **body})
        assert status in (400, 404), body
        assert len(data) < 4_000, (list(body), len(data))


# --------------------------------------------------------------------------- HTTP


def test_both_ways_to_say_the_length_are_no_way_to_hide_a_second_request(site):
    hidden = b"GET /v1/models HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n"
    head = request_head(content_length=5 + len(hidden), transfer_encoding="chunked")
    answer = raw(site, head + b"0\r\n\r\n" + hidden)
    assert b'"owned_by"' not in answer
    assert not answer or status_of(answer) == 400


@pytest.mark.parametrize(
    "lines",
    [
        b"content-length: 5\r\ncontent-length: 6",
        b"content-length: +5",
        b"content-length: 5, 6",
        b"transfer-encoding: xchunked, chunked\r\ncontent-length: 3",
        b"transfer-encoding : chunked",
        b"x-header: a\rb",
    ],
)
def test_a_request_whose_end_is_in_doubt_is_refused(site, lines):
    head = b"POST /v1/route HTTP/1.1\r\nhost: 127.0.0.1\r\n" + lines + b"\r\n\r\n"
    answer = raw(site, head + b"hello GET / HTTP/1.1\r\n\r\n")
    assert answer.count(b"HTTP/1.1 ") <= 1
    assert not answer or status_of(answer) in (400, 415)


def test_lines_in_names_add_no_headers(site):
    name = "a\r\nx-evil: 1"
    hello = [{"role": "user", "content": "Hi"}]
    for body in ({"model": name}, {"model": f"auto:{name}"}, {"model": "auto", "user": name}):
        _, headers, _ = site.http("POST", "/v1/chat/completions", {"messages": hello, **body})
        assert "x-evil" not in {header.lower() for header in headers}


def test_what_a_client_says_of_the_router_or_of_proxies_counts_for_nothing(open_site):
    site = open_site()
    create_key(site.service.store.engine, PEPPER, name="now keys are needed")
    site.service.keys.refresh()
    spoofed = {
        "x-router-model": "sim-large-vl",
        "x-router-reason": "spoofed",
        "x-router-decision-id": "dec_spoofed",
        "x-forwarded-for": "127.0.0.1",
        "x-forwarded-host": "localhost",
        "x-real-ip": "127.0.0.1",
        "forwarded": "for=127.0.0.1",
        "host": "127.0.0.1",
    }
    status, headers, _ = site.chat(headers=spoofed)
    assert status == 401
    assert headers["x-router-decision-id"] != "dec_spoofed"
    assert "x-router-model" not in headers


@pytest.mark.parametrize("host", ["evil.test", "127.0.0.1.evil.test", "localhost@evil.test", ""])
def test_without_keys_a_page_whose_name_leads_here_is_refused(site, host):
    head = f"GET /v1/models HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n".encode()
    answer = raw(site, head)
    assert status_of(answer) in (400, 403)


# --------------------------------------------------------------------------- pictures


def asking(*urls):
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return {"messages": [{"role": "user", "content": [{"type": "text", "text": "What?"}, *parts]}]}


def data_uri(data, kind="image/png"):
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def chunk(kind, data):
    check = zlib.crc32(kind + data)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)


def png_of(width, height, pixels=b"", *more):
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(more) + pixels + chunk(b"IEND", b"")


def animation(kind, frames):
    buffer = io.BytesIO()
    pictures = [PIL.Image.new("RGB", (64, 64), (n % 256, n // 256, 0)) for n in range(frames)]
    pictures[0].save(buffer, kind, save_all=True, append_images=pictures[1:])
    return buffer.getvalue()


BOMBS = {
    "a tiny file of huge size": png_of(60_000, 60_000, chunk(b"IDAT", zlib.compress(b"\0" * 9))),
    "more bytes than any picture": png_of(
        2**31 - 1, 2**31 - 1, chunk(b"IDAT", zlib.compress(b"\0"))
    ),
    "a gigabyte of comment": png_of(
        8, 8, b"", chunk(b"zTXt", b"c\0\0" + zlib.compress(b"a" * 2**26))
    ),
    "no size": png_of(0, 0),
    "a gif of huge size": b"GIF89a" + struct.pack("<HH", 65_535, 65_535) + b"\0\0\0;",
    "a page": b"<html><script>alert(1)</script></html>",
    "a drawing": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "an icon": b"\0\0\1\0\1\0\0\0\0\0\1\0\x20\0" + bytes(40),
    "a tiff": b"II*\0" + bytes(100),
    "nothing": b"",
}


@pytest.mark.parametrize("name", BOMBS)
@pytest.mark.parametrize("kind", ["image/png", "text/html"])
def test_a_picture_that_is_a_bomb_or_none_is_the_clients_error(site, name, kind):
    started = time.process_time()
    status, answer = route(site, asking(data_uri(BOMBS[name], kind)))
    assert (status, answer["error"]["code"]) == (400, "invalid_request")
    assert time.process_time() - started < 2.0


@pytest.mark.parametrize("kind", ["GIF", "PNG"])
def test_of_an_animation_only_the_first_frame_is_decoded(site, kind):
    started = time.process_time()
    status, answer = route(site, asking(data_uri(animation(kind, 600))))
    assert status == 200, answer
    assert time.process_time() - started < 2.0


def test_more_pictures_than_allowed_are_refused_before_one_is_read(site):
    status, answer = route(site, asking(*["data:image/png;base64,AA"] * 33))
    assert (status, answer["error"]["code"]) == (400, "too_many_images")


class Listener:
    """A server that counts who comes."""

    def __enter__(self):
        self.came = 0
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        threading.Thread(target=self._run, daemon=True).start()
        return self

    def _run(self):
        try:
            while True:
                connection, _ = self._socket.accept()
                self.came += 1
                connection.close()
        except OSError:
            return

    def __exit__(self, *_):
        self._socket.close()


@pytest.mark.parametrize("model", ["auto", "sim-large-vl"])
def test_no_url_makes_the_service_or_a_provider_call_anybody(site, model):
    with Listener() as listener:
        for url in (f"http://127.0.0.1:{listener.port}/a.png", "https://example.test/a.png"):
            status, _, body = site.post("/v1/chat/completions", {**asking(url), "model": model})
            assert (status, body["error"]["code"]) == (400, "image_url_not_allowed")
        assert listener.came == 0


@pytest.mark.parametrize("model", ["auto", "sim-large-vl"])
def test_where_fetching_is_on_other_hosts_and_ports_stay_closed(open_site, model):
    def allow(content):
        content["images"] = {"fetch": {"hosts": ["pictures.test", "127.0.0.1"]}}

    site = open_site(edit=allow)
    with Listener() as listener:
        for url in (
            f"https://127.0.0.1:{listener.port}/a.png",
            "https://evil.test/a.png",
            "https://169.254.169.254/latest",
            "https://pictures.test@evil.test/a.png",
            "http://pictures.test/a.png",
            "file:///etc/passwd",
        ):
            before = site.ledger()["models"]["sim-large-vl"]["requests"]
            status, _, body = site.post("/v1/chat/completions", {**asking(url), "model": model})
            assert status == 400, (url, body)
            assert "/a.png" not in json.dumps(body)
            assert site.ledger()["models"]["sim-large-vl"]["requests"] == before
        assert listener.came == 0


def test_a_fetched_picture_is_routed_on(open_site, monkeypatch):
    """The picture decides who can answer, and the URL goes to the candidate as it came."""
    from router_runtime.images import load_image
    from router_runtime.service.pictures import PictureFetcher

    buffer = io.BytesIO()
    PIL.Image.new("RGB", (16, 16), "red").save(buffer, "PNG")
    asked = []

    async def fetch_all(self, urls):
        asked.extend(urls)
        return dict.fromkeys(urls, load_image(buffer.getvalue()))

    monkeypatch.setattr(PictureFetcher, "fetch_all", fetch_all)

    def allow(content):
        content["images"] = {"fetch": {"hosts": ["pictures.test"]}}

    site = open_site(edit=allow)
    status, answer = route(site, asking("https://pictures.test/a.png"))
    assert status == 200, answer
    assert answer["model"].endswith("-vl")
    assert asked == ["https://pictures.test/a.png"]


def test_a_server_without_a_path_loses_nothing_for_its_chats(open_site):
    """Anybody may ask a chat model for embeddings; that must not keep others from its chats."""
    site = open_site(service={"breaker": {"failures": 1, "rest_s": 100}})
    for _ in range(3):
        status = site.post("/v1/completions", {"model": "sim-small-text", "prompt": "Hi"})[0]
        assert status == 502
    assert site.chat(model="sim-small-text")[0] == 200
