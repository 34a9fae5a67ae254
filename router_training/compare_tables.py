"""A comparison in the console: what every router achieves and takes, then the differences."""

from __future__ import annotations

import numpy as np
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from router_runtime.console import plain_table
from router_training.compare import NAN, Comparison
from router_training.footprint import Footprint, Latency
from router_training.wording import (
    UNKNOWN,
    cost_header,
    interval,
    magnitude,
    milliseconds,
    number,
    per_1k,
    percent,
    seconds,
    share,
    signed,
)

_TAKES = (
    "train s\nembed\n+fit",
    "params\ntrained\n+frozen",
    "bytes\nartifact\n+frozen",
    "ms\nalone,\nmedian",
    "\n\np95",
)


def render_comparison(comparison: Comparison, console: Console) -> None:
    """Print every router's figures, then each one's differences from the first."""
    first = (_figures(comparison), _best_single(comparison), _timed_on(comparison), Text())
    console.print(Group(*first, _measures(comparison), *_differences(comparison)))


def _figures(comparison: Comparison) -> Table:
    table = plain_table(f"{comparison.n_queries} queries")
    table.add_column("router", overflow="fold")
    table.add_column("accuracy", justify="right")
    cost = cost_header(comparison.cost_unit).replace(" ", "\n", 1)
    for name in (cost, *_TAKES, f"ms\neach\nof {_batch_size(comparison)}"):
        table.add_column(name, justify="right")
    for entry in comparison.standings:
        achieved = share(entry.quality), per_1k(entry.cost)
        table.add_row(Text(entry.name), *achieved, *_takes(entry.footprint))
    return table


def _best_single(comparison: Comparison) -> Text:
    return Text(
        f"best single ({comparison.best_single}): accuracy {share(comparison.best_single_quality)}"
        f", {cost_header(comparison.cost_unit)} {per_1k(comparison.best_single_cost)}"
    )


def _takes(found: Footprint | None) -> tuple[str, ...]:
    if found is None:
        return (UNKNOWN,) * (len(_TAKES) + 1)
    latency = found.latency
    times = (NAN,) * 3
    if latency is not None:
        times = (latency.median_ms, latency.p95_ms, latency.batch_ms)
    return (
        f"{seconds(found.embed_s)}+{seconds(found.fit_s)}",
        f"{magnitude(found.trained_parameters)}+{magnitude(found.frozen_parameters)}",
        f"{magnitude(found.artifact_bytes)}+{magnitude(found.frozen_bytes)}",
        *map(milliseconds, times),
    )


def _latencies(comparison: Comparison) -> list[Latency]:
    found = (entry.footprint for entry in comparison.standings)
    return [one.latency for one in found if one is not None and one.latency is not None]


def _batch_size(comparison: Comparison) -> str:
    sizes = sorted({latency.batch_size for latency in _latencies(comparison)})
    return " or ".join(map(str, sizes)) or "a batch"


def _timed_on(comparison: Comparison) -> Text:
    """Say what was timed, and on what."""
    latencies = _latencies(comparison)
    if not latencies:
        return Text("No decision was timed.")
    most = max(latencies, key=lambda one: one.n_queries * one.rounds)
    return Text(
        f"Decisions timed warm, one after the other: {most.n_queries} queries, {most.rounds} "
        f"rounds, on {comparison.machine}."
    )


def _measures(comparison: Comparison) -> Table:
    table = plain_table("Against the best single model, and of the probabilities")
    table.add_column("router", overflow="fold")
    for name in ("savings", "AIQ", "AUC", "Brier", "ECE"):
        table.add_column(name, justify="right")
    for entry in comparison.standings:
        table.add_row(
            Text(f"{entry.name} ({entry.policy})"),
            percent(entry.savings),
            share(entry.aiq),
            *map(number, (entry.auc, entry.brier, entry.ece)),
        )
    return table


def _differences(comparison: Comparison) -> list[Table]:
    first = comparison.standings[0].name
    tables = []
    for entry in comparison.standings[1:]:
        if entry.difference is None:
            continue
        table = plain_table(f"{entry.name} minus {first}, 95 % interval")
        table.add_column("measure")
        table.add_column("difference", justify="right")
        rows = {
            "accuracy": interval(entry.difference.quality, signed),
            cost_header(comparison.cost_unit): interval(entry.difference.cost, _signed_per_1k),
            "savings": interval(entry.difference.savings, _signed_percent),
            "AIQ": interval(entry.difference.aiq, signed),
            "AUC": interval(entry.difference.auc, signed),
            "Brier": interval(entry.difference.brier, signed),
            "ECE": interval(entry.difference.ece, signed),
        }
        for name, text in rows.items():
            table.add_row(name, Text(text))
        tables.append(table)
    return tables


def _signed_per_1k(value: float) -> str:
    return UNKNOWN if np.isnan(value) else f"{1000 * value:+.4g}"


def _signed_percent(value: float) -> str:
    return UNKNOWN if np.isnan(value) else f"{value:+.1%}"
