"""Starts ``router-train``, explaining a missing extra instead of failing on its import."""

from __future__ import annotations

import importlib
from types import ModuleType

from router_runtime.console import explained_imports, run_app


def main() -> None:
    """Run the command line."""
    run_app(_start)


def _start(**options: bool) -> object:
    return _command_line().app(**options)


def _command_line() -> ModuleType:
    with explained_imports("train"):
        return importlib.import_module("router_training.cli")


if __name__ == "__main__":
    main()
