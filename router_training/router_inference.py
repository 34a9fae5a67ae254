"""The category router as a script: ``router-train route-sequence``.

python router_training/router_inference.py --mode single --query "What is 2+2?"
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    # Python puts a script's folder first on the path, where ``config`` or ``evaluate`` would hide
    # other packages' modules of that name. The repository's root is what belongs there.
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from router_runtime.console import require

    require("router_training.cli_sequence", extra="train")

import typer

from router_runtime.console import run_app
from router_training.cli_sequence import route_sequence

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
app.command()(route_sequence)

if __name__ == "__main__":
    run_app(app)
