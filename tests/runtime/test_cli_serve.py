"""``model-router serve`` as a process: it starts, serves, reloads on SIGHUP and leaves in order."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
import yaml

from router_runtime.simulator.config import SimulatorConfig
from router_runtime.simulator.serve import SimulatorServer

MODELS = ("sim-large-vl", "sim-small-text")


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def write(folder, artifact, base_url, port, **service):
    target = {"kind": "compatible", "base_url": base_url}
    price = {"input_mtok": 1, "output_mtok": 2}
    content = {
        "artifact": str(artifact),
        "candidates": [{"id": name, "target": target, "price": price} for name in MODELS],
        "service": {
            "port": port,
            "store": {"url": "sqlite:///service.db", "spool": "spool"},
            **service,
        },
    }
    path = folder / "service.yml"
    path.write_text(yaml.safe_dump(yaml.safe_load(json.dumps(content))))
    return path


def ask(port, method, path, body=None):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    with contextlib.closing(connection):
        headers = {"content-type": "application/json"}
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()


def chat(port, **more):
    body = {"model": "auto", "messages": [{"role": "user", "content": "Hello"}], **more}
    return ask(port, "POST", "/v1/chat/completions", body)


@contextlib.contextmanager
def serving(path, port, log):
    with (
        log.open("wb") as errors,
        subprocess.Popen(  # noqa: S603 - our own interpreter on our own code
            [sys.executable, "-m", "router_runtime.cli", "serve", "--config", str(path)],
            stdout=subprocess.PIPE,
            stderr=errors,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        ) as process,
    ):
        try:
            until(lambda: ask(port, "GET", "/readyz")[0] == 200, process)
            yield process
        finally:
            process.kill()


def until(true, process=None, timeout_s=60):
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        assert process is None or process.poll() is None, "the service has ended"
        with contextlib.suppress(OSError, http.client.HTTPException):
            if true():
                return
        time.sleep(0.05)
    raise AssertionError("it did not come about")


@pytest.fixture(scope="module")
def provider():
    models = {name: {"price": {"input_mtok": 1, "output_mtok": 2}} for name in MODELS}
    models["sim-small-text"]["tokens_per_second"] = 60
    with SimulatorServer(SimulatorConfig.model_validate({"models": models})) as server:
        yield server


def test_it_serves_reloads_and_ends_what_is_in_flight(trained, provider, tmp_path):
    port = free_port()
    path = write(tmp_path, trained[0].output, provider.base_url, port)
    log = tmp_path / "log"
    with serving(path, port, log) as process:
        assert chat(port)[0] == 200

        content = yaml.safe_load(path.read_text())
        content["candidates"] = content["candidates"][1:]
        path.write_text(yaml.safe_dump(content))
        process.send_signal(signal.SIGHUP)
        until(lambda: chat(port, model="sim-large-vl")[0] == 404, process)

        path.write_text("broken: [")
        process.send_signal(signal.SIGHUP)
        until(lambda: b"not reloaded" in log.read_bytes(), process)
        assert chat(port)[0] == 200

        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        body = {
            "model": "sim-small-text",
            "messages": [{"role": "user", "content": "Tell me a long story. " * 10}],
            "stream": True,
        }
        connection.request(
            "POST", "/v1/chat/completions", json.dumps(body), {"content-type": "application/json"}
        )
        answer = connection.getresponse()
        first = answer.read(20)
        process.send_signal(signal.SIGTERM)
        rest = answer.read()
        assert (first + rest).endswith(b"data: [DONE]\n\n")
        assert process.wait(30) == 0
    assert b"Hello" not in log.read_bytes()


def test_it_refuses_other_machines_without_keys(trained, provider, tmp_path):
    path = write(tmp_path, trained[0].output, provider.base_url, free_port(), host="0.0.0.0")  # noqa: S104
    done = subprocess.run(  # noqa: S603 - our own interpreter on our own code
        [sys.executable, "-m", "router_runtime.cli", "serve", "--config", str(path)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert "model-router keys create" in done.stderr


def test_a_port_that_is_taken_is_said(trained, provider, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        path = write(tmp_path, trained[0].output, provider.base_url, port)
        done = subprocess.run(  # noqa: S603 - our own interpreter on our own code
            [sys.executable, "-m", "router_runtime.cli", "serve", "--config", str(path)],
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert done.returncode == 2
    assert str(port) in done.stderr


def test_check_config_says_what_serving_would_do(trained, provider, tmp_path):
    path = write(tmp_path, trained[0].output, provider.base_url, free_port())
    done = subprocess.run(  # noqa: S603 - our own interpreter on our own code
        [sys.executable, "-m", "router_runtime.cli", "check-config", str(path)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "per process" in done.stdout
    assert "API keys" in done.stdout
    assert not (tmp_path / "service.db").exists()
