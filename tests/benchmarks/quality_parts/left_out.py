"""Each data set left out of training in turn: what the router does on an unknown kind of task."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from quality_parts.report import Section, Spread, number, spread
from quality_parts.systems import Bench
from quality_parts.tables import LEFT_OUT_BRIER, LEFT_OUT_GAP
from router_runtime.types import Json
from router_training.leave_out import leave_out


def run(bench: Bench) -> Json:
    """Return the figures of every left-out data set, as plain values."""
    return [found.to_json() for found in leave_out(bench.config)]


def section(results: Mapping[str, Sequence[Json]]) -> Section:
    """Return the study as a table, with the demands that it misses."""
    rows, data, failed = [], {}, []
    for key, seeds in results.items():
        for dataset in dict.fromkeys(found["dataset"] for seed in seeds for found in seed):
            each = [found for seed in seeds for found in seed if found["dataset"] == dataset]
            gap = Spread.of(found["accuracy"] - found["default_accuracy"] for found in each)
            excess = Spread.of(found["brier"] - found["prior_brier"] for found in each)
            auc, novel = (
                Spread.of(math.nan if found[name] is None else found[name] for found in each)
                for name in ("auc", "novel_share")
            )
            missed = [
                *(["accuracy"] if not gap.mean >= -LEFT_OUT_GAP else []),
                *(["Brier"] if not excess.mean <= LEFT_OUT_BRIER else []),
            ]
            failed += [f"{key}: {dataset} left out: {what}" for what in missed]
            data[f"{key}: {dataset}"] = each
            rows.append(
                (
                    key,
                    str(dataset),
                    str(each[0]["n"]),
                    spread(gap, percent=True),
                    spread(excess),
                    spread(auc),
                    number(novel.mean, percent=True),
                    f"missed: {', '.join(missed)}" if missed else "met",
                )
            )
    header = (
        "table",
        "left out",
        "rows",
        "accuracy - default",
        "Brier - training mean's",
        "AUC",
        "novel",
        "must",
    )
    return Section(
        "Data sets left out of training",
        "Trained and tuned without the data set, judged on all of its rows. Must: accuracy at most "
        f"{100 * LEFT_OUT_GAP:.1f} points below always taking the default model, Brier at most "
        f"{LEFT_OUT_BRIER} above the training mean's.",
        header,
        tuple(rows),
        data,
        tuple(failed),
    )
