"""Serving the simulator: in a thread for tests and benchmarks, or until Ctrl-C."""

from __future__ import annotations

import asyncio
import errno
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Final, Self

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from router_runtime.errors import ConfigError
from router_runtime.simulator.app import build_app
from router_runtime.simulator.config import SimulatorConfig
from router_runtime.simulator.wire import TRANSPORT, Receive, Scope, Send

_START_S: Final = 30.0
_BACKLOG: Final = 4096


class _Protocol(H11Protocol):
    """HTTP that lets faults reach the connection below it."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        app = self.app

        async def with_transport(scope: Scope, receive: Receive, send: Send) -> None:
            scope["extensions"] = {TRANSPORT: transport}
            await app(scope, receive, send)

        self.app = with_transport


class SimulatorServer:
    """A simulator on a free port of this machine, served by a thread while the block runs.

    Parameters
    ----------
    config : SimulatorConfig
    host : str
    port : int
        0 takes a free one.

    Raises
    ------
    ConfigError
        The address is taken, or the config cannot be served.
    """

    def __init__(self, config: SimulatorConfig, *, host: str = "127.0.0.1", port: int = 0) -> None:
        self._server = _server(config)
        self._socket = _listen(host, port)
        self._thread = threading.Thread(
            target=self._server.run, args=([self._socket],), name="simulator", daemon=True
        )
        self.url = f"http://{host}:{self._socket.getsockname()[1]}"

    @property
    def base_url(self) -> str:
        """What a target's ``base_url`` is set to."""
        return f"{self.url}/v1"

    def __enter__(self) -> Self:
        self._thread.start()
        deadline = time.monotonic() + _START_S
        while not self._server.started and self._thread.is_alive():
            if time.monotonic() > deadline:
                break
            time.sleep(0.01)
        if not self._server.started:
            self._end()
            raise ConfigError(f"The simulator did not start at {self.url}.")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._end()

    def _end(self) -> None:
        self._server.should_exit = True
        self._thread.join()
        self._socket.close()


def serve(
    config: SimulatorConfig, *, host: str, port: int, listening: Callable[[], None] = lambda: None
) -> None:
    """Serve until Ctrl-C or SIGTERM.

    Parameters
    ----------
    config : SimulatorConfig
    host : str
    port : int
    listening : callable
        Called once the address is taken and all that the config names is read.

    Raises
    ------
    ConfigError
        The address is taken, or the config cannot be served.
    """
    server = _server(config)
    with _listen(host, port) as taken, suppress(KeyboardInterrupt):
        listening()
        server.run([taken])


def _server(config: SimulatorConfig) -> uvicorn.Server:
    settings = uvicorn.Config(
        build_app(config),
        http=_Protocol,
        ws="none",
        loop="asyncio",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        backlog=_BACKLOG,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=1,
    )
    return uvicorn.Server(settings)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # The protocol is named because asyncio sends small writes at once only where it is; unnamed,
    # every answer waits 40 ms for its caller to acknowledge the headers.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except OSError as error:
        listening.close()
        taken = error.errno == errno.EADDRINUSE
        raise ConfigError(
            f"The simulator cannot listen at {host}:{port}: {error.strerror}. "
            + ("Choose another --port." if taken else "Choose another --host or --port.")
        ) from error
    return listening
