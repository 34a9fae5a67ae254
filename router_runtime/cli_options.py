"""Options that commands share, ``--version``, and what a shell completes for them.

Completion reads a manifest or a config as it is and loads no model; where something is missing or
damaged it offers nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from router_runtime import __version__
from router_runtime.base_artifact import default_artifact
from router_runtime.console import out
from router_runtime.errors import RouterError
from router_runtime.types import Json
from router_runtime.yaml_config import read_yaml

_MANIFEST = "manifest.json"
_FOLDER = Path("router_artifacts")


def complete_artifacts(incomplete: str) -> list[str]:
    """Return artifact folders that begin so: below what is typed, and in ``router_artifacts``."""
    typed = Path(incomplete or ".")
    parent = typed if not incomplete or incomplete.endswith("/") else typed.parent
    folders = {*_folders(parent), *_folders(_FOLDER)}
    return sorted(str(path) for path in folders if str(path).startswith(incomplete))


def _folders(parent: Path) -> Iterable[Path]:
    try:
        return [path for path in parent.iterdir() if (path / _MANIFEST).is_file()]
    except OSError:
        return []


def complete_routers(incomplete: str) -> list[str]:
    """Return artifact folders, and configs of the current folder and ``configs``."""
    found = (path for folder in (Path(), Path("configs")) for path in folder.glob("*.y*ml"))
    configs = sorted(str(path) for path in found if str(path).startswith(incomplete))
    return [*complete_artifacts(incomplete), *configs]


def complete_policies(context: typer.Context, incomplete: str) -> list[str]:
    """Return presets, the config's policies, and the artifact's where it recommends one."""
    from router_runtime.policy import PRESETS

    content, manifest = _named(context)
    names = {*PRESETS, *(content.get("policies") or {})}
    if manifest.get("recommended_policy") is not None:
        names.add("recommended")
    return sorted(name for name in names if name.startswith(incomplete))


def complete_models(context: typer.Context, incomplete: str) -> list[str]:
    """Return the candidates of the config, or the models of the artifact."""
    content, manifest = _named(context)
    entries = content.get("candidates") or []
    names = [entry["id"] for entry in entries if isinstance(entry, dict) and "id" in entry]
    names = names or manifest.get("model_ids") or []
    return [name for name in names if str(name).startswith(incomplete)]


def _named(context: typer.Context) -> tuple[dict[str, Json], dict[str, Json]]:
    """Return the config and the manifest that the command line names so far; empty without."""
    given = context.params
    content: dict[str, Json] = {}
    folder = given.get("artifact")
    try:
        if given.get("config") is not None:
            config = Path(given["config"])
            content = read_yaml(config)
            folder = config.parent / str(content.get("artifact", "."))
        path = Path(folder or default_artifact()) / _MANIFEST
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RouterError):
        manifest = {}
    return content, manifest if isinstance(manifest, dict) else {}


def _print_version(asked: bool) -> None:
    if asked:
        from router_runtime.artifacts import FORMAT_VERSION, READ_VERSIONS

        read = ", ".join(map(str, READ_VERSIONS))
        out.print(f"model-router {__version__} (artifact format {FORMAT_VERSION}; reads {read})")
        raise typer.Exit()


VersionOption = Annotated[
    bool,
    typer.Option(
        "--version",
        callback=_print_version,
        is_eager=True,
        help="Print the version and the artifact formats that it writes and reads.",
    ),
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON object on stdout, and nothing else there.")
]
PolicyOption = Annotated[
    str | None, typer.Option(help="Policy or preset to use.", autocompletion=complete_policies)
]
ArtifactOption = Annotated[
    Path | None, typer.Option(help="Artifact folder.", autocompletion=complete_artifacts)
]
ArtifactArgument = Annotated[
    Path, typer.Argument(help="Artifact folder.", autocompletion=complete_artifacts)
]
