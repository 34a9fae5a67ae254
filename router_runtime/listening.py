"""Listening sockets, and a server that a thread runs while a block lasts."""

from __future__ import annotations

import errno
import socket
import threading
import time
from types import TracebackType
from typing import Final, Self

import uvicorn

from router_runtime.errors import ConfigError

_START_S: Final = 30.0


def listen(host: str, port: int, *, who: str) -> socket.socket:
    """Return a bound socket.

    Parameters
    ----------
    host : str
    port : int
        0 takes a free one.
    who : str
        Begins the error's message: ``The simulator``.

    Raises
    ------
    ConfigError
        The address is taken or is none of this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # The protocol is named because asyncio sends small writes at once only where it is; unnamed,
    # every answer waits 40 ms for its caller to acknowledge the headers.
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        taken = error.errno == errno.EADDRINUSE
        raise ConfigError(
            f"{who} cannot listen at {host}:{port}: {error.strerror}. "
            + ("Choose another port." if taken else "Choose another host or port.")
        ) from error
    return bound


def url_of(bound: socket.socket) -> str:
    """Return the URL of what listens there."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class ThreadServer:
    """A server on a socket of its own, run by a thread while the block lasts.

    Parameters
    ----------
    server : uvicorn.Server
    host : str
    port : int
        0 takes a free one.
    who : str
        Who cannot listen or start, in errors: ``The simulator``.

    Raises
    ------
    ConfigError
        The address is taken.
    """

    def __init__(self, server: uvicorn.Server, *, host: str, port: int, who: str) -> None:
        self._server = server
        self._who = who
        self._socket = listen(host, port, who=who)
        self._thread = threading.Thread(
            target=server.run, args=([self._socket],), name=who, daemon=True
        )
        self.url = url_of(self._socket)

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
            raise ConfigError(f"{self._who} did not start at {self.url}.")
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
