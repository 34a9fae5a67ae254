"""The admin API: another port, on loopback only, with a credential of its own; default deny.

Keys of the service do not open it, and nothing of it answers without the credential, not even that
a path does not exist.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, Protocol

from router_runtime.errors import RequestError, RouterError
from router_runtime.service.app import App, Handler
from router_runtime.service.asgi import Receive, Scope, Send, send_bytes, send_json
from router_runtime.service.envelope import Refusal, refusal_of
from router_runtime.service.generations import Generation
from router_runtime.types import Json

logger = logging.getLogger(__name__)

KEYS_PREFIX: Final = "/admin/keys/"
_REVOKE: Final = "/revoke"

_Answer = Callable[[Scope], Awaitable[Json]]


class Administered(Protocol):
    """What the admin API can do to a service."""

    def status(self) -> dict[str, Json]:
        """Return the state of every part as plain values."""
        ...

    async def reload(self) -> Generation:
        """Read the config again and put it into force, or raise and change nothing."""
        ...

    async def rollback(self) -> Generation:
        """Put the previous config and artifact back into force."""
        ...

    async def list_keys(self) -> list[dict[str, Json]]:
        """Return the keys, without digests."""
        ...

    async def revoke_key(self, key_id: str) -> None:
        """Revoke a key, at once in this process.

        Raises
        ------
        RouterError
            There is no such key.
        """
        ...


def admin_app(service: Administered, *, credential: str) -> Handler:
    """Return the ASGI application.

    Parameters
    ----------
    service : Administered
    credential : str
        What callers send as ``Authorization: Bearer``.
    """

    async def status(scope: Scope) -> Json:
        return service.status()

    async def reload(scope: Scope) -> Json:
        return generation_json(await service.reload())

    async def rollback(scope: Scope) -> Json:
        return generation_json(await service.rollback())

    async def keys(scope: Scope) -> Json:
        return {"object": "list", "data": await service.list_keys()}

    async def revoke(scope: Scope) -> Json:
        key_id = str(scope["path"]).removeprefix(KEYS_PREFIX)
        if not key_id.endswith(_REVOKE):
            raise RequestError(
                "There is nothing at this path; POST /admin/keys/ID/revoke revokes a key.",
                status=404,
                code="not_found",
            )
        key_id = key_id.removesuffix(_REVOKE)
        await service.revoke_key(key_id)
        return {"id": key_id, "status": "revoked"}

    app = App(
        {
            "/admin/status": {"GET": _handler(status)},
            "/admin/reload": {"POST": _handler(reload)},
            "/admin/rollback": {"POST": _handler(rollback)},
            "/admin/keys": {"GET": _handler(keys)},
        },
        below=[(KEYS_PREFIX, {"POST": _handler(revoke)})],
    )
    return _guarded(app, hashlib.sha256(credential.encode()).digest())


def generation_json(generation: Generation) -> dict[str, Json]:
    """Return what names a generation."""
    return {
        "config_sha256": generation.config_sha256,
        "artifact_id": generation.artifact_id,
        "loaded_at": generation.loaded_at,
    }


def _handler(answer: _Answer) -> Handler:
    async def handle(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            content = await answer(scope)
        except RouterError as error:
            found = refusal_of(error)
            if not isinstance(error, RequestError):
                found = Refusal(409, "not_done", str(error))
            await _refuse(send, found)
            return
        logger.info("admin: %s %s", scope["method"], scope["path"])
        await send_json(send, content)

    return handle


def _guarded(app: App, digest: bytes) -> Handler:
    async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not _known(dict(scope["headers"]), digest):
            await _refuse(
                send,
                Refusal(
                    401,
                    "invalid_admin_key",
                    "The admin API needs its own credential; send it as 'Authorization: Bearer'.",
                    headers={"www-authenticate": "Bearer"},
                ),
            )
            return
        await app(scope, receive, send)

    return guarded


def _known(headers: Mapping[bytes, bytes], digest: bytes) -> bool:
    """Compare digests, so that the time says neither length nor content."""
    scheme, _, sent = headers.get(b"authorization", b"").partition(b" ")
    same = hmac.compare_digest(hashlib.sha256(sent.strip()).digest(), digest)
    return same and scheme.lower() == b"bearer"


async def _refuse(send: Send, refusal: Refusal) -> None:
    await send_bytes(send, refusal.status, refusal.header_list(), refusal.body())
