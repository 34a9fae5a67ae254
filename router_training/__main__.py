"""Starts ``router-train``, explaining a missing extra instead of failing on its import."""

from __future__ import annotations

import importlib

from router_runtime.console import explained_imports, run_app


def main() -> None:
    """Run the command line."""
    run_app(_start)


def _start(**options: bool) -> object:
    with explained_imports("train"):  # also what a command imports when it runs
        return importlib.import_module("router_training.cli").app(**options)


if __name__ == "__main__":
    main()
