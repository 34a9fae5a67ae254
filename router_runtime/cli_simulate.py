"""``model-router simulate``: serve simulated models, to practise on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from router_runtime.console import explained_imports, out


def simulate(
    config: Annotated[Path, typer.Argument(help="Simulator config (YAML).")],
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen at.")] = 8090,
) -> None:
    """Serve a SIMULATOR of an OpenAI-compatible provider until Ctrl-C; no real model answers."""
    with explained_imports("service"):
        from router_runtime.simulator import config as settings
        from router_runtime.simulator.serve import serve
    settled = settings.load_simulator_config(config)
    shown = f"[{host}]" if ":" in host else host

    def tell() -> None:
        out.print(f"SIMULATOR at http://{shown}:{port}/v1 - no real model answers here.")
        for name, model in settled.models.items():
            out.print(f"  {name} ({model.role})")

    serve(settled, host=host, port=port, listening=tell)
