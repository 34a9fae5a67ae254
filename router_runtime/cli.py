"""``model-router``: route, look into artifacts and configs, simulate, convert older files.

Commands parse, call one function and print. Other packages add commands through the entry point
group ``model_router.commands``; that is how ``model-router evaluate`` comes from training without
the runtime importing it.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from enum import StrEnum
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Column, Table

from router_runtime.base_artifact import default_artifact
from router_runtime.cli_doctor import doctor
from router_runtime.cli_encoders import register as register_encoders
from router_runtime.cli_examples import ADDED, EXAMPLES, RESULTS, epilog, teach
from router_runtime.cli_experts import experts_app
from router_runtime.cli_keys import keys_app
from router_runtime.cli_options import (
    ArtifactArgument,
    ArtifactOption,
    JsonOption,
    PolicyOption,
    VersionOption,
)
from router_runtime.cli_serve import serve, serving_notes
from router_runtime.cli_simulate import simulate
from router_runtime.cli_store import register as register_store
from router_runtime.console import err, explained_imports, out, print_json, run_app
from router_runtime.errors import ConfigError, MissingDependencyError, QueryError

if TYPE_CHECKING:
    from router_runtime.artifacts import Manifest
    from router_runtime.images import ImageLimits
    from router_runtime.model_router import ModelRouter
    from router_runtime.prediction.encoders.specs import EncoderSpec
    from router_runtime.types import Image, Json, Query, RoutingDecision

app = typer.Typer(
    name="model-router",
    help="Routes requests to the cheapest model that is good enough.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

ConfigOption = Annotated[Path | None, typer.Option(help="Runtime config (YAML).")]


@app.callback()
def _root(version: VersionOption = False) -> None:
    """Routes requests to the cheapest model that is good enough."""


@app.command()
def route(
    text: Annotated[str | None, typer.Argument(help="The prompt; '-' reads it from stdin.")] = None,
    image: Annotated[list[Path] | None, typer.Option(help="A picture; may be repeated.")] = None,
    messages: Annotated[
        Path | None, typer.Option(help="JSON file with OpenAI chat messages, instead of TEXT.")
    ] = None,
    artifact: ArtifactOption = None,
    config: ConfigOption = None,
    policy: PolicyOption = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda; with --artifact.")] = "auto",
    quiet: Annotated[bool, typer.Option("--quiet", help="Print the model's name only.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Choose a model for one prompt, and say why."""
    router = _router(artifact, config, device)
    query = _query(router, text, image or [], messages)
    decision = router.decide(query, policy=policy)
    if as_json:
        print_json(dataclasses.asdict(decision))
    elif quiet:
        print(decision.model_id)
    else:
        _print_decision(decision)


@app.command()
def inspect(artifact: ArtifactArgument, as_json: JsonOption = False) -> None:
    """Show what an artifact contains, after checking its manifest."""
    from router_runtime.artifacts import read_manifest

    manifest = read_manifest(artifact)
    if as_json:
        print_json(manifest.model_dump(mode="json"))
    else:
        _print_manifest(artifact, manifest)


@app.command("check-config")
def check_config(
    config: Annotated[Path, typer.Argument(help="Runtime config (YAML).")],
    as_json: JsonOption = False,
) -> None:
    """Load a config, its artifact and its encoders, as serving would, and say what is in force."""
    from router_runtime.config import load_config
    from router_runtime.model_router import ModelRouter

    settled = load_config(config)
    info = ModelRouter.from_config(settled).get_model_info()
    notes = []
    models = (*settled.candidates, *settled.direct)
    if "service" in settled.model_fields_set or any(one.target is not None for one in models):
        notes = list(serving_notes(settled, folder=config.resolve().parent))
    if as_json:
        print_json({**info, "serving": notes})
        return
    out.print(f"{config} is valid.")
    for key in ("artifact_id", "candidates", "encoders", "cost_unit", "threshold_config"):
        value = info[key]
        out.print(f"  {key}: {', '.join(value) if isinstance(value, list) else value}")
    if notes:
        out.print("Serving:")
    for note in notes:
        out.print(f"  {note}", soft_wrap=True)


app.command()(doctor)
app.command()(serve)
app.command()(simulate)
app.add_typer(keys_app, name="keys")
app.add_typer(experts_app, name="experts")
register_store(app)
register_encoders(app)


class _ImportedEncoder(StrEnum):
    CLIP = "clip"
    CLIP_AS_SERVICE = "clip-as-service"
    NVCLIP = "nvclip"


class _ConfigForm(StrEnum):
    NAT = "nat"
    LITELLM = "litellm"


class _ImportedHead(StrEnum):
    MLP = "mlp"
    XGBOOST = "xgboost"


@app.command("import-artifact")
def import_artifact_command(
    source: Annotated[Path, typer.Argument(help="Folder with nn_router.pth and its companions.")],
    output: Annotated[Path, typer.Option(help="Artifact folder to write.")],
    encoder: Annotated[
        _ImportedEncoder, typer.Option(help="What made the features it was trained on.")
    ] = _ImportedEncoder.CLIP,
    head: Annotated[
        _ImportedHead, typer.Option(help="Which model to convert.")
    ] = _ImportedHead.MLP,
    as_json: JsonOption = False,
) -> None:
    """Convert a folder of nn_router.pth files; nothing in it is executed."""
    from router_runtime.legacy import import_artifact
    from router_runtime.prediction.encoders.specs import ClipSpec, RemoteSpec

    specs: dict[_ImportedEncoder, EncoderSpec] = {
        _ImportedEncoder.CLIP: ClipSpec(),
        _ImportedEncoder.CLIP_AS_SERVICE: RemoteSpec(protocol="clip-as-service", dim=512),
        _ImportedEncoder.NVCLIP: RemoteSpec(dim=512),
    }
    artifact = import_artifact(source, output, encoder=specs[encoder], head=head.value)
    if as_json:
        told = {"output": output, "artifact_id": artifact.artifact_id}
        print_json({**told, "model_ids": artifact.model_ids})
        return
    models = ", ".join(artifact.model_ids)
    out.print(f"{output}: {len(artifact.model_ids)} models ({models})", soft_wrap=True)
    out.print("The features it was trained on cannot be checked; compare some decisions first.")


@app.command("import-config")
def import_config(
    source: Annotated[
        Path,
        typer.Argument(help="NAT workflow YAML with an nn_objective_fn block, or LiteLLM's YAML."),
    ],
    output: Annotated[Path, typer.Option(help="Runtime config to write.")],
    artifact: Annotated[Path, typer.Option(help="Artifact folder that the config shall name.")],
    form: Annotated[
        _ConfigForm, typer.Option("--from", help="Whose config it is: LLM Router v2's or LiteLLM's")
    ] = _ConfigForm.NAT,
    as_json: JsonOption = False,
) -> None:
    """Convert another router's config; every key without a counterpart is listed."""
    import yaml

    from router_runtime.artifacts import read_manifest
    from router_runtime.legacy import convert_nat_config
    from router_runtime.legacy.litellm_config import convert_litellm_config

    beside = artifact if artifact.is_absolute() else os.path.relpath(artifact, output.parent)
    if form is _ConfigForm.LITELLM:
        known = read_manifest(artifact).model_ids if artifact.is_dir() else None
        content, ignored = convert_litellm_config(source, artifact=beside, model_ids=known)
    else:
        content, ignored = convert_nat_config(source, artifact=beside)
    if output.exists():
        raise ConfigError(f"'{output}' exists; remove it or choose another name.")
    try:
        output.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    except OSError:
        output.unlink(missing_ok=True)
        raise
    if as_json:
        print_json({"output": output, "without_counterpart": ignored})
        return
    out.print(f"wrote {output}")
    for key in ignored:
        err.print(f"no counterpart: {key}")


# --------------------------------------------------------------------------- helpers


def _router(artifact: Path | None, config: Path | None, device: str) -> ModelRouter:
    from router_runtime.config import RuntimeConfig
    from router_runtime.model_router import ModelRouter
    from router_runtime.yaml_config import validate

    if artifact is not None and config is not None:
        raise ConfigError("Name one of --artifact FOLDER and --config FILE, not both.")
    if config is not None:
        return ModelRouter.from_config(config)
    folder = default_artifact() if artifact is None else artifact
    content = {"artifact": folder, "encoder": {"device": device}}
    return ModelRouter.from_config(validate(RuntimeConfig, content, source="model-router route"))


def _query(
    router: ModelRouter, text: str | None, images: list[Path], messages: Path | None
) -> Query:
    from router_runtime.messages import query_from_messages

    if messages is not None:
        if text is not None or images:
            raise QueryError("--messages holds the whole request; leave out TEXT and --image.")
        return query_from_messages(
            _read_messages(messages), rule=router.artifact.text, limits=router.limits
        )
    if text is None and not images:
        raise QueryError("Give a prompt, --image or --messages.")
    prompt = sys.stdin.buffer.read() if text == "-" else os.fsencode(text or "")
    try:
        decoded = prompt.decode("utf-8")
    except UnicodeDecodeError as error:
        raise QueryError(f"The prompt is not UTF-8 (byte {error.start:,}).") from error
    return router.query(decoded, [_picture(path, router.limits) for path in images])


def _picture(path: Path, limits: ImageLimits) -> Image:
    from router_runtime.images import load_image

    try:
        return load_image(path, limits=limits)
    except QueryError as error:
        raise QueryError(f"--image {path}: {error}") from error


def _read_messages(path: Path) -> list[Json]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise QueryError(f"'{path}' cannot be read as JSON: {error}") from error
    messages = content.get("messages") if isinstance(content, dict) else content
    if not isinstance(messages, list):
        raise QueryError(f"'{path}' holds neither a list of messages nor a request with one.")
    return messages


def _print_decision(decision: RoutingDecision) -> None:
    unit = {"usd": "expected USD", "relative": "relative cost"}.get(decision.cost_unit, "cost")
    table = Table("", "model", "P(good)", unit, "", box=None, pad_edge=False)
    rest = [model for model in decision.probabilities if model not in decision.ranking]
    for model in [*decision.ranking, *rest]:
        cost = decision.expected_cost[model]
        table.add_row(
            "->" if model == decision.model_id else "",
            model,
            f"{decision.probabilities[model]:.3f}",
            "unknown" if cost is None else f"{cost:.6f}",
            decision.ineligible.get(model, ""),
        )
    novelty = "unknown" if decision.novelty is None else f"{decision.novelty:.3f}"
    out.print(
        f"{decision.model_id}  ({decision.reason}, policy {decision.policy}, novelty {novelty})"
    )
    out.print(table)


def _print_manifest(folder: Path, manifest: Manifest) -> None:
    from router_runtime.prediction.parts import predictor_facts

    rows = {
        "artifact": str(folder),
        "made by": f"{manifest.created_by}, format {manifest.format_version}",
        "models": ", ".join(manifest.model_ids),
        **predictor_facts(manifest.predictor),
        "novelty": "no" if manifest.novelty is None else _summary(manifest.novelty),
        "learned costs": "no" if manifest.costs is None else "yes",
        "recommended policy": json.dumps(manifest.recommended_policy),
        "files": ", ".join(manifest.files),
    }
    for key, value in manifest.training.items():
        rows.setdefault(key, _summary(value))
    table = Table("", Column(overflow="fold"), show_header=False, box=None, pad_edge=False)
    for key, value in rows.items():
        table.add_row(key.replace("_", " "), value)
    out.print(table)


_LONGEST = 500
"""Characters of an entry that ``inspect`` shows; marks of training rows have thousands."""


def _summary(value: Json) -> str:
    """Return an entry of the provenance in one cell; ``--json`` has the details."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {entry}" for key, entry in value.items())
    if isinstance(value, list) and all(isinstance(e, dict) and "chosen" in e for e in value):
        return ", ".join(f"{entry.get('model_id')} {entry['chosen']}" for entry in value)
    if isinstance(value, list) and all(isinstance(e, dict) and "model" in e for e in value):
        return ", ".join(f"{entry['model']} from {entry.get('labels')} scores" for entry in value)
    text = str(value)
    return text if len(text) <= _LONGEST else f"{len(text):,} characters"


def main() -> None:
    """Run the command line, with the commands that installed packages add."""
    run_app(_start)


def _start(**options: bool) -> object:
    """Load added commands only when one of them, or the help that lists them, is asked for."""
    asked = sys.argv[1:2]
    for entry in entry_points(group="model_router.commands"):
        try:
            if asked in ([], ["--help"], [entry.name]):
                _add(entry)
        except MissingDependencyError:
            if asked == [entry.name]:
                raise
    return app(**options)


def _add(entry: EntryPoint) -> None:
    with explained_imports("train"):
        app.command(entry.name, epilog=epilog(ADDED.get(entry.name, ())))(entry.load())


teach(app, EXAMPLES, RESULTS)

if __name__ == "__main__":
    main()
