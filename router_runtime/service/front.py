"""The service's table of paths."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from router_runtime.service.app import App, Handler
from router_runtime.service.asgi import Receive, Scope, Send, send_bytes, send_json
from router_runtime.service.chat import chat
from router_runtime.service.dashboard import Dashboard
from router_runtime.service.envelope import Refusal
from router_runtime.service.feedback import Feedbacks
from router_runtime.service.feedback_api import feedback_work
from router_runtime.service.gateway import Exchange, Gateway, Work
from router_runtime.service.health import Health
from router_runtime.service.models import PREFIX, list_models, one_model
from router_runtime.service.openapi import openapi_document
from router_runtime.service.parts import Service
from router_runtime.service.passthrough import completions, embeddings
from router_runtime.service.route import route
from router_runtime.service.sfc import sfc_router
from router_runtime.service.web import SUMMARY, summary_handler, web_files

_HEALTH_PATHS: Final = ("/healthz", "/readyz", "/startupz")


def front_app(service: Service) -> App:
    """Return the application of a service that has started."""
    gateway, health = service.gateway, service.health
    get, post = "GET", "POST"
    routes: dict[str, Mapping[str, Handler]] = {
        "/v1/chat/completions": {post: gateway.handler(chat, endpoint="chat")},
        "/v1/completions": {post: gateway.handler(completions, endpoint="completions")},
        "/v1/embeddings": {post: gateway.handler(embeddings, endpoint="embeddings")},
        "/v1/route": {post: gateway.handler(route, endpoint="route")},
        "/sfc_router/chat/completions": {post: gateway.handler(sfc_router, endpoint="sfc_router")},
        "/v1/feedback": {post: gateway.handler(feedback_work(Feedbacks(service.store)))},
        "/v1/models": {get: gateway.handler(list_models)},
        "/metrics": {get: gateway.handler(_metrics_work(service))},
        "/openapi.json": {get: _document(service)},
        SUMMARY: {get: summary_handler(gateway, _dashboard(service))},
        **_health_routes(health),
        **{path: {get: file} for path, file in web_files().items()},
    }
    return App(routes, below=[(PREFIX, {get: gateway.handler(one_model)})])


def starting_app(health: Health) -> App:
    """Return what answers before the service has started."""
    return App(_health_routes(health), below=[("/", {"*": _starting})])


def _health_routes(health: Health) -> dict[str, dict[str, Handler]]:
    handlers = (health.alive, health.ready, health.startup)
    return {path: {"GET": handler} for path, handler in zip(_HEALTH_PATHS, handlers, strict=True)}


async def _starting(scope: Scope, receive: Receive, send: Send) -> None:
    refusal = Refusal(503, "starting", "The service is starting; send this again.", retry_after_s=2)
    await send_bytes(send, refusal.status, refusal.header_list(), refusal.body())


def _metrics_work(service: Service) -> Work:
    async def metrics(gateway: Gateway, exchange: Exchange, receive: Receive, send: Send) -> None:
        text, media_type = service.metrics.render()
        await send_bytes(send, 200, [(b"content-type", media_type.encode())], text)

    return metrics


def _dashboard(service: Service) -> Dashboard:
    return Dashboard(
        service.store.engine,
        config=lambda: service.generations.current.config,
        breakers=service.breaker_states,
        in_flight=lambda: service.gateway.in_flight,
        lost=lambda: service.store.status().lost,
        clock=service.gateway.wall,
    )


def _document(service: Service) -> Handler:
    async def document(scope: Scope, receive: Receive, send: Send) -> None:
        limits = service.generations.current.config.service.requests
        await send_json(send, openapi_document(limits))

    return document
