"""The service on its sockets: until a signal, or in a thread for tests and benchmarks.

SIGTERM and SIGINT: no new connections, requests in flight end within ``GRACE_S``, the store is
drained. A second signal ends at once. SIGHUP reads the config again.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import uvicorn
import uvloop

from router_runtime.config import load_config
from router_runtime.errors import ConfigError, RouterError
from router_runtime.listening import listen, url_of
from router_runtime.service.admin import admin_app
from router_runtime.service.app import Handler
from router_runtime.service.front import front_app, starting_app
from router_runtime.service.health import Health
from router_runtime.service.parts import Service, open_service

logger = logging.getLogger(__name__)

GRACE_S: Final = 25
"""Below the 30 s after which orchestrators kill."""

_BACKLOG: Final = 2048
_ACCEPTED_PER_TURN: Final = 64
_KEEP_ALIVE_S: Final = 75
_LEAST_CREDENTIAL: Final = 16
_START_S: Final = 120.0
_GARBAGE: Final = 10_000


class _Server(uvicorn.Server):
    """Leaves signals to whoever runs it."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def ended(self) -> None:
        """Wait for tasks that the end of the grace period has cancelled."""
        tasks = [task for task in self.server_state.tasks if not task.done()]
        if tasks:
            await asyncio.wait(tasks, timeout=2.0)


class Sockets:
    """Listening sockets of the service and of its admin API.

    Parameters
    ----------
    host : str
    port, admin_port : int
        0 takes a free one.

    Raises
    ------
    ConfigError
        An address is taken or is none of this machine's.
    """

    def __init__(self, host: str, *, port: int, admin_port: int | None) -> None:
        self.main = _listen(host, port)
        self.admin: socket.socket | None = None
        try:
            self.admin = None if admin_port is None else _listen("127.0.0.1", admin_port)
        except ConfigError:
            self.main.close()
            raise

    def close(self) -> None:
        """Close both."""
        self.main.close()
        if self.admin is not None:
            self.admin.close()


def serve(path: Path, *, environ: Mapping[str, str] = os.environ) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises
    ------
    RouterError
        The service cannot start; nothing is left running.
    """
    settings = load_config(path).service
    credential = admin_credential(settings.admin.key_env, environ)
    sockets = Sockets(
        settings.host,
        port=settings.port,
        admin_port=None if credential is None else settings.admin.port,
    )
    try:
        run(_Run(path, sockets, credential, environ).until_signal())
    finally:
        sockets.close()


def run(main: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine in an event loop made for many connections.

    Looking for garbage begins after ``_GARBAGE`` new objects, not after Python's 700: what a
    request holds goes by itself when it ends, and with many in flight all of it would be looked
    through again and again.
    """
    gc.set_threshold(_GARBAGE, 10, 10)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main)


def admin_credential(name: str, environ: Mapping[str, str]) -> str | None:
    """Return the admin API's credential, None where none is set and there is no admin API.

    Raises
    ------
    ConfigError
        It is short enough to be guessed.
    """
    credential = environ.get(name, "").strip()
    if credential and len(credential) < _LEAST_CREDENTIAL:
        raise ConfigError(
            f"{name} has {len(credential)} characters, fewer than {_LEAST_CREDENTIAL}. Set it to "
            "what `openssl rand -hex 32` prints."
        )
    return credential or None


class _Run:
    """One life of the service: start, serve, stop."""

    def __init__(
        self, path: Path, sockets: Sockets, credential: str | None, environ: Mapping[str, str]
    ) -> None:
        self._path = path
        self._sockets = sockets
        self._credential = credential
        self._environ = environ
        self._handler: Handler = starting_app(Health())
        self._servers = [_Server(_settings(self._main))]
        self._tasks: list[asyncio.Task[None]] = []
        self._reloading: asyncio.Task[None] | None = None
        self.service: Service | None = None

    async def _main(self, scope: Any, receive: Any, send: Any) -> None:
        await self._handler(scope, receive, send)

    async def until_signal(self) -> None:
        """Serve until SIGTERM or SIGINT."""
        loop = asyncio.get_running_loop()
        stopped = asyncio.Event()

        def stop() -> None:
            if stopped.is_set():
                for server in self._servers:
                    server.force_exit = True
            stopped.set()

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop)
        loop.add_signal_handler(signal.SIGHUP, self._reload)
        await self.serving(stopped.wait)

    async def serving(self, wait: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        """Start, serve until ``wait`` returns, and stop."""
        self._listen(self._servers[0], self._sockets.main)
        try:
            self.service = await open_service(self._path, environ=self._environ)
            self._handler = front_app(self.service)
            if self._credential is not None and self._sockets.admin is not None:
                admin = _Server(_settings(admin_app(self.service, credential=self._credential)))
                self._servers.append(admin)
                self._listen(admin, self._sockets.admin)
            logger.info("serving")
            await wait()
        finally:
            await self._stop()

    def _listen(self, server: _Server, sock: socket.socket) -> None:
        # uvloop takes one new connection per socket and turn of its loop. Under overload turns are
        # long, and on a single socket new clients would wait many seconds even to be refused.
        sockets = [sock, *(sock.dup() for _ in range(_ACCEPTED_PER_TURN - 1))]
        self._tasks.append(asyncio.create_task(server.serve(sockets)))

    async def _stop(self) -> None:
        if self.service is not None:
            self.service.health.draining = True
        for server in self._servers:
            server.should_exit = True
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for server in self._servers:
            await server.ended()
        if self.service is not None:
            await self.service.close()

    def _reload(self) -> None:
        if self.service is None or (self._reloading is not None and not self._reloading.done()):
            return
        self._reloading = asyncio.create_task(self._reloaded(self.service))

    async def _reloaded(self, service: Service) -> None:
        try:
            await service.reload()
        except RouterError as error:
            logger.error("the config was not reloaded; the current one stays: %s", error)


def _settings(app: Any) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http="httptools",
        ws="none",
        interface="asgi3",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=_BACKLOG,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=GRACE_S,
    )


class ServiceServer:
    """The service on free ports of this machine, served by a thread while the block runs.

    Parameters
    ----------
    path : Path
        The config; its ports are not used.
    environ : mapping
    """

    def __init__(self, path: Path, *, environ: Mapping[str, str] = os.environ) -> None:
        credential = admin_credential(load_config(path).service.admin.key_env, environ)
        self._sockets = Sockets("127.0.0.1", port=0, admin_port=None if not credential else 0)
        self._run = _Run(path, self._sockets, credential, environ)
        self._ready = threading.Event()
        self._leave: Callable[[], object] = lambda: None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._serve, name="service", daemon=True)
        self.url = url_of(self._sockets.main)
        self.admin_url = None if self._sockets.admin is None else url_of(self._sockets.admin)

    @property
    def service(self) -> Service:
        """What is served.

        Raises
        ------
        ConfigError
            It has not started.
        """
        if self._run.service is None:
            raise ConfigError("The service has not started.")
        return self._run.service

    def __enter__(self) -> Self:
        self._thread.start()
        self._ready.wait(_START_S)
        if self._error is not None:
            self._thread.join()
            raise self._error
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._leave()
        self._thread.join()
        self._sockets.close()

    def _serve(self) -> None:
        try:
            run(self._run.serving(self._until_left))
        except BaseException as error:
            self._error = error
        finally:
            self._ready.set()

    async def _until_left(self) -> None:
        loop = asyncio.get_running_loop()
        left = asyncio.Event()
        self._leave = lambda: loop.call_soon_threadsafe(left.set)
        self._ready.set()
        await left.wait()


def _listen(host: str, port: int) -> socket.socket:
    bound = listen(host, port, who="The service")
    bound.listen(_BACKLOG)
    return bound
