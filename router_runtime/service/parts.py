"""``Service``: every part of the service built from one config and joined, without its sockets.

What a reload replaces (candidates, policies, limits of requests, the artifact) is in generations.
What it does not (addresses, database, Redis, keys, traces) is built once; a reload that changes
such a setting says so.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from sqlalchemy.exc import SQLAlchemyError

from router_runtime.config import RuntimeConfig, load_config
from router_runtime.errors import ConfigError, RequestError
from router_runtime.model_router import ModelRouter
from router_runtime.pricing import price_from_mapping
from router_runtime.service.deciding import Decider
from router_runtime.service.expensive import ExpensiveWatch, dear_models
from router_runtime.service.gateway import Gateway
from router_runtime.service.generations import (
    Generation,
    Generations,
    config_digest,
    load_router,
)
from router_runtime.service.health import Check, CheckResult, Health
from router_runtime.service.keys import Keys, list_keys, read_pepper, revoke_key
from router_runtime.service.limits_shared import SharedLimiter, open_limiter
from router_runtime.service.logs import Logs
from router_runtime.service.metrics import Metrics
from router_runtime.service.pictures import PictureFetcher
from router_runtime.service.sessions import Sessions
from router_runtime.service.sinks import Sinks
from router_runtime.service.spending import baseline_of
from router_runtime.service.store import Store, open_store
from router_runtime.service.tracing import Tracing, open_tracing
from router_runtime.service.values import Limiter, Sink
from router_runtime.targets.breaker import Breakers
from router_runtime.targets.forward import Forwarder, build_forwarders
from router_runtime.types import Json

logger = logging.getLogger(__name__)

ONCE: Final = (
    "host",
    "port",
    "admin",
    "keys",
    "store",
    "traces",
    "redis_url",
    "stickiness",
    "expensive",
)
"""Sections of ``service`` that only a restart changes."""

LOOPBACK: Final = frozenset({"127.0.0.1", "::1", "localhost"})
_DRAIN_S: Final = 10.0


@dataclass
class Service:
    """A running service; made by ``open_service``.

    Parameters
    ----------
    path : Path
        The config file, read again by ``reload``.
    config : RuntimeConfig
        The first one.
    """

    path: Path
    config: RuntimeConfig
    store: Store
    keys: Keys
    limiter: Limiter
    generations: Generations
    gateway: Gateway
    metrics: Metrics
    watch: ExpensiveWatch
    health: Health
    telemetry: Sinks
    records: Sinks
    tracing: Tracing | None
    router_failures: dict[str, int] = field(default_factory=dict)

    async def reload(self) -> Generation:
        """Put the config file as it is now into force; on any error nothing changes."""
        generation = await self.generations.reload(self.path)
        self._follow(generation.config)
        if changed := self.needs_restart():
            logger.warning("only a restart changes service.%s", ", service.".join(changed))
        return generation

    async def rollback(self) -> Generation:
        """Return to the config before the last reload."""
        generation = await self.generations.rollback()
        self._follow(generation.config)
        return generation

    def _follow(self, config: RuntimeConfig) -> None:
        """Let prices that have changed say which candidates are dear, and what is saved against."""
        self.watch.watch(dear_models(self.config.service.expensive, config.candidates))
        self.metrics.baseline_model = baseline_of(config)

    def needs_restart(self) -> list[str]:
        """Return the sections in which the config in force differs from what runs."""
        now = self.generations.current.config.service
        return [name for name in ONCE if getattr(now, name) != getattr(self.config.service, name)]

    def status(self) -> dict[str, Json]:
        """Return the state of every part as plain values."""
        generations = self.generations
        current, previous = generations.current, generations.previous
        status_of = getattr(self.limiter, "status", dict)
        return {
            "config": _named(current),
            "previous": None if previous is None else _named(previous),
            "restart_needed_for": self.needs_restart(),
            "in_flight": self.gateway.in_flight,
            "encoding_queue": sum(current.decider.predictions.queued.values()),
            "breakers": self.breaker_states(),
            "store": _plain(self.store.status()),
            "limiter": status_of(),
            "keys": self.keys.status(),
            "expensive": self.watch.status(),
            "sinks": {**self.records.status(), **self.telemetry.status()},
            "router_failures": dict(self.router_failures),
        }

    def breaker_states(self) -> dict[str, str]:
        """Return the state of each model's breaker."""
        breakers = self.generations.current.breakers
        return {model: str(breaker.state) for model, breaker in breakers.items()}

    async def list_keys(self) -> list[dict[str, Json]]:
        """Return the keys, without digests."""
        found = await asyncio.to_thread(self._asked, list_keys)
        return [_plain(key) for key in found]

    async def revoke_key(self, key_id: str) -> None:
        """Revoke a key; here at once, in other processes when they look again."""
        await asyncio.to_thread(self._asked, revoke_key, key_id)
        await asyncio.to_thread(self.keys.refresh)

    def _asked(self, question: Any, *arguments: Any) -> Any:
        try:
            return question(self.store.engine, *arguments)
        except SQLAlchemyError as error:
            raise RequestError(
                "The database does not answer; try again when it does.",
                status=503,
                code="store_unavailable",
                retry_after_s=5,
            ) from error

    async def close(self) -> None:
        """Write what is to be written and free what is held; requests have ended before."""
        self.health.draining = True
        await self.generations.close()
        if isinstance(self.limiter, SharedLimiter):
            await self.limiter.close()
        await asyncio.to_thread(self.keys.close)
        status = await asyncio.to_thread(self.store.close, _DRAIN_S)
        if status.queued:
            logger.warning("%d records stay in the spool for the next start", status.queued)
        if self.tracing is not None:
            await asyncio.to_thread(self.tracing.close)


async def open_service(path: Path, *, environ: Mapping[str, str] = os.environ) -> Service:
    """Build a service from its config file; nothing listens yet.

    Parameters
    ----------
    path : Path
    environ : mapping
        Where the pepper and the targets' keys are.

    Raises
    ------
    RouterError
        The config, the artifact, the database's tables or a variable cannot be used, or there are
        no keys and the address is not this machine's alone.
    """
    config = await asyncio.to_thread(load_config, path)
    settings = config.service
    tracing = open_tracing(settings.traces)
    pepper = read_pepper(settings.keys, environ)
    store = await asyncio.to_thread(open_store, settings.store, folder=path.resolve().parent)
    try:
        keys = Keys(store.engine, pepper=pepper, refresh_s=settings.keys.refresh_s)
        await asyncio.to_thread(_load_keys, keys)
        check_address(settings.host, keys)
        return await _joined(path, config, store, keys, tracing, environ)
    except BaseException:
        await asyncio.to_thread(store.close, 1.0)
        raise


def _load_keys(keys: Keys) -> None:
    """Read the keys; where the database is away nobody is let in until it is back."""
    try:
        keys.load()
    except SQLAlchemyError as error:
        logger.warning("keys cannot be read yet: %s", type(error).__name__)
    keys.start()


def check_address(host: str, keys: Keys) -> None:
    """Refuse to serve other machines without keys.

    Raises
    ------
    ConfigError
        There are none and ``host`` is not loopback.
    """
    if not keys.open_to_all:
        return
    if host not in LOOPBACK:
        raise ConfigError(
            f"service.host is '{host}' and there are no API keys: anybody who reaches it would "
            "spend your money. Create one with 'model-router keys create', or listen at 127.0.0.1."
        )
    logger.warning("there are no API keys: everybody on this machine is served without one")


async def _joined(
    path: Path,
    config: RuntimeConfig,
    store: Store,
    keys: Keys,
    tracing: Tracing | None,
    environ: Mapping[str, str],
) -> Service:
    settings = config.service
    limiter = open_limiter(settings, spent=store.spent)
    if isinstance(limiter, SharedLimiter):
        await limiter.start()
    metrics = Metrics(baseline_model=baseline_of(config))
    watch = ExpensiveWatch(
        settings.expensive, dear=dear_models(settings.expensive, config.candidates)
    )
    sinks: dict[str, Sink] = {"metrics": metrics, "expensive": watch, "logs": Logs()}
    if tracing is not None:
        sinks["traces"] = tracing
    telemetry, records = Sinks(sinks), Sinks({"store": store})
    breakers = Breakers(clock=time.monotonic)
    failures: dict[str, int] = {}
    sessions = Sessions(settings.stickiness, clock=time.monotonic)
    factory = _Factory(breakers, sessions, failures, environ, metrics)
    generations = Generations(factory.build)
    gateway = Gateway(
        generations=generations,
        keys=keys,
        limiter=limiter,
        withheld=watch.excluded,
        store=records,
        telemetry=telemetry,
    )
    service = Service(
        path=path,
        config=config,
        store=store,
        keys=keys,
        limiter=limiter,
        generations=generations,
        gateway=gateway,
        metrics=metrics,
        watch=watch,
        health=Health(),
        telemetry=telemetry,
        records=records,
        tracing=tracing,
        router_failures=failures,
    )
    service.health.checks = _checks(service)
    _gauges(service)
    await generations.reload(path)
    service.health.started = True
    return service


# --------------------------------------------------------------------------- generations


class _Factory:
    """Builds generations around what they share."""

    def __init__(
        self,
        breakers: Breakers,
        sessions: Sessions,
        failures: dict[str, int],
        environ: Mapping[str, str],
        metrics: Metrics,
    ) -> None:
        self._breakers = breakers
        self._metrics = metrics
        self._sessions = sessions
        self._failures = failures
        self._environ = environ

    async def build(self, config: RuntimeConfig) -> Generation:
        """Build a generation, warm; nothing of the running one is touched."""
        check_targets(config)
        router = await load_router(config)
        forwarders = await asyncio.to_thread(
            build_forwarders,
            (*config.candidates, *config.direct),
            environment=self._environ,
            max_answer_bytes=config.service.calls.max_answer_bytes,
        )
        try:
            return self._around(config, router, forwarders)
        except BaseException:
            await _aclose(forwarders)
            raise

    def _around(
        self, config: RuntimeConfig, router: ModelRouter, forwarders: Mapping[str, Forwarder]
    ) -> Generation:
        identities = {model: forwarder.identity for model, forwarder in forwarders.items()}
        breakers = self._breakers.for_models(identities, config.service.breaker)
        decider = Decider(
            router,
            config,
            resting=lambda model: breakers[model].refuses if model in breakers else False,
            sessions=self._sessions,
            clock=time.monotonic,
            on_failure=self._count_failure,
            on_batch=self._metrics.record_batch,
        )
        fetch = config.images.fetch
        pictures = None if fetch is None else PictureFetcher(fetch, router.limits)

        async def close() -> None:
            await _aclose(forwarders)
            if pictures is not None:
                await pictures.aclose()

        return Generation(
            config=config,
            router=router,
            decider=decider,
            forwarders=forwarders,
            breakers=breakers,
            prices={
                model.id: price_from_mapping(model.price.model_dump(), owner=model.id)
                for model in (*config.candidates, *config.direct)
                if model.price is not None
            },
            pictures=pictures,
            config_sha256=config_digest(config),
            artifact_id=router.artifact.artifact_id,
            loaded_at=time.time(),
            close=close,
        )

    def _count_failure(self, kind: str) -> None:
        self._failures[kind] = self._failures.get(kind, 0) + 1


async def _aclose(forwarders: Mapping[str, Forwarder]) -> None:
    for forwarder in forwarders.values():
        await forwarder.aclose()


def check_targets(config: RuntimeConfig) -> None:
    """Refuse a config that names models which cannot be called.

    Raises
    ------
    ConfigError
        There is no candidate, or one without a target.
    """
    if not config.candidates:
        raise ConfigError(
            "'candidates' is empty: the service needs to know where each model is called. List "
            "them with a 'target' each."
        )
    for candidate in (*config.candidates, *config.direct):
        if candidate.target is None:
            raise ConfigError(
                f"'{candidate.id}' has no 'target', so the service cannot call it. Add one, or "
                "leave the model out."
            )


# --------------------------------------------------------------------------- what is told


def _checks(service: Service) -> dict[str, Check]:
    def store() -> CheckResult:
        if not service.store.alive:
            return "dead"
        status = service.store.status()
        return "degraded" if status.last_error or status.losses.get("spool_full") else "ok"

    def keys() -> CheckResult:
        return "degraded" if service.keys.stale else "ok"

    def limiter() -> CheckResult:
        return "degraded" if getattr(service.limiter, "degraded", False) else "ok"

    def router() -> CheckResult:
        return "ok" if service.generations.loaded else "degraded"

    return {"store": store, "keys": keys, "limiter": limiter, "router": router}


def _gauges(service: Service) -> None:
    metrics, store = service.metrics, service.store
    metrics.gauge("requests_in_flight", "Requests being served.", lambda: service.gateway.in_flight)
    metrics.gauge(
        "encoding_queue",
        "Queries that wait to be encoded.",
        lambda: service.generations.current.decider.predictions.queued,
        label="lane",
    )
    metrics.gauge(
        "breaker_open",
        "Whether a model's breaker keeps calls away.",
        lambda: {
            model: float(breaker.refuses)
            for model, breaker in service.generations.current.breakers.items()
        },
        label="model",
    )
    metrics.gauge("store_queue", "Records not yet in the database.", lambda: store.status().queued)
    metrics.gauge("store_lag_seconds", "Age of the oldest of them.", lambda: store.status().lag_s)
    metrics.gauge("spool_bytes", "Size of the journal.", lambda: store.status().spool_bytes)
    metrics.counter(
        "lost_records",
        "Records that could not be kept.",
        lambda: dict(store.status().losses),
        label="reason",
    )
    metrics.counter(
        "router_failures",
        "Requests that default models served because routing failed.",
        lambda: sum(service.router_failures.values()),
    )
    metrics.counter(
        "sink_failures",
        "Events that a sink failed to take.",
        lambda: {
            name: float(str(count))
            for sinks in (service.records, service.telemetry)
            for name, count in sinks.status().items()
        },
        label="sink",
    )
    metrics.counter(
        "expensive_alarms",
        "Keys whose share of dear calls leapt.",
        lambda: service.watch.alarms,
    )
    metrics.gauge(
        "limiter_degraded",
        "Whether this process counts limits alone because Redis is away.",
        lambda: float(getattr(service.limiter, "degraded", False)),
    )


def _named(generation: Generation) -> dict[str, Json]:
    return {
        "config_sha256": generation.config_sha256,
        "artifact_id": generation.artifact_id,
        "loaded_at": generation.loaded_at,
    }


def _plain(value: Any) -> dict[str, Json]:
    found: dict[str, Json] = asdict(value)
    return found
