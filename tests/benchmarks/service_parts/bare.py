"""The least that a gateway can be: Starlette and an aiohttp client, forwarding bytes as they come.

Run as ``python -m service_parts.bare '{"upstream": URL, "port": N, "core": 0}'``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import uvicorn
from labelling_parts.machine import pin
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route


def build_app(upstream: str) -> Starlette:
    """Return the application."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector) as session:
            app.state.session = session
            yield

    async def forward(request: Request) -> Response:
        body = await request.body()
        session: aiohttp.ClientSession = request.app.state.session
        headers = {"content-type": "application/json"}
        answer = await session.post(f"{upstream}/v1/chat/completions", data=body, headers=headers)
        kind = answer.headers["content-type"]
        if b'"stream":true' in body:
            return StreamingResponse(answer.content.iter_any(), media_type=kind)
        content = await answer.read()
        return Response(content, answer.status, media_type=kind)

    return Starlette(
        routes=[Route("/v1/chat/completions", forward, methods=["POST"])], lifespan=lifespan
    )


if __name__ == "__main__":
    settings = json.loads(sys.argv[1])
    pin(settings.get("core"))
    uvicorn.run(
        build_app(settings["upstream"]),
        port=settings["port"],
        loop="uvloop",
        http="httptools",
        log_level="error",
        access_log=False,
    )
