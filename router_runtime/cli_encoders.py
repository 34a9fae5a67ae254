"""``model-router export-encoder`` and ``check-encoder``: encoders without PyTorch."""

from __future__ import annotations

from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Column, Table

from router_runtime.artifact_folder import MANIFEST
from router_runtime.artifacts import load_artifact
from router_runtime.cli_options import ArtifactArgument, JsonOption, PolicyOption, complete_routers
from router_runtime.config import EncoderRuntime, load_config
from router_runtime.console import EXIT_FOUND, err, explained_imports, out, print_json
from router_runtime.errors import ConfigError
from router_runtime.prediction.encoders import EXPORTED_KINDS
from router_runtime.prediction.encoders.specs import EncoderSpec
from router_runtime.types import Json
from router_runtime.yaml_config import StrictModel, read_yaml, validate

if TYPE_CHECKING:
    from router_runtime.exporting_encoders.checking import Comparison
    from router_runtime.prediction.encoders.onnx_folder import OnnxManifest, Precision


class ExportedPrecision(StrEnum):
    """Precisions of files, by name."""

    FP32 = "fp32"
    INT8 = "int8"


class ServedPrecision(StrEnum):
    """Precisions of encoders, by name: bf16 computes the files of fp32 in bfloat16."""

    FP32 = "fp32"
    BF16 = "bf16"
    INT8 = "int8"


_PRECISIONS: dict[ExportedPrecision, Precision] = {
    ExportedPrecision.FP32: "fp32",
    ExportedPrecision.INT8: "int8",
}


def export_encoder(
    source: Annotated[
        str,
        typer.Argument(
            help="What to export: an artifact folder, a YAML file with one encoder's settings, or "
            "a kind ('clip', 'sentence').",
            autocompletion=complete_routers,
        ),
    ],
    output: Annotated[Path, typer.Option(help="Folder of exported encoders.")],
    precision: Annotated[
        list[ExportedPrecision] | None, typer.Option(help="May be repeated. Without: both.")
    ] = None,
    samples: Annotated[
        Path | None,
        typer.Option(help="JSON lines to measure on, as for check-encoder. Without: made-up ones."),
    ] = None,
    weight_bits: Annotated[
        int | None,
        typer.Option(
            min=7,
            max=8,
            help="Of int8 weights: 8 for processors with VNNI or AMX, 7 for all others. Without: "
            "what suits this machine.",
        ),
    ] = None,
    least_cosine: Annotated[
        float,
        typer.Option(
            min=0, max=1, help="int8: blocks stay in fp32 until every sample keeps this cosine."
        ),
    ] = 0.9985,
    as_json: JsonOption = False,
) -> None:
    """Write an encoder as ONNX graphs, which are served without PyTorch."""
    with explained_imports("clip"):
        from router_runtime.exporting_encoders.exporting import export_encoder as export
        from router_runtime.exporting_encoders.samples import probes_of, read_samples
    probes = None if samples is None else probes_of(read_samples(samples))
    chosen: list[Precision] = [_PRECISIONS[one] for one in precision or ExportedPrecision]
    told = []
    for spec in _specs(source):
        folder, manifest = export(
            spec,
            output,
            precisions=chosen,
            probes=probes,
            weight_bits=None if weight_bits is None else (7 if weight_bits == 7 else 8),
            least_cosine=least_cosine,
            on_step=lambda step: err.print(step),
        )
        told.append({"folder": folder, **manifest.model_dump(mode="json")})
        if as_json:
            continue
        out.print(f"{folder}", soft_wrap=True)
        out.print(_exported(manifest))
        out.print("Serve it with (in the runtime config):", soft_wrap=True)
        out.print(f"  encoder: {{engine: onnx, folder: {folder}, precision: {chosen[-1]}}}")
    if as_json:
        print_json({"encoders": told})
    elif "int8" in chosen:
        out.print(
            "int8 was measured on these samples alone. Before an artifact takes it: model-router "
            "check-encoder ARTIFACT --samples FILE",
            soft_wrap=True,
        )


def check_encoder(
    artifact: ArtifactArgument,
    samples: Annotated[
        Path,
        typer.Option(
            help='JSON lines: a text, {"messages": [...]} or {"text": ..., "images": [...]}.'
        ),
    ],
    config: Annotated[
        Path | None, typer.Option(help="Runtime config (YAML) with the encoder to check.")
    ] = None,
    folder: Annotated[
        Path | None, typer.Option(help="Folder of exported encoders, instead of --config.")
    ] = None,
    precision: Annotated[
        ServedPrecision,
        typer.Option(help="With --folder. OpenVINO runs bf16, ONNX Runtime the others."),
    ] = ServedPrecision.INT8,
    policy: PolicyOption = None,
    min_cosine: Annotated[float, typer.Option(min=0, max=1, help="Of every vector.")] = 0.98,
    mean_dp: Annotated[float, typer.Option(min=0, max=1, help="Mean absolute change of P.")] = 0.01,
    changed: Annotated[
        float,
        typer.Option(min=0.0001, max=1, help="Share of decisions that may change (95 % sure)."),
    ] = 0.05,
    record: Annotated[
        bool, typer.Option(help="Write it into the artifact when it keeps all bounds.")
    ] = True,
    as_json: JsonOption = False,
) -> None:
    """Compare an exported encoder with the one an artifact was trained with; accept it or not."""
    with explained_imports("onnx"):
        from router_runtime.exporting_encoders import checking
        from router_runtime.exporting_encoders.samples import read_samples
    settled = None if config is None else load_config(config)
    if (settled is None) == (folder is None):
        raise ConfigError("Give either --config or --folder, which say what is to be checked.")
    if settled is not None:
        runtime = settled.encoder
    else:
        engine = "openvino" if precision is ServedPrecision.BF16 else "onnx"
        content = {"engine": engine, "folder": folder, "precision": precision.value}
        runtime = validate(EncoderRuntime, content, source="--folder")
    queries = read_samples(samples, rule=load_artifact(artifact).text)
    bounds = checking.Bounds(min_cosine=min_cosine, mean_dp=mean_dp, changed=changed)
    found = checking.compare(
        artifact, queries, runtime, config=settled, policy=policy, bounds=bounds
    )
    if as_json:
        print_json({**asdict(found), "failures": found.failures})
    else:
        _print_comparison(found)
    if found.failures:
        err.print(f"not accepted: {'; '.join(found.failures)}", soft_wrap=True)
        raise typer.Exit(EXIT_FOUND)
    if not record:
        return
    artifact_id = checking.record(artifact, found)
    if not as_json:
        out.print(f"Accepted, and recorded in {artifact} (now {artifact_id}).", soft_wrap=True)


def register(app: typer.Typer) -> None:
    """Add both commands."""
    app.command("export-encoder")(export_encoder)
    app.command("check-encoder")(check_encoder)


def _specs(source: str) -> list[EncoderSpec]:
    """Return the encoders that the argument of ``export-encoder`` names."""
    path = Path(source)
    if (path / MANIFEST).is_file():
        specs = load_artifact(path).features.encoders
        found: list[EncoderSpec] = [spec for spec in specs if spec.kind in EXPORTED_KINDS]
        if not found:
            raise ConfigError(
                f"Artifact '{path}' has no encoder that can be exported "
                f"({', '.join(EXPORTED_KINDS)})."
            )
        return found
    if path.is_file():
        content = read_yaml(path)
        return [_parsed(content.get("encoder", content), source=source)]
    if path.suffix or len(path.parts) > 1:
        raise ConfigError(f"'{source}' is neither an artifact folder nor a YAML file.")
    return [_parsed(source, source="SOURCE")]


class _Holder(StrictModel):
    encoder: EncoderSpec


def _parsed(content: Json, *, source: str) -> EncoderSpec:
    """Return a spec from its mapping, or from a kind's name, which stands for its defaults."""
    mapping = {"kind": content} if isinstance(content, str) else content
    return validate(_Holder, {"encoder": mapping}, source=source).encoder


def _exported(manifest: OnnxManifest) -> Table:
    columns = ("precision", "half", "least cosine", "mean cosine", "max |d|", "stands in")
    table = Table(*(Column(name, overflow="fold") for name in columns), box=None, pad_edge=False)
    for precision, variant in manifest.variants.items():
        for name, half in (("text", variant.text), ("picture", variant.picture)):
            if half is not None:
                measured = half.measured
                table.add_row(
                    precision,
                    name,
                    f"{measured.min_cosine:.5f}",
                    f"{measured.mean_cosine:.5f}",
                    f"{measured.max_abs_difference:.1e}",
                    "yes" if variant.equal else "after check-encoder",
                )
    return table


def _print_comparison(found: Comparison) -> None:
    out.print(f"{found.samples} samples")
    for half in found.halves:
        out.print(
            f"  {half.encoder} {half.half}: mean cosine {half.mean_cosine:.5f}, least "
            f"{half.min_cosine:.5f} ({half.samples} vectors)"
        )
    low, high = found.mean_dp_interval
    out.print(f"  mean |dP| {found.mean_dp:.5f} (95 %: {low:.5f} to {high:.5f})")
    out.print(f"  largest |dP| {found.max_dp:.5f}")
    low, high = found.changed_interval
    out.print(
        f"  changed decisions {found.changed} of {found.samples} (95 %: {low:.2%} to {high:.2%})"
    )
