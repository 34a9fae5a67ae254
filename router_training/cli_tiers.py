"""``router-train make-tiers``: tables of many models into records of tiers."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from router_runtime.cli_options import JsonOption
from router_runtime.console import out, print_json
from router_training.cli_options import print_skipped


def make_tiers(
    config: Annotated[
        Path, typer.Argument(help="Which model of which table is which tier (YAML).")
    ],
    data: Annotated[Path, typer.Option("--data", help="Folder of the tables.")],
    output: Annotated[Path, typer.Option(help=".jsonl, .jsonl.gz, .json or .parquet to write.")],
    as_json: JsonOption = False,
) -> None:
    """Merge tables of models' outcomes into records of tiers, such as weak and strong."""
    from router_training.labels import write_evaluations
    from router_training.made_from import write_made_from
    from router_training.tiers import load_tiers_config, merge_tiers

    records, tables = merge_tiers(load_tiers_config(config), data)
    print_skipped(records)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_evaluations(records, output)
    write_made_from(tables, output)
    if as_json:
        told = {"output": output, "records": len(records), "model_ids": records.model_ids}
        print_json({**told, "tables": [asdict(table) for table in tables]})
        return
    for table in tables:
        models = ", ".join(f"{tier}: {model}" for tier, model in table.models.items())
        out.print(f"{table.name}: {table.rows} records ({models})", soft_wrap=True)
    out.print(f"wrote {len(records)} records of {', '.join(records.model_ids)} to {output}")
