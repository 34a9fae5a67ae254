"""``model-router keys``: create, list and revoke the API keys of a service."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from router_runtime.cli_options import JsonOption, complete_models
from router_runtime.console import err, explained_imports, out, plain_table, print_json
from router_runtime.errors import ConfigError

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from router_runtime.config import RuntimeConfig
    from router_runtime.service.values import KeyLimits

keys_app = typer.Typer(
    no_args_is_help=True, help="Create, list and revoke the API keys of a service."
)

ConfigOption = Annotated[Path, typer.Option("--config", help="Runtime config (YAML).")]


@keys_app.command()
def create(
    config: ConfigOption,
    name: Annotated[str, typer.Option(help="Whose key it is, for lists and reports.")],
    allow: Annotated[
        list[str] | None,
        typer.Option(
            help="A candidate it may use; repeat. Without: all.", autocompletion=complete_models
        ),
    ] = None,
    requests_per_minute: Annotated[int | None, typer.Option(min=1, help="Beyond it 429.")] = None,
    tokens_per_minute: Annotated[int | None, typer.Option(min=1, help="Beyond it 429.")] = None,
    max_concurrency: Annotated[int | None, typer.Option(min=1, help="Requests at a time.")] = None,
    usd_per_day: Annotated[str | None, typer.Option(help="Per UTC calendar day.")] = None,
    usd_per_month: Annotated[str | None, typer.Option(help="Per UTC calendar month.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Create a key and print it, once: only a digest of it is kept."""
    with explained_imports("service"):
        from router_runtime.config import load_config
        from router_runtime.service.keys import create_key, need_pepper
        from router_runtime.service.values import KeyLimits
    settled = load_config(config)
    pepper = need_pepper(settled.service.keys, os.environ)
    _check_models(settled, allow or [])
    limits = KeyLimits(
        requests_per_minute=requests_per_minute,
        tokens_per_minute=tokens_per_minute,
        max_concurrency=max_concurrency,
        usd_per_day=_dollars(usd_per_day, "--usd-per-day"),
        usd_per_month=_dollars(usd_per_month, "--usd-per-month"),
    )
    with _database(settled, config) as engine:
        made = create_key(engine, pepper, name=name, allowed_models=allow or None, limits=limits)
    err.print(f"Key {made.id} for {name}. It is shown this once; keep it where secrets are kept.")
    if as_json:
        print_json({"id": made.id, "name": name, "key": made.key})
    else:
        out.print(made.key, soft_wrap=True)


@keys_app.command("list")
def list_(config: ConfigOption, as_json: JsonOption = False) -> None:
    """List all keys, revoked ones too, and what they may do."""
    with explained_imports("service"):
        from router_runtime.config import load_config
        from router_runtime.service.keys import limits_to_json, list_keys
    with _database(load_config(config), config) as engine:
        found = list_keys(engine)
    if as_json:
        rows = [{**asdict(info), "limits": limits_to_json(info.limits)} for info in found]
        print_json({"keys": rows})
        return
    if not found:
        out.print("There are no keys; the service is open to everybody on this machine.")
        return
    table = plain_table("keys")
    for title in ("id", "name", "created", "state", "models", "limits"):
        table.add_column(title, overflow="fold")
    for info in found:
        table.add_row(
            info.id,
            info.name,
            _day(info.created_at),
            "in force" if info.revoked_at is None else f"revoked {_day(info.revoked_at)}",
            "all" if info.allowed_models is None else ", ".join(info.allowed_models),
            _limits(info.limits),
        )
    out.print(table)


@keys_app.command()
def revoke(
    key_id: Annotated[str, typer.Argument(help="The key's id, as `keys list` shows it.")],
    config: ConfigOption,
    as_json: JsonOption = False,
) -> None:
    """Revoke a key for good; running services refuse it within seconds (keys.refresh_s)."""
    with explained_imports("service"):
        from router_runtime.config import load_config
        from router_runtime.service.keys import revoke_key
    with _database(load_config(config), config) as engine:
        revoked = revoke_key(engine, key_id)
    if as_json:
        print_json({"id": key_id, "revoked_now": revoked})
        return
    out.print(f"{key_id} is revoked." if revoked else f"{key_id} was revoked before.")


@contextmanager
def _database(config: RuntimeConfig, file: Path) -> Iterator[Engine]:
    """Open the store's database with this version's tables, and errors without its password."""
    with explained_imports("service"):
        from sqlalchemy.exc import DBAPIError

        from router_runtime.service.store.engine import located, open_engine, unreachable, upgrade
    engine = open_engine(located(config.service.store, file.parent.resolve()).url)
    try:
        upgrade(engine)
        yield engine
    except DBAPIError as error:
        raise unreachable(engine) from error
    finally:
        engine.dispose()


def _check_models(config: RuntimeConfig, models: list[str]) -> None:
    """Refuse a misspelt candidate; without configured candidates the artifact's are not known."""
    known = [candidate.id for candidate in (*config.candidates, *config.direct)]
    for model in models:
        if config.candidates and model not in known:
            raise ConfigError(f"--allow '{model}' is no candidate (known: {', '.join(known)}).")


def _dollars(value: str | None, option: str) -> Decimal | None:
    if value is None:
        return None
    try:
        usd = Decimal(value)
    except InvalidOperation:
        usd = Decimal("NaN")
    if not usd.is_finite() or usd < 0:
        raise ConfigError(f"{option} must be US dollars >= 0, such as 2.50, not '{value}'.")
    return usd


def _limits(limits: KeyLimits) -> str:
    from router_runtime.service.keys import limits_to_json

    found = limits_to_json(limits)
    return ", ".join(f"{name} {value}" for name, value in found.items()) or "none"


def _day(at_s: float) -> str:
    return f"{datetime.fromtimestamp(at_s, UTC):%Y-%m-%d}"
