"""Serving the simulator: in a thread for tests and benchmarks, or until Ctrl-C."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from router_runtime.listening import ThreadServer, listen
from router_runtime.simulator.app import build_app
from router_runtime.simulator.config import SimulatorConfig
from router_runtime.simulator.wire import TRANSPORT, Receive, Scope, Send

_WHO: Final = "The simulator"
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


class SimulatorServer(ThreadServer):
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
        super().__init__(_server(config), host=host, port=port, who=_WHO)


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
    with listen(host, port, who=_WHO) as taken, suppress(KeyboardInterrupt):
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
