"""The commands of ``router-train`` that make routing data; ``cli`` registers them."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from router_runtime.cli_options import JsonOption
from router_runtime.console import EXIT_FOUND, err, out, plain_table, print_json

if TYPE_CHECKING:
    from router_training.routing.checks import RoutingCheck

ANY_OPTIONS = {"allow_extra_args": True, "ignore_unknown_options": True}
"""Settings of the command whose options have adapters' names in them."""

FolderArgument = Annotated[Path, typer.Argument(help="A folder of generate-routing-data.")]


def generate_command(
    context: typer.Context,
    train_samples: Annotated[
        int | None, typer.Option(min=1, help="Rows per adapter for train and val; default: all.")
    ] = None,
    eval_samples: Annotated[
        int | None, typer.Option(min=1, help="Rows per adapter for eval; default: none.")
    ] = None,
    train_images: Annotated[
        int | None, typer.Option(min=1, help="Different pictures per adapter in train and val.")
    ] = None,
    eval_images: Annotated[
        int | None, typer.Option(min=1, help="Different pictures per adapter in eval.")
    ] = None,
    train_val_split: Annotated[
        float, typer.Option(help="Share of train in train and val; above 0 and below 1.")
    ] = 0.8,
    balanced: Annotated[
        bool, typer.Option("--balanced", help="As many rows of each adapter as of the smallest.")
    ] = False,
    stratified: Annotated[
        bool, typer.Option(help="Divide train from val within each adapter, or over all.")
    ] = True,
    seed: Annotated[int, typer.Option(min=0, help="Of all that is random.")] = 0,
    on_bad_row: Annotated[
        Literal["error", "skip"], typer.Option(help="skip leaves bad rows out, listed.")
    ] = "error",
    output_dir: Annotated[Path, typer.Option(help="Gets routing_<date>_<time>.")] = Path(
        "datasets"
    ),
    as_json: JsonOption = False,
) -> None:
    """Make routing data from adapters' data sets, each given as --<adapter>-dataset PATH.

    Also per adapter: --<adapter>-image-root FOLDER, --train-samples-<adapter> N,
    --train-images-<adapter> N, --eval-samples-<adapter> N, --eval-images-<adapter> N.
    """
    from router_training.routing.generating import RoutingOptions, generate
    from router_training.routing.options import Quota, parse_adapters

    adapters = parse_adapters(
        context.args,
        train=Quota(train_samples, train_images),
        held_out=Quota(eval_samples, eval_images),
    )
    options = RoutingOptions(
        adapters,
        train_share=train_val_split,
        balanced=balanced,
        stratified=stratified,
        seed=seed,
        on_bad_row=on_bad_row,
    )
    made = generate(options, output_dir=output_dir, now=datetime.now())
    if made.bad:
        err.print(f"left out {len(made.bad)} rows:")
        for row in made.bad:
            where = f"{row.file}, row {row.row}" + (f", {row.field}" if row.field else "")
            err.print(f"  {where}: {row.reason}", soft_wrap=True)
    unused = {name: n for name, n in made.unused.items() if n}
    if as_json:
        told = {"output": made.folder, "skipped": len(made.bad), "unused": unused}
        print_json({**told, **asdict(made.check)})
        return
    _print_check(made.check)
    if unused:
        listed = ", ".join(f"{n} of {name}" for name, n in unused.items())
        out.print(f"not used: {listed}", soft_wrap=True)
    out.print(f"wrote {made.folder}", soft_wrap=True)


def check_command(folder: FolderArgument, as_json: JsonOption = False) -> None:
    """Say what the parts of routing data hold, and whether they share pictures or groups.

    Exit status 1: they do.
    """
    from router_training.routing.checks import check_routing

    check = check_routing(folder)
    if as_json:
        print_json(asdict(check))
    else:
        _print_check(check)
    if check.leaks:
        raise typer.Exit(EXIT_FOUND)


def convert_command(
    folder: FolderArgument,
    question: Annotated[
        Literal["both", "picture", "request"],
        typer.Option(help="What the router is shown: picture and request, or one of them."),
    ] = "both",
    as_json: JsonOption = False,
) -> None:
    """Write train-, val- and eval-classification.jsonl, whose answers are adapters' names."""
    from router_training.routing.classification import convert_to_classification

    written = convert_to_classification(folder, question=question)
    if as_json:
        print_json({"rows": {str(path): n for path, n in written.items()}})
        return
    for path, n in written.items():
        out.print(f"wrote {n} rows to {path}", soft_wrap=True)


def draw_command(
    folder: Annotated[Path, typer.Argument(help="Gets a data set per adapter.")],
    rows: Annotated[int, typer.Option(min=1, help="Of all adapters together.")] = 600,
    seed: Annotated[int, typer.Option(min=0, help="Of all that is random.")] = 0,
    adapters: Annotated[
        str,
        typer.Option(help="With commas; calendar, claim-window, provider-select, chandra-ocr."),
    ] = "calendar,claim-window,provider-select",
    ambiguous_share: Annotated[
        float, typer.Option(help="Share of requests that only the picture tells apart.")
    ] = 0.2,
    blank_share: Annotated[
        float, typer.Option(help="Share of blank or cut pictures, told apart by the text.")
    ] = 0.1,
    as_json: JsonOption = False,
) -> None:
    """Draw SIMULATED screenshots with requests, as the adapters' data sets."""
    from router_training.routing.screens import DrawOptions, draw_screens

    names = tuple(name.strip() for name in adapters.split(",") if name.strip())
    options = DrawOptions(rows, seed, names, ambiguous_share, blank_share)
    paths = draw_screens(folder, options)
    if as_json:
        print_json({"drawn": list(paths)})
        return
    for path in paths:
        out.print(f"drawn: {path}", soft_wrap=True)


def _print_check(check: RoutingCheck) -> None:
    table = plain_table("Routing data")
    table.add_column("part")
    adapters = list(next(iter(check.rows.values())))
    for name in (*adapters, "rows", "pictures"):
        table.add_column(name, justify="right")
    for part, counts in check.rows.items():
        numbers = [counts[name] for name in adapters]
        table.add_row(part, *map(str, [*numbers, sum(numbers), check.pictures[part]]))
    out.print(table)
    if check.contradictions:
        out.print(f"{check.contradictions} requests stand under more than one adapter")
    for leak in check.leaks:
        err.print(f"shared: {leak}", soft_wrap=True)
    if not check.leaks:
        out.print("no picture, group or id is in two parts")
