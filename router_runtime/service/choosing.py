"""From a checked body to a decision: the router's, or the caller's own where a model is named."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Final

from router_runtime.errors import RequestError
from router_runtime.images import load_image
from router_runtime.messages import ImageLoader, query_from_messages, request_requirements
from router_runtime.service.controls import read_controls
from router_runtime.service.gateway import Exchange, Gateway
from router_runtime.service.headers import session_of
from router_runtime.service.pictures import urls_of
from router_runtime.service.sessions import identify
from router_runtime.service.values import Controls, Routed, Step
from router_runtime.types import Image, Json, Query

AUTO: Final = "auto"
CLAMPED: Final = "clamped_for_key"
"""Why a candidate is kept from a key whose share of dear calls leapt."""


async def choose(
    gateway: Gateway, exchange: Exchange, body: Mapping[str, Any], *, model: str
) -> tuple[Routed, Controls]:
    """Decide who answers a chat request; also what the request's controls were.

    Parameters
    ----------
    gateway : Gateway
    exchange : Exchange
        Gets what was requested and what was decided.
    body : mapping
        Checked.
    model : str
        ``auto``, ``auto:POLICY`` or a configured model.

    Raises
    ------
    RequestError
        The model or policy is unknown or not allowed, or a control is wrong.
    QueryError
        The messages cannot be routed on.
    NoEligibleModelError
        No candidate can serve the request.
    """
    name, _, policy = model.partition(":")
    if name != AUTO or model == f"{AUTO}:":
        routed = named(exchange, model)
        if exchange.generation.pictures is not None:  # the model will fetch them, as its server can
            exchange.generation.pictures.check(urls_of(body["messages"]))
        return routed, _controls(exchange, body, None) if body.get("router") else Controls()
    controls = _controls(exchange, body, policy or None)
    exchange.requested = model
    exchange.routed = await _decided(gateway, exchange, body, controls)
    return exchange.routed, controls


def named(exchange: Exchange, model: str) -> Routed:
    """Return the decision for a model that the request names; nothing is predicted.

    Raises
    ------
    RequestError
        404 where there is none of that name, 403 where the key may not use it.
    """
    generation = exchange.generation
    if model not in generation.callable_models:
        raise no_such_model()
    if not exchange.caller.may_use(model):
        raise RequestError(
            f"This key may not use '{model}'. Use another model, or a key that may.",
            status=403,
            code="model_not_allowed",
            param="model",
        )
    exchange.requested = model
    exchange.routed = Routed(
        (model,),
        "requested",
        steps=(Step("choose", "requested", {"model": model}),),
        artifact_id=generation.artifact_id,
    )
    return exchange.routed


def no_such_model() -> RequestError:
    """Return the error for a name that is neither configured nor ``auto``.

    The name is not repeated: it comes from the request.
    """
    return RequestError(
        "There is no such model here; GET /v1/models lists them.",
        status=404,
        code="model_not_found",
        param="model",
    )


def _controls(exchange: Exchange, body: Mapping[str, Any], policy: str | None) -> Controls:
    generation = exchange.generation
    return read_controls(
        body.get("router"),
        model_field_policy=policy,
        router=generation.router,
        clamps=generation.config.service.clamps,
    )


async def _decided(
    gateway: Gateway, exchange: Exchange, body: Mapping[str, Any], controls: Controls
) -> Routed:
    generation, caller = exchange.generation, exchange.caller
    messages = body["messages"]
    header = generation.config.service.stickiness.header
    return await generation.decider.decide(
        await _query(exchange, body),
        controls,
        caller,
        session=identify(
            messages, header=session_of(exchange.headers, header), user=body.get("user")
        ),
        remaining_usd=await gateway.limiter.remaining_usd(caller),
        clamped=dict.fromkeys(gateway.withheld(caller.key_id), CLAMPED),
    )


async def _query(exchange: Exchange, body: Mapping[str, Any]) -> Query:
    """Return what is routed on; pictures are decoded off the event loop."""
    router = exchange.generation.router
    messages = body["messages"]
    make = partial(
        query_from_messages,
        messages,
        rule=router.artifact.text,
        limits=router.limits,
        requirements=request_requirements(body),
    )
    if not any(isinstance(message.get("content"), list) for message in messages):
        return make()
    return await asyncio.to_thread(make, load=await _loader(exchange, messages))


async def _loader(exchange: Exchange, messages: Sequence[Mapping[str, Json]]) -> ImageLoader | None:
    """Return what turns a picture's source into a picture, where some are to be fetched."""
    fetcher = exchange.generation.pictures
    urls = urls_of(messages) if fetcher is not None else ()
    if fetcher is None or not urls:
        return None
    found = await fetcher.fetch_all(urls)
    limits = exchange.generation.router.limits

    def load(source: Any) -> Image:
        if isinstance(source, str) and source in found:
            return found[source]
        return load_image(source, limits=limits, allow_paths=False)

    return load
