"""``model-router experts``: serve LoRA experts on one base model, list, add and remove them."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Column, Table

from router_runtime.cli_options import JsonOption
from router_runtime.console import explained_imports, out, print_json
from router_runtime.errors import ConfigError

experts_app = typer.Typer(
    name="experts",
    help="LoRA experts on one base model, in this process or on a vLLM server.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

UrlOption = Annotated[
    str, typer.Option(help="Server of experts or vLLM server, such as http://127.0.0.1:8091.")
]
KeyOption = Annotated[
    str | None, typer.Option(help="Name of the environment variable with the server's key.")
]


@experts_app.command()
def serve(
    config: Annotated[Path | None, typer.Argument(help="Experts config (YAML).")] = None,
    base: Annotated[
        str | None, typer.Option(help="Base model, folder or hub id, instead of CONFIG.")
    ] = None,
    adapter: Annotated[
        list[str] | None, typer.Option(help="name=folder; may be repeated. With --base.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="What the base is called. With --base.")] = None,
    device: Annotated[
        str | None, typer.Option(help="auto, cpu, cuda or cuda:N. With --base.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen at.")] = 8091,
) -> None:
    """Serve a base model and its adapters with OpenAI's chat API until Ctrl-C."""
    from router_runtime.experts.config import config_of_options, load_experts_config

    if (config is None) == (base is None):
        raise ConfigError("Give either a CONFIG file or --base.")
    if config is not None:
        if adapter or name or device:
            raise ConfigError(
                "--adapter, --name and --device go with --base; write them into CONFIG."
            )
        settled = load_experts_config(config)
    else:
        options = {"name": name, "base.device": device}
        settled = config_of_options(str(base), tuple(adapter or ()), options)
    with explained_imports("lora"):
        from router_runtime.experts.service import Experts
    with explained_imports("service"):
        from router_runtime.experts import serve as serving
    serving.check_reachable(settled, host)
    experts = Experts.load(settled)
    shown = f"[{host}]" if ":" in host else host
    out.print(f"Experts at http://{shown}:{port}/v1 on base '{settled.base_name}':")
    for card in experts.engine.pool.cards:
        out.print(f"  {card.name} ({card.n_bytes / 2**20:.2f} MB)")
    try:
        serving.serve(experts, host=host, port=port)
    finally:
        experts.close()


@experts_app.command("list")
def list_(url: UrlOption, key_env: KeyOption = None, as_json: JsonOption = False) -> None:
    """List the models of a server: the base, and the adapters on it."""
    from router_runtime.experts.remote import list_models

    models = list_models(url, key=_key(key_env))
    if as_json:
        print_json({"models": [asdict(model) for model in models]})
        return
    table = Table(
        Column("model", overflow="fold"), "on", Column("MB", justify="right"), "folder", box=None
    )
    for model in models:
        size = "" if model.n_bytes is None else f"{model.n_bytes / 2**20:.2f}"
        table.add_row(model.id, model.parent or "", size, model.root or "")
    out.print(table)


@experts_app.command()
def add(
    name: Annotated[str, typer.Argument(help="What requests will call the adapter.")],
    path: Annotated[str, typer.Argument(help="Its folder, on the server's machine.")],
    url: UrlOption,
    key_env: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Load an adapter into a running server that allows it."""
    from router_runtime.experts.remote import add_adapter

    _tell(name, add_adapter(url, name, path, key=_key(key_env)), as_json)


@experts_app.command()
def remove(
    name: Annotated[str, typer.Argument(help="The adapter.")],
    url: UrlOption,
    key_env: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remove an adapter from a running server; its folder stays."""
    from router_runtime.experts.remote import remove_adapter

    _tell(name, remove_adapter(url, name, key=_key(key_env)), as_json)


def _tell(name: str, said: str, as_json: bool) -> None:
    if as_json:
        print_json({"adapter": name, "said": said})
    else:
        out.print(said)


def _key(variable: str | None) -> str | None:
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise ConfigError(f"Environment variable '{variable}' (--key-env) is not set.")
    return key
