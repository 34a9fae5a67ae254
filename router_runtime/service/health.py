"""``/healthz``, ``/readyz`` and ``/startupz``: three questions that an orchestrator asks.

Alive: would a restart help? Only where a part of this process has died. Ready: may traffic come?
Not before the router is loaded, nor while the process is leaving. A dead database or Redis makes
neither false: requests go on without them, and taking every replica away would be the outage that
the rest is built to avoid; what is degraded is said in the answer. None of them needs a key, so
none of them says more than names of parts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from router_runtime.service.asgi import Receive, Scope, Send, send_json

CheckResult: TypeAlias = Literal["ok", "degraded", "dead"]
Check: TypeAlias = Callable[[], CheckResult]


@dataclass
class Health:
    """What the three questions are answered from.

    Parameters
    ----------
    checks : mapping of part to callable
        ``degraded``: it does not work, requests go on. ``dead``: only a restart helps.
    started, draining : bool
        Set by who starts and stops the service.
    """

    checks: Mapping[str, Check] = field(default_factory=dict)
    started: bool = False
    draining: bool = False

    async def alive(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer ``/healthz``: 503 where a part has died."""
        found = {name: check() for name, check in self.checks.items()}
        dead = "dead" in found.values()
        await _answer(send, not dead, "dead" if dead else "ok", found)

    async def ready(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer ``/readyz``: 503 before the start and while the process is leaving."""
        found = {name: check() for name, check in self.checks.items()}
        if self.draining or not self.started:
            await _answer(send, False, "draining" if self.draining else "starting", found)
        else:
            degraded = any(state != "ok" for state in found.values())
            await _answer(send, True, "degraded" if degraded else "ok", found)

    async def startup(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer ``/startupz``: 503 until config, artifact and encoders are loaded."""
        await _answer(send, self.started, "ok" if self.started else "starting", {})


async def _answer(send: Send, good: bool, status: str, checks: Mapping[str, str]) -> None:
    await send_json(
        send,
        {"status": status, "checks": dict(checks)},
        status=200 if good else 503,
        headers=[(b"cache-control", b"no-store")],
    )
