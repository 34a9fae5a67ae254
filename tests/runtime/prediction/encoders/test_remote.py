import base64
import json
import logging
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from router_runtime.errors import EncoderError
from router_runtime.prediction.encoders.specs import EncoderRuntime, RemoteSpec
from router_runtime.types import Image

remote = pytest.importorskip("router_runtime.prediction.encoders.remote", exc_type=ImportError)

DIM = 4
PNG = Image(b"\x89PNG picture", "image/png")
GIF = Image(b"GIF89a picture", "image/gif")


def vector(content):
    """Return what every well-behaved server of these tests answers for an input."""
    return [byte / 255 for byte in sha256(content.encode()).digest()[:DIM]]


def nvclip(body):
    rows = [{"index": i, "embedding": vector(x)} for i, x in enumerate(body["input"])]
    return {"object": "list", "model": body["model"], "data": rows[::-1]}


def clip_as_service(body):
    return {"data": [d | {"embedding": vector(next(iter(d.values())))} for d in body["data"]]}


class Server:
    """What was asked, and the scripted answers; then ``answer`` is asked."""

    def __init__(self, answer):
        self.answer = answer
        self.script = []
        self.requests = []
        self.url = ""


@contextmanager
def serving(answer):
    state = Server(answer)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            state.requests.append((self.path, dict(self.headers), body))
            status, headers, data = state.script.pop(0) if state.script else (200, {}, None)
            if status is None:
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            data = json.dumps(state.answer(body)).encode() if data is None else data
            self.send_response(status)
            for name, value in {"content-type": "application/json", **headers}.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args):
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    state.url = f"http://127.0.0.1:{http.server_address[1]}"
    try:
        yield state
    finally:
        http.shutdown()
        thread.join()
        http.server_close()


@pytest.fixture(params=["nvclip", "clip-as-service"])
def protocol(request):
    return request.param


@pytest.fixture
def server(protocol, monkeypatch):
    monkeypatch.setattr(remote, "_BACKOFF_S", 0.001)
    with serving(nvclip if protocol == "nvclip" else clip_as_service) as state:
        yield state


def build(server, protocol, *, runtime=None, **spec):
    spec = RemoteSpec(protocol=protocol, url=server.url, **{"dim": DIM, **spec})
    return remote.RemoteEncoder(spec, runtime or EncoderRuntime(batch_size=3))


def test_the_requests_are_those_of_the_protocols(server, protocol):
    encoder = build(server, protocol, model="some/model")
    encoder.encode_texts(["a cat"])
    encoder.encode_images([PNG])
    uri = "data:image/png;base64," + base64.b64encode(PNG.data).decode()
    (path, _, text), (_, _, picture) = server.requests
    if protocol == "nvclip":
        assert path == "/v1/embeddings"
        common = {"model": "some/model", "encoding_format": "float"}
        assert (text, picture) == (common | {"input": ["a cat"]}, common | {"input": [uri]})
    else:
        assert path == "/post"
        assert text == {"data": [{"text": "a cat"}], "execEndpoint": "/"}
        assert picture == {"data": [{"uri": uri}], "execEndpoint": "/"}


def test_vectors_come_back_in_the_order_of_the_inputs(server, protocol):
    texts = ["b", "a cat", "naïve \N{GRINNING FACE} 日本", "b", "dd", "e"]
    rows = build(server, protocol).encode_texts(texts)
    assert rows.dtype == np.float32
    np.testing.assert_allclose(rows, [vector(text) for text in texts], atol=1e-6)
    assert len(server.requests) == 2  # five distinct texts, three a request


def test_a_picture_counts_wherever_it_stands(server, protocol):
    encoder = build(server, protocol)
    rows = encoder.encode_images([GIF, PNG, GIF])
    assert np.array_equal(rows, encoder.encode_images([PNG, GIF])[[1, 0, 1]])
    assert not np.array_equal(rows[0], rows[1])


def test_a_batch_gives_what_one_by_one_gives(server, protocol):
    encoder = build(server, protocol)
    texts = ["", "a", "long " * 900, "\ud83d"]
    one_by_one = np.vstack([encoder.encode_texts([text]) for text in texts])
    np.testing.assert_allclose(encoder.encode_texts(texts), one_by_one, atol=1e-6)
    assert encoder.encode_texts([]).shape == (0, DIM)
    assert encoder.encode_images([]).shape == (0, DIM)


def test_a_question_after_a_long_preamble_changes_the_features(server, protocol):
    before = "Answer with a single letter. " * 300
    encoder = build(server, protocol)
    one, other = encoder.encode_texts([before + "What is a gene?", before + "Who won in 1966?"])
    assert np.abs(one - other).max() > 1e-3
    sent = [item for _, _, body in server.requests for item in body.get("input", body.get("data"))]
    assert all(len(item if isinstance(item, str) else item["text"]) <= 240 for item in sent)


def test_a_text_that_looks_like_a_picture_is_sent_as_text():
    with serving(nvclip) as server:
        encoder = build(server, "nvclip")
        encoder.encode_texts(["DATA:image/png;base64,AAAA", "", "see data:image/png"])
        assert sorted(server.requests[0][2]["input"]) == [
            " ",
            " DATA:image/png;base64,AAAA",
            "see data:image/png",
        ]


def test_without_a_picture_half_pictures_are_not_sent(server, protocol):
    encoder = build(server, protocol, image_half=False)
    assert encoder.image_dim == 0
    assert encoder.encode_images([PNG]).shape == (1, 0)
    assert server.requests == []


def test_a_url_that_ends_in_v1_means_the_same(protocol):
    with serving(nvclip) as server:
        server.url += "/v1/"
        build(server, "nvclip").encode_texts(["a"])
        assert server.requests[0][0] == "/v1/embeddings"


@pytest.mark.parametrize("status", [429, 500, 503, None])
def test_passing_failures_are_retried(server, protocol, status):
    server.script = [(status, {}, b"busy"), (status, {"retry-after": "0"}, b"busy")]
    rows = build(server, protocol).encode_texts(["a"])
    np.testing.assert_allclose(rows, [vector("a")], atol=1e-6)
    assert len(server.requests) == 3


def test_lasting_failures_end_after_a_bounded_number_of_attempts(server, protocol):
    server.script = [(503, {}, b"")] * 9
    with pytest.raises(EncoderError, match="answered status 503"):
        build(server, protocol).encode_texts(["a"])
    assert len(server.requests) == remote.ATTEMPTS


@pytest.mark.parametrize("status", [302, 401, 404, 422])
def test_refusals_are_not_repeated(server, protocol, status):
    server.script = [(status, {"location": server.url}, b"")]
    with pytest.raises(EncoderError, match=f"answered status {status}"):
        build(server, protocol).encode_texts(["a"])
    assert len(server.requests) == 1


def test_a_server_that_is_not_there_is_an_error_with_the_remedy(server, protocol):
    encoder = build(server, protocol, runtime=EncoderRuntime(url="http://127.0.0.1:9"))
    with pytest.raises(EncoderError, match=r"http://127.0.0.1:9 cannot be reached.*'url'"):
        encoder.encode_texts(["a"])


def test_a_slow_server_is_asked_once(protocol):
    waiting = threading.Event()

    def slow(body):
        waiting.wait(5)
        return {}

    with serving(slow) as server:
        encoder = build(server, protocol, runtime=EncoderRuntime(timeout_s=0.1))
        try:
            with pytest.raises(EncoderError, match=r"ReadTimeout.*'timeout_s'"):
                encoder.encode_texts(["a"])
        finally:
            waiting.set()
        assert len(server.requests) == 1


GOOD = [1.0] * DIM


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"<html>login</html>", "text/html"),
        (b"{", "text/html"),
        (b"\xff\xfe\xff", "no list of embeddings"),
        (b"null", "no list of embeddings"),
        (b'{"error": "none"}', "no list of embeddings"),
        (json.dumps({"data": []}), "0 embeddings for 1 inputs"),
        (json.dumps({"data": [{"index": i, "embedding": GOOD} for i in (0, 1)]}), "2 embeddings"),
        (json.dumps({"data": [{"index": 0, "embedding": GOOD[1:]}]}), "shape"),
        (json.dumps({"data": [{"index": 0, "embedding": None}]}), "no list|NaN|shape"),
        (json.dumps({"data": [{"index": 0, "embedding": ["x"] * DIM}]}), "no list"),
        (json.dumps({"data": [{"index": 0, "embedding": [float("nan")] * DIM}]}), "NaN"),
        (json.dumps({"data": [{"index": 0, "embedding": [float("inf")] * DIM}]}), "infinite"),
        (json.dumps({"data": [{"index": 0, "embedding": [1e39] * DIM}]}), "infinite"),
    ],
)
def test_a_broken_answer_is_an_error(server, protocol, answer, message):
    answer = answer if isinstance(answer, bytes) else answer.encode()
    server.script = [(200, {"content-type": "text/html; charset=utf-8"}, answer)]
    with pytest.raises(EncoderError, match=message):
        build(server, protocol).encode_texts(["a"])


def test_an_answer_for_the_wrong_inputs_is_an_error():
    with serving(nvclip) as server:
        rows = [{"index": 1, "embedding": GOOD}, {"index": 1, "embedding": GOOD}]
        server.script = [(200, {}, json.dumps({"data": rows}).encode())]
        with pytest.raises(EncoderError, match="no list of embeddings"):
            build(server, "nvclip").encode_texts(["a", "b"])


def test_another_dimension_than_configured_is_an_error(server, protocol):
    with pytest.raises(EncoderError, match=r"expected \(1, 512\)"):
        build(server, protocol, dim=512).encode_texts(["a"])


def test_the_key_comes_from_the_environment_and_shows_nowhere(
    server, protocol, monkeypatch, caplog
):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("SOME_KEY", "canary-key")
    encoder = build(server, protocol, api_key_env="SOME_KEY")
    server.script = [(401, {}, b"")]
    with pytest.raises(EncoderError) as caught:
        encoder.encode_texts(["canary-text"])
    assert server.requests[0][1]["Authorization"] == "Bearer canary-key"
    for shown in (str(caught.value), repr(encoder), encoder.fingerprint, caplog.text):
        assert "canary" not in shown


def test_a_password_in_the_url_is_used_and_shows_nowhere(server, protocol, caplog):
    caplog.set_level(logging.DEBUG)
    url = server.url.replace("http://", "http://user:canary@")
    encoder = build(server, protocol, runtime=EncoderRuntime(url=url))
    server.script = [(403, {}, b"")]
    with pytest.raises(EncoderError) as caught:
        encoder.encode_texts(["a"])
    assert server.requests[0][1]["Authorization"].startswith("Basic ")
    assert "canary" not in str(caught.value) + caplog.text


def test_a_key_that_is_not_set_is_an_error_before_anything_is_sent(server, protocol, monkeypatch):
    monkeypatch.delenv("SOME_KEY", raising=False)
    with pytest.raises(EncoderError, match="'SOME_KEY' is not set"):
        build(server, protocol, api_key_env="SOME_KEY")
    monkeypatch.setenv("SOME_KEY", "with\nnewline")
    with pytest.raises(EncoderError, match="'SOME_KEY' holds characters"):
        build(server, protocol, api_key_env="SOME_KEY")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("grpc://127.0.0.1:51000", "protocol: http"),
        ("127.0.0.1:51000", "http://"),
        ("ftp://host", "http://"),
        ("http://", "http://"),
        ("http://host:port", "http://"),
        ("", "http://"),
    ],
)
def test_what_is_no_http_url_is_refused(url, message):
    with pytest.raises(EncoderError, match=message):
        remote.RemoteEncoder(RemoteSpec(), EncoderRuntime(url=url or " "))


def test_the_fingerprint_follows_the_model_but_not_the_server():
    def fingerprint(runtime=EncoderRuntime(), **spec):
        return remote.RemoteEncoder(RemoteSpec(**spec), runtime).fingerprint

    assert fingerprint() == fingerprint(url="http://elsewhere:1/v1")
    assert fingerprint() == fingerprint(EncoderRuntime(batch_size=1, timeout_s=1))
    others = [
        fingerprint(model="other"),
        fingerprint(dim=512),
        fingerprint(image_half=False),
        fingerprint(protocol="clip-as-service"),
    ]
    assert len({fingerprint(), *others}) == 5


def test_threads_may_share_an_encoder(server, protocol):
    encoder = build(server, protocol)
    texts = [f"text {i}" for i in range(40)]
    with ThreadPoolExecutor(8) as pool:
        rows = list(pool.map(lambda text: encoder.encode_texts([text])[0], texts))
    np.testing.assert_allclose(rows, [vector(text) for text in texts], atol=1e-6)
