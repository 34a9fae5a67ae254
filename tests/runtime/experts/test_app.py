import http.client
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from router_runtime.errors import ConfigError

pytest.importorskip("torch")
openai = pytest.importorskip("openai")
serve = pytest.importorskip("router_runtime.experts.serve", exc_type=ImportError)

from router_runtime.experts import app as apps  # noqa: E402

MESSAGES = [{"role": "user", "content": "which day?"}]


@pytest.fixture
def served(serving):
    """Serves experts; returns (server, client) for settings of the config."""
    servers = []

    def start(environment=None, **settings):
        server = serve.ExpertsServer(serving(**settings), environment=environment)
        servers.append(server)
        server.__enter__()
        return server, openai.OpenAI(base_url=server.base_url, api_key="k", max_retries=0)

    yield start
    for server in servers:
        server.__exit__(None, None, None)


def post(server, path, body, **headers):
    """Return (status, body, headers) of a raw request."""
    host = server.url.removeprefix("http://")
    connection = http.client.HTTPConnection(host, timeout=60)
    data = body if isinstance(body, bytes) else json.dumps(body)
    connection.request("POST", path, data, {"Content-Type": "application/json"} | headers)
    answer = connection.getresponse()
    found = answer.status, answer.read().decode(), dict(answer.getheaders())
    connection.close()
    return found


def chat(model="calendar", **fields):
    return {"model": model, "messages": MESSAGES, "temperature": 0} | fields


def test_the_openai_client_gets_each_experts_answer(served, making):
    _, client = served()
    for name, words in making.WORDS.items():
        answer = client.chat.completions.create(**chat(name))
        assert answer.choices[0].message.content == words
        assert (answer.model, answer.choices[0].finish_reason) == (name, "stop")
        assert answer.usage.total_tokens == (
            answer.usage.prompt_tokens + answer.usage.completion_tokens
        )


def test_the_openai_client_streams_the_same_text(served, making):
    _, client = served()
    for usage in (True, False):
        options = {"stream_options": {"include_usage": True}} if usage else {}
        chunks = list(client.chat.completions.create(**chat(stream=True), **options))
        pieces = [c.choices[0].delta.content or "" for c in chunks if c.choices]
        assert "".join(pieces) == making.WORDS["calendar"]
        assert len(pieces) > 3
        assert [c.usage is not None for c in chunks].count(True) == usage
        assert chunks[-1 - usage].choices[0].finish_reason == "stop"
    with client.chat.completions.with_streaming_response.create(**chat(stream=True)) as raw:
        assert list(raw.iter_lines())[-2] == "data: [DONE]"


def test_models_name_their_parent(served, making, adapters):
    _, client = served()
    listed = {model.id: model for model in client.models.list()}
    assert set(listed) == {"base", *making.WORDS}
    assert listed["base"].parent is None
    assert listed["calendar"].parent == "base"
    assert listed["calendar"].root == str(adapters["calendar"].resolve())
    assert listed["calendar"].bytes > 0
    assert listed["calendar"].in_memory


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (chat("nobody"), 404, "model_not_found"),
        (chat("nobody", stream=True), 404, "model_not_found"),
        (chat(n=3), 400, "unsupported_parameter"),
        (chat(messages=[{"role": "king", "content": "x"}]), 400, "invalid_messages"),
        (chat(messages=[{"role": "king"}], stream=True), 400, "invalid_messages"),
        (b"{", 400, "invalid_request"),
        (b"[1]", 400, "invalid_request"),
        (b"[" * 100_000, 400, "invalid_request"),
    ],
)
def test_errors_come_in_openais_envelope(served, body, status, code):
    server, _ = served()
    found, text, _ = post(server, "/v1/chat/completions", body)
    error = json.loads(text)["error"]
    assert (found, error["code"]) == (status, code)
    assert error["message"]


def test_another_content_type_is_refused_since_any_web_page_could_send_it(served):
    server, _ = served()
    answer = post(server, "/v1/chat/completions", chat(), **{"Content-Type": "text/plain"})
    assert answer[0] == 400
    assert "application/json" in answer[1]


def test_a_body_beyond_the_cap_is_refused(served, monkeypatch):
    monkeypatch.setattr(apps, "MAX_BODY_BYTES", 1000)
    server, _ = served()
    answer = post(server, "/v1/chat/completions", chat(user="x" * 2000))
    assert (answer[0], json.loads(answer[1])["error"]["code"]) == (413, "request_too_large")


def test_an_unknown_path_is_a_404_in_the_envelope(served):
    server, _ = served()
    status, text, _ = post(server, "/v1/embeddings", {})
    assert (status, json.loads(text)["error"]["code"]) == (404, "not_found")


def test_a_full_queue_is_a_503_with_retry_after(served):
    server, _ = served(max_waiting=1)
    engine = server_engine(server)
    go, begun = threading.Event(), threading.Event()

    def hold(pool):
        begun.set()
        go.wait(60)

    holder = threading.Thread(target=engine.call, args=(hold,))
    holder.start()
    begun.wait(60)
    with ThreadPoolExecutor(1) as one:
        waits = one.submit(post, server, "/v1/chat/completions", chat())
        until(lambda: engine.waiting == 1)
        status, text, headers = post(server, "/v1/chat/completions", chat())
        assert (status, json.loads(text)["error"]["code"]) == (503, "overloaded")
        assert headers["retry-after"] == "1"
        go.set()
        holder.join()
        assert waits.result()[0] == 200


def server_engine(server):
    return server._server.config.app.state.experts.engine


def until(happened):
    deadline = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_hangs_up_cancels_its_request(served, stream):
    server, _ = served(max_tokens=500)
    engine = server_engine(server)
    base = engine.pool.base
    object.__setattr__(base, "end_tokens", (319,))  # nothing ends an answer but its length
    seen = []
    real = engine.submit
    engine.submit = lambda *a, **k: seen.append(real(*a, **k)) or seen[-1]
    body = json.dumps(chat("base", stream=stream, max_tokens=400)).encode()
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
        until(lambda: engine.running == 1)
    until(lambda: engine.running == 0)
    assert seen[0]._row.cancelled
    assert seen[0]._row.n_made < 400


def test_adapters_are_added_and_removed_as_on_vllm(served, adapters, making):
    root = adapters["calendar"].parent
    server, client = served(adapters={}, adapters_root=root, allow_updates=True)
    load, unload = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"
    asked = {"lora_name": "days", "lora_path": "calendar"}
    assert post(server, load, asked)[:2] == (
        200, "Success: LoRA adapter 'days' added successfully.",
    )  # fmt: skip
    answer = client.chat.completions.create(**chat("days"))
    assert answer.choices[0].message.content == making.WORDS["calendar"]
    for body, status, words in [
        (asked, 400, "has already been loaded"),
        ({"lora_name": "x"}, 400, "must be provided"),
        ({"lora_name": "x", "lora_path": "absent"}, 404, "No adapter found for 'absent'"),
        ({"lora_name": "x", "lora_path": "/etc"}, 400, "outside 'adapters_root'"),
        ({"lora_name": "a b", "lora_path": "calendar"}, 400, "cannot be called"),
    ]:
        found = post(server, load, body)
        assert found[0] == status
        assert words in json.loads(found[1])["error"]["message"]
    assert post(server, unload, {"lora_name": "days"})[:2] == (
        200, "Success: LoRA adapter 'days' removed successfully.",
    )  # fmt: skip
    status, text, _ = post(server, unload, {"lora_name": "days"})
    assert (status, json.loads(text)["error"]["code"]) == (404, "NotFoundError")
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(**chat("days"))


def test_adapters_are_not_changed_unless_the_config_allows_it(served, adapters):
    server, client = served()
    for path in ("/v1/load_lora_adapter", "/v1/unload_lora_adapter"):
        body = {"lora_name": "calendar", "lora_path": str(adapters["calendar"])}
        status, text, _ = post(server, path, body)
        assert status == 403
        assert "allow_updates" in text
    assert len(list(client.models.list())) == 4


def test_a_key_guards_everything_but_health(served):
    server, _ = served(environment={"KEY": "canary-key"}, api_key_env="KEY")
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "canary-key"}):
        status, text, _ = post(server, "/v1/chat/completions", chat(), **headers)
        assert (status, json.loads(text)["error"]["code"]) == (401, "invalid_api_key")
        assert "canary" not in text
    good = openai.OpenAI(base_url=server.base_url, api_key="canary-key", max_retries=0)
    assert good.chat.completions.create(**chat()).choices
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"))
    connection.request("GET", "/health")
    assert connection.getresponse().status == 200
    connection.close()


def test_health_tells_when_the_model_has_ended(served):
    server, _ = served()
    server_engine(server).close()
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"))
    connection.request("GET", "/health")
    assert connection.getresponse().status == 503
    connection.close()


def test_others_are_not_let_in_without_a_key(serving):
    with pytest.raises(ConfigError, match="api_key_env"):
        serve.ExpertsServer(serving(), host="0.0.0.0")  # noqa: S104 - it is refused
    with pytest.raises(ConfigError, match="'UNSET_KEY' is not set"):
        serve.ExpertsServer(serving(api_key_env="UNSET_KEY"), environment={})


def test_a_taken_port_is_named(served):
    server, _ = served()
    port = int(server.url.rpartition(":")[2])
    with pytest.raises(ConfigError, match=f"{port}.*another port"):
        serve.ExpertsServer(server._server.config.app.state.experts, port=port)
