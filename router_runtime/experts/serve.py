"""Serving the experts: until Ctrl-C, or in a thread while a block runs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from ipaddress import ip_address
from typing import Final

import uvicorn

from router_runtime.errors import ConfigError
from router_runtime.experts.app import build_app
from router_runtime.experts.config import ExpertsConfig
from router_runtime.experts.service import Experts
from router_runtime.listening import ThreadServer, listen

_WHO: Final = "The experts' server"


class ExpertsServer(ThreadServer):
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
        server = _server(experts, host, environment)
        super().__init__(server, host=host, port=port, who=_WHO)


def serve(experts: Experts, *, host: str, port: int) -> None:
    """Serve until Ctrl-C or SIGTERM; what runs then gets a moment to end.

    Raises
    ------
    ConfigError
        As ``ExpertsServer``.
    """
    server = _server(experts, host, None)
    with listen(host, port, who=_WHO) as listening, suppress(KeyboardInterrupt):
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
