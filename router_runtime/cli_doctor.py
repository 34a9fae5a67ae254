"""``model-router doctor``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Column, Table
from rich.text import Text

from router_runtime.console import EXIT_INPUT, out
from router_runtime.doctor import examine, to_json

_STYLES = {"ok": "green", "note": "yellow", "problem": "red"}


def doctor(
    config: Annotated[
        Path | None, typer.Option(help="Runtime config whose services and folders are tried too.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what is installed, which encoders work, what can be reached, and how much disk is left.

    Exit status 0: nothing has to be mended (notes are choices); 2: something has. No key is sent or
    printed.

    Example: model-router doctor --config configs/service.yml
    """
    found = examine(config)
    content = to_json(found)
    if as_json:
        print(json.dumps(content, indent=2))
    else:
        table = Table("", "", "", Column(overflow="fold"), show_header=False, box=None)
        for finding in found:
            status = Text(finding.status, style=_STYLES[finding.status])
            table.add_row(finding.section, finding.name, status, finding.detail)
        out.print(table)
        problems = sum(finding.status == "problem" for finding in found)
        out.print(f"{problems} problems" if problems else "nothing has to be mended")
    if not content["ok"]:
        raise typer.Exit(EXIT_INPUT)
