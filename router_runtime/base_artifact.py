"""Where the artifact lies that comes with the project: two tiers, for use before training.

It stands in ``router_artifacts/base`` beside the packages, in a clone and where a wheel was
installed alike.
"""

from __future__ import annotations

from pathlib import Path

TIERS = ("weak", "strong")
"""Its columns."""


def base_artifact() -> Path:
    """Return the folder; it may be missing where somebody removed it."""
    return Path(__file__).resolve().parents[1] / "router_artifacts" / "base"


def default_artifact() -> Path:
    """Return the folder that is used where none is named.

    That is ``router_artifacts`` in the current folder where it is an artifact itself, which is
    where LLM Router v2 looks, else the base artifact.
    """
    here = Path("router_artifacts")
    return here if (here / "manifest.json").is_file() else base_artifact()
