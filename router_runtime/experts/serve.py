"""Serving the experts: until Ctrl-C, or in a thread while a block runs."""

from __future__ import annotations

import errno
import os
import socket
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from ipaddress import ip_address
from types import TracebackType
from typing import Final, Self

import uvicorn

from router_runtime.errors import ConfigError
from router_runtime.experts.app import build_app
from router_runtime.experts.config import ExpertsConfig
from router_runtime.experts.service import Experts

_START_S: Final = 30.0


class ExpertsServer:
    """Experts on a port of this machine, served by a thread while the block runs.

    Parameters
    ----------
    experts : Experts
        Not closed here.
    host : str
    port : int
        0 takes a free one.
    environment : mapping or None
        Where the name that ``api_key_env`` gives is looked up; None: the process's environment.

    Raises
    ------
    ConfigError
        The address is taken, or others than this machine could call it without a key.
    """

    def __init__(
        self,
        experts: Experts,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._server = _server(experts, host, environment)
        self._socket = _listen(host, port)
        self._thread = threading.Thread(
            target=self._server.run, args=([self._socket],), name="experts-server", daemon=True
        )
        shown = f"[{host}]" if ":" in host else host
        self.url = f"http://{shown}:{self._socket.getsockname()[1]}"

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
            raise ConfigError(f"The experts could not be served at {self.url}.")
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


def serve(experts: Experts, *, host: str, port: int) -> None:
    """Serve until Ctrl-C or SIGTERM; what runs then gets a moment to end.

    Raises
    ------
    ConfigError
        As ``ExpertsServer``.
    """
    server = _server(experts, host, None)
    with _listen(host, port) as listening, suppress(KeyboardInterrupt):
        server.run([listening])


def check_reachable(
    config: ExpertsConfig, host: str, *, environment: Mapping[str, str] | None = None
) -> str | None:
    """Return the key that clients must send; refuse to be open to others without one.

    Raises
    ------
    ConfigError
        The key's variable is not set, or there is no key and ``host`` is not loopback.
    """
    name = config.api_key_env
    if name is None:
        if not _loopback(host):
            raise ConfigError(
                f"At '{host}' other machines could use these experts. Set 'api_key_env' in the "
                "config, or listen at 127.0.0.1."
            )
        return None
    found = os.environ if environment is None else environment
    key = found.get(name, "").strip()
    if not key:
        raise ConfigError(f"Environment variable '{name}' is not set, but 'api_key_env' names it.")
    return key


def _loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _server(experts: Experts, host: str, environment: Mapping[str, str] | None) -> uvicorn.Server:
    key = check_reachable(experts.config, host, environment=environment)
    settings = uvicorn.Config(
        build_app(experts, key=key),
        ws="none",
        loop="asyncio",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=5,
    )
    return uvicorn.Server(settings)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # The protocol is named because asyncio sends small writes at once only where it is.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except OSError as error:
        listening.close()
        taken = error.errno == errno.EADDRINUSE
        raise ConfigError(
            f"The experts cannot be served at {host}:{port}: {error.strerror}. "
            + ("Choose another --port." if taken else "Choose another --host or --port.")
        ) from error
    return listening
