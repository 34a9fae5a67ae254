"""``model-router doctor``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Column, Table
from rich.text import Text

from router_runtime.cli_options import JsonOption
from router_runtime.console import EXIT_FOUND, out, print_json

_STYLES = {"ok": "green", "note": "yellow", "problem": "red"}


def doctor(
    config: Annotated[
        Path | None, typer.Option(help="Runtime config whose services and folders are tried too.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Say what is installed, which encoders work, what can be reached, and how much disk is left.

    With a config, a text goes through its encoders, which fetches weights that are not here yet.

    Exit status 0: nothing has to be mended (notes are choices); 1: something has. No key is sent or
    printed.
    """
    from router_runtime.doctor import examine, to_json

    found = examine(config)
    content = to_json(found)
    if as_json:
        print_json(content)
    else:
        table = Table("", "", "", Column(overflow="fold"), show_header=False, box=None)
        for finding in found:
            status = Text(finding.status, style=_STYLES[finding.status])
            table.add_row(finding.section, finding.name, status, finding.detail)
        out.print(table)
        problems = sum(finding.status == "problem" for finding in found)
        found_text = f"{problems} problem" + ("s" if problems > 1 else "")
        out.print(found_text if problems else "nothing has to be mended")
    if not content["ok"]:
        raise typer.Exit(EXIT_FOUND)
