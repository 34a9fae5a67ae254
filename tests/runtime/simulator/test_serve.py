from __future__ import annotations

import http.client
import re
import signal
import socket
import subprocess
import sys
import threading

import pytest

from router_runtime.errors import ConfigError
from router_runtime.simulator import serve
from router_runtime.simulator.config import SimulatorConfig
from router_runtime.simulator.faults import FAULT_KINDS
from router_runtime.simulator.serve import SimulatorServer
from router_runtime.simulator.wire import Wire

CONFIG = SimulatorConfig.model_validate({"models": {"m": {}}})


def test_a_server_begins_and_ends_with_its_block():
    with SimulatorServer(CONFIG) as server:
        connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=5)
        connection.request("GET", "/v1/models")
        assert connection.getresponse().status == 200
        assert server.base_url == f"{server.url}/v1"
    assert not [thread for thread in threading.enumerate() if thread.name == "simulator"]
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])), timeout=1)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_an_answer_does_not_wait_for_its_headers_to_be_acknowledged(monkeypatch, host):
    at_once = []

    class Watched(serve._Protocol):
        def connection_made(self, transport):
            super().connection_made(transport)
            sock = transport.get_extra_info("socket")
            at_once.append(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

    monkeypatch.setattr(serve, "_Protocol", Watched)
    try:
        server = SimulatorServer(CONFIG, host=host)
    except ConfigError:
        pytest.skip(f"this machine has no {host}")
    with server, socket.create_connection((host, int(server.url.rpartition(":")[2])), timeout=5):
        pass
    assert at_once == [1]


def test_a_taken_port_is_a_config_error():
    with SimulatorServer(CONFIG) as server:
        port = int(server.url.rpartition(":")[2])
        with pytest.raises(ConfigError, match=f"{port}.*another port"):
            SimulatorServer(CONFIG, port=port)


def test_faults_below_http_say_that_they_need_this_server():
    import asyncio

    wire = Wire({"type": "http"}, None, None, b"{}", "application/json")
    with pytest.raises(ConfigError, match="model-router simulate"):
        asyncio.run(FAULT_KINDS["reset"].play(wire))


COMMAND = """
import sys, typer
from router_runtime.cli_simulate import simulate
from router_runtime.console import run_app
app = typer.Typer()
app.command()(simulate)
run_app(app)
"""


def started(folder, *options, config="models: {sim-m: {}}"):
    (folder / "simulator.yml").write_text(config)
    return subprocess.Popen(  # noqa: S603 - our own interpreter on our own code
        [sys.executable, "-c", COMMAND, str(folder / "simulator.yml"), *map(str, options)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_the_command_serves_until_ctrl_c_and_says_that_it_simulates(tmp_path):
    port = free_port()
    process = started(tmp_path, "--port", port)
    try:
        first = process.stdout.readline()
        assert re.search("SIMULATOR.*no real model", first) and str(port) in first
        assert "sim-m (candidate)" in process.stdout.readline()
        for _ in range(100):
            try:
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
                connection.request("GET", "/v1/models")
                break
            except ConnectionRefusedError:
                threading.Event().wait(0.05)
        assert b'"simulated":true' in connection.getresponse().read()
        connection.close()
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=10) == 0
        assert process.stderr.read() == ""
    finally:
        process.kill()
        process.communicate()


def test_a_wrong_config_is_one_line_and_status_2(tmp_path):
    process = started(tmp_path, config="models: {m: {skil: 1}}")
    _, error = process.communicate(timeout=30)
    assert process.returncode == 2 and "skil" in error and "Traceback" not in error
