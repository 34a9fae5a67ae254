"""A model added back without retraining: hidden from training, then scored on some hundred rows.

The labelled rows are drawn, by whole groups, from calibration and test, none of which the head has
been fitted on, as the rows of a user who scores a new model afterwards. Judged on the test rows
that are left, beside the base rate of the labelled rows and the column of the default recipe that
saw all training labels of the model.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from quality_parts.report import Section, Spread, spread
from quality_parts.systems import Bench, recipe
from router_runtime.prediction.heads.joined import JoinedHead
from router_runtime.types import F64, Head, Int, Json
from router_training.fit_added import fit_added
from router_training.labels import ARRAYS, LabelMatrix
from router_training.metrics import probability_metrics
from router_training.pipeline import Walk

LABELS, DRAWS = (100, 200, 400), 5
MIN_JUDGED = 50  # test rows that must be left to judge on


def run(bench: Bench) -> Json:
    """Return the hidden model, and AUC and Brier by number of labels and way, a value per draw."""
    walk, hidden = bench.walk, bench.hidden_model
    column = walk.data.model_ids.index(hidden)
    y, X = walk.data.labels.Y[:, column], np.asarray(walk.features.X)
    test = walk.split.test
    head = head_without(bench, hidden)
    joint = np.full(len(X), np.nan)
    joint[test] = bench.predictions(recipe()).P_test[:, column]
    found: dict[str, dict[str, list[float]]] = {}
    rng = np.random.default_rng([bench.config.seed, 2])
    for many in LABELS:
        for _ in range(DRAWS):
            labelled = _drawn(bench, y, many, rng)
            judged = np.setdiff1d(test[~np.isnan(y[test])], labelled)
            if len(labelled) < many or len(judged) < MIN_JUDGED:
                break
            fitted = fit_added(X[labelled], head.predict_proba(X[labelled]), y[labelled])
            ways = {
                "added": JoinedHead(head, [fitted.column]).predict_proba(X[judged])[:, -1],
                "base rate of the labelled": np.full(len(judged), y[labelled].mean()),
                "trained jointly on all": joint[judged],
            }
            for way, p in ways.items():
                metrics = probability_metrics(p, y[judged])
                values = found.setdefault(f"{many}: {way}", {"auc": [], "brier": []})
                values["auc"].append(metrics.auc)
                values["brier"].append(metrics.brier)
    return {"hidden": hidden, "found": found}


def _drawn(bench: Bench, y: F64, many: int, rng: np.random.Generator) -> Int:
    """Return ``many`` scored rows of calibration and test, and with each its whole group."""
    split = bench.walk.split
    spare = np.concatenate([split.calibration, split.test])
    spare = spare[~np.isnan(y[spare])]
    group = np.unique(np.asarray(bench.walk.data.groups)[spare], return_inverse=True)[1]
    place = rng.permutation(group.max() + 1)[group]
    ordered = spare[np.argsort(place, kind="stable")]
    sorted_places = np.sort(place)
    end = np.searchsorted(sorted_places, sorted_places[min(many, len(spare)) - 1], "right")
    return ordered[:end]


def head_without(bench: Bench, hidden: str) -> Head:
    """Fit the default recipe's head to all models but one."""
    walk = bench.walk
    candidates = tuple(entry for entry in walk.config.candidates if entry.id != hidden)
    with tempfile.TemporaryDirectory() as folder:
        update = {"candidates": candidates, "work_dir": Path(folder)}
        data = replace(walk.data, labels=_labels_without(walk.data.labels, hidden))
        rest = Walk(walk.config.model_copy(update=update), data=data, split=walk.split)
        rest.features = walk.features  # made once, so it stays
        return rest.fitted[0]


def _labels_without(labels: LabelMatrix, hidden: str) -> LabelMatrix:
    keep = [j for j, model in enumerate(labels.model_ids) if model != hidden]
    arrays = {name: getattr(labels, name)[:, keep] for name in ARRAYS}
    return LabelMatrix(tuple(labels.model_ids[j] for j in keep), **arrays)


def section(results: Mapping[str, Sequence[Json]]) -> Section:
    """Return the study as a table: per table and way the mean over draws and seeds."""
    rows, data = [], {}
    for key, seeds in results.items():
        each = [seed["found"] for seed in seeds]
        for way in dict.fromkeys(way for found in each for way in found):
            values = {
                name: Spread.of(v for found in each for v in found.get(way, {}).get(name, []))
                for name in ("auc", "brier")
            }
            data[f"{key}: {way}"] = {name: vars(value) for name, value in values.items()}
            labels, what = way.split(": ")
            rows.append((key, labels, what, spread(values["auc"]), spread(values["brier"])))
    hidden = "; ".join(f"{key}: {seeds[0]['hidden']}" for key, seeds in results.items())
    return Section(
        "A model added without retraining",
        f"One model is hidden from training and added back ({hidden}). Means ± standard deviations "
        f"over {DRAWS} draws of the labelled rows per seed, on the test rows that are left.",
        ("table", "labels", "forecast", "AUC", "Brier"),
        tuple(rows),
        data,
    )
