"""``model-router serve``, and what ``check-config`` says about serving."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from router_runtime.console import explained_imports, out
from router_runtime.errors import RouterError

if TYPE_CHECKING:
    from router_runtime.config import RuntimeConfig
    from router_runtime.service_config import ServiceConfig


def serve(
    config: Annotated[Path, typer.Option("--config", help="Runtime config (YAML).")],
    log_level: Annotated[
        str, typer.Option(help="debug, info (a line per request), warning or error.")
    ] = "warning",
) -> None:
    """Serve OpenAI's API until Ctrl-C or SIGTERM; SIGHUP reads the config again."""
    with explained_imports("service"):
        from router_runtime.config import load_config
        from router_runtime.service.logs import configure_logs
        from router_runtime.service.serve import serve as run
    settings = load_config(config).service
    configure_logs(log_level)
    shown = f"[{settings.host}]" if ":" in settings.host else settings.host
    out.print(f"Starting at http://{shown}:{settings.port}/v1 (page: /ui; ready when /readyz is).")
    if os.environ.get(settings.admin.key_env, "").strip():
        out.print(f"Admin API at http://127.0.0.1:{settings.admin.port}/admin/status.")
    else:
        out.print(f"No admin API: {settings.admin.key_env} is not set.")
    run(config)


def serving_notes(config: RuntimeConfig, *, folder: Path) -> Iterator[str]:
    """Yield what serving with this config would do that is worth knowing before.

    Parameters
    ----------
    config : RuntimeConfig
    folder : Path
        Where the config file lies.
    """
    settings = config.service
    missing = [c.id for c in (*config.candidates, *config.direct) if c.target is None]
    if missing or not config.candidates:
        yield f"cannot be served: no target for {', '.join(missing) or 'any candidate'}"
    if settings.redis_url is None:
        yield "limits and budgets: per process (no redis_url); replicas would each allow them"
    else:
        yield "limits and budgets: shared through Redis"
    yield from _variables(settings)
    yield _keys_note(settings, folder)
    kept = "kept" if settings.store.content else "not kept"
    yield f"store: {settings.store.url.partition(':')[0]}; messages are {kept}"
    unpriced = [c.id for c in (*config.candidates, *config.direct) if c.price is None]
    if unpriced:
        yield f"spend of {', '.join(unpriced)} is not counted (no price); budgets do not see it"


def _variables(settings: ServiceConfig) -> Iterator[str]:
    for name, without in (
        (settings.keys.pepper_env, "API keys can be neither made nor checked"),
        (settings.admin.key_env, "there is no admin API"),
    ):
        if not os.environ.get(name, "").strip():
            yield f"{name} is not set: {without}"
    if settings.host not in ("127.0.0.1", "::1", "localhost"):
        yield f"host {settings.host}: starts only where API keys exist"


def _keys_note(settings: ServiceConfig, folder: Path) -> str:
    """Say how many keys there are; a database that is not there yet is not made by looking."""
    with explained_imports("service"):
        from sqlalchemy.exc import SQLAlchemyError

        from router_runtime.service.keys import list_keys
        from router_runtime.service.store.engine import located, open_engine, require_current
    engine = open_engine(located(settings.store, folder).url)
    try:
        require_current(engine)
        found = [key for key in list_keys(engine) if key.revoked_at is None]
    except (RouterError, SQLAlchemyError):
        return "API keys: cannot be told, the database is not there yet or does not answer"
    finally:
        engine.dispose()
    return f"API keys in force: {len(found)}" if found else "API keys: none; loopback only"
