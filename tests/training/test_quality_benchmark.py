"""The quality benchmark runs end to end on a small simulated table, and its verdicts are right.

The parts of ``tests/benchmarks/quality.py`` are imported as the script imports them.
"""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from router_training.evaluation_report import Interval
from router_training.fitting import (
    FitData,
    KnnConfig,
    LogisticConfig,
    StackConfig,
    fit_head,
    log_loss,
)
from router_training.simulated import write_workload

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import quality
from quality_parts.ablation import ablations, smaller_split
from quality_parts.baselines import NEIGHBOURS, baselines, fit_llm_router_v2
from quality_parts.intervals import Comparison, compare, drawn_figures, draws_of
from quality_parts.measures import Judged, measure
from quality_parts.report import Spread, number, spread
from quality_parts.systems import Bench, column_groups, recipe
from quality_parts.tables import TABLES, Demand, Table

SIMULATED = Table(
    key="simulated",
    title="Simulated workload",
    records="records.jsonl",
    images=None,
    candidates=(),
    demands=(Demand("auc", ">=", 0.5, "must"), Demand("brier", "<=", 0.0, "must")),
    hidden_model="sim-small-vl",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Arguments of a finished run on 160 simulated rows, and the folder of its results."""
    folder = tmp_path_factory.mktemp("quality")
    write_workload(folder / "data", rows=160, seed=1)
    arguments = ["--data", str(folder / "data"), "--work", str(folder / "work")]
    arguments += ["--output", str(folder / "out"), "--seeds", "1", "--resamples", "20"]
    assert quality.main(arguments, tables={"simulated": SIMULATED}) == 0
    return arguments, folder


@pytest.fixture(scope="module")
def bench(run):
    _, folder = run
    work = next(path for path in (folder / "work").iterdir() if path.name != "embedding-cache")
    return Bench(SIMULATED.config(folder / "data", seed=0, work=work))


def content(folder: Path) -> dict:
    return json.loads((folder / "out" / "quality.json").read_text(encoding="utf-8"))


def test_every_system_is_measured_and_compared_with_the_recipe(run):
    (table,) = content(run[1])["tables"]
    keys = [system["key"] for system in table["systems"]]
    assert keys == [
        *("recipe", "v2", "v2_restored", "knn", "logistic", "network", "xgboost", "prior"),
    ]
    assert [entry["against"] for entry in table["comparisons"]] == keys[1:]
    recipe_figures, prior = table["systems"][0]["figures"], table["systems"][-1]["figures"]
    assert recipe_figures["auc"]["mean"] > 0.6
    assert prior["model_auc"]["mean"] == 0.5
    assert recipe_figures["zero_aiq"] == prior["zero_aiq"]  # the same test rows


def test_the_report_says_which_demands_are_missed(run):
    report = content(run[1])
    assert [demand["met"] for demand in report["tables"][0]["demands"]] == [True, False]
    assert any("Brier <= 0.000" in line for line in report["missed_musts"])
    text = (run[1] / "out" / "quality.md").read_text(encoding="utf-8")
    assert "| must AUC >= 0.500 |" in text
    assert "**missed**" in text


def test_check_turns_a_missed_must_into_the_exit_status(run):
    assert quality.main([*run[0], "--check"], tables={"simulated": SIMULATED}) == 1


def test_a_second_run_computes_nothing_and_finds_the_same(run, monkeypatch):
    before = content(run[1])
    monkeypatch.setattr("quality_parts.work._measure_into", None)
    assert quality.main(run[0], tables={"simulated": SIMULATED}) == 0
    assert content(run[1]) == before


def test_a_stack_of_shared_members_is_the_stack_that_a_run_fits(bench):
    config = StackConfig(heads=(LogisticConfig(), KnnConfig()))
    X = np.asarray(bench.walk.features.X[bench.walk.split.test])
    fitted = fit_head(bench.fit_data, config, seed=bench.config.seed).head
    bench.stack(StackConfig(heads=(KnnConfig(),)))  # its member is shared
    np.testing.assert_array_equal(bench.stack(config).predict_proba(X), fitted.predict_proba(X))


def test_the_ablation_changes_one_thing_at_a_time(bench):
    systems = ablations(bench.config, pictures=True)
    settings = [
        json.dumps([s.settings, s.thresholds, s.constant_cost], sort_keys=True) for s in systems
    ]
    assert len(set(settings)) == len(systems)
    assert len({s.key for s in systems}) == len({s.title for s in systems}) == len(systems)


def test_columns_by_name_are_what_the_layout_says(bench):
    groups = column_groups(bench.config.features)
    X = np.asarray(bench.walk.features.X)
    has_picture = np.array([bool(query.images) for query in bench.walk.data.queries])
    assert not X[~has_picture][:, groups["pictures"]].any()
    assert X[has_picture][:, groups["pictures"]].any(axis=1).all()
    named = np.concatenate([groups[name] for name in ("n-grams", "surface", "pictures")])
    left = sorted(set(range(X.shape[1])) - set(named.tolist()))
    assert len(set(named.tolist())) == len(named)
    assert left == [X.shape[1] - 5]  # has_text


def test_smaller_shares_are_nested_and_hold_whole_groups(bench):
    small, large = smaller_split(bench, 0.2), smaller_split(bench, 0.7)
    assert set(small.train) < set(large.train) < set(bench.walk.split.train)
    assert small.test is bench.walk.split.test
    groups = np.asarray(bench.walk.data.groups)
    outside = np.setdiff1d(bench.walk.split.train, small.train)
    assert not set(groups[small.train]) & set(groups[outside])


def test_draws_of_one_single_group_are_the_figures_themselves(bench):
    from router_training.bootstrap import Resamples

    split, found = bench.walk.split, bench.predictions(recipe())
    rows = Judged(bench.part(split.calibration), bench.part(split.test))
    figures = measure(rows, found, thresholds=False)
    one_group = Resamples(np.zeros(len(split.test), dtype=np.int64), seed=0, n_resamples=2)
    for name, drawn in drawn_figures(rows, found, one_group).items():
        np.testing.assert_allclose(drawn, figures[name], atol=1e-12)


def test_rows_that_two_seeds_share_are_no_new_evidence():
    groups, rng = [str(i // 2) for i in range(400)], np.random.default_rng(0)
    values = np.repeat(rng.normal(size=200), 2)
    first, second = np.arange(200), np.arange(200, 400)

    def deviation(*tests):
        means = []
        for rows in tests:
            sums = draws_of(groups, rows, n_resamples=500).sums(
                np.stack([np.ones(len(rows)), values[rows]], axis=1)
            )
            means.append(sums[:, 1] / sums[:, 0])
        return np.mean(means, axis=0).std()

    assert deviation(first, first) == pytest.approx(deviation(first))
    assert deviation(first, second) == pytest.approx(deviation(first) / 2**0.5, rel=0.2)


def test_plain_heads_are_fitted_on_as_many_rows_as_the_default_recipe(bench):
    split, X = bench.walk.split, np.asarray(bench.walk.features.X)
    systems = {system.key: system for system in baselines()}
    found = bench.predictions(systems["knn"]).P_test
    Y = bench.walk.data.labels.Y
    pool = np.concatenate([split.train, split.validation])
    candidates = [KNeighborsClassifier(k).fit(X[pool], Y[pool, 0] >= 0.5) for k in NEIGHBOURS[:4]]
    first = [each.predict_proba(X[split.test])[:, 1] for each in candidates]
    assert any(np.allclose(found[:, 0], each) for each in first)


def test_llm_router_v2_as_published_ends_with_worse_weights_than_its_best():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(240, 12)).astype(np.float32)
    Y = (rng.random((240, 2)) < 0.5).astype(np.float64)  # nothing to learn: it can only over-fit
    data = FitData(X[:160], Y[:160], X[160:], Y[160:], ("a", "b"))

    def loss(restore: bool) -> float:
        import torch

        network = fit_llm_router_v2(data, restore=restore, seed=0)
        with torch.no_grad():
            return log_loss(network(torch.from_numpy(data.X_validation)).numpy(), Y[160:])

    assert loss(restore=True) < loss(restore=False)


def test_the_pooled_difference_is_the_mean_over_seeds_draw_by_draw():
    def seed(value: float, draws: list[float]):
        names = ("auc", "brier", "ece", "aiq")
        return dict.fromkeys(names, value), {name: np.array(draws) for name in names}

    found = compare(
        "knn",
        "kNN",
        recipe=[seed(0.8, [0.8, 0.9]), seed(0.6, [0.6, 0.7])],
        other=[seed(0.7, [0.7, 0.7]), seed(0.5, [0.4, 0.5])],
        binding=True,
    )
    # Means over seeds: .1 as estimated; draws (.1 + .2) / 2 and (.2 + .2) / 2.
    difference = found.differences["auc"]
    assert difference.estimate == pytest.approx(0.1)
    assert difference.low == pytest.approx(0.15 + 0.025 * 0.05)
    assert difference.high == pytest.approx(0.2 - 0.025 * 0.05)


def comparison(key: str, **changed: Interval) -> Comparison:
    """A comparison in which nothing differs clearly but what is given."""
    even = Interval(0.0, -1.0, 1.0)
    return Comparison(key, key, dict.fromkeys(("auc", "brier", "ece", "aiq"), even) | changed)


def test_behind_means_beyond_the_interval_and_knows_which_side_is_better():
    assert comparison("knn").behind == ()
    assert comparison("knn", auc=Interval(-0.2, -0.3, -0.1)).behind == ("AUC",)
    assert comparison("knn", brier=Interval(-0.2, -0.3, -0.1)).behind == ()
    worse = comparison("knn", brier=Interval(0.2, 0.1, 0.3))
    assert worse.behind == ("Brier",)
    assert worse.verdict == "worse: Brier"
    assert replace(worse, binding=False).behind == ()


def test_llm_router_v2_has_to_be_beaten_in_brier_and_ece_and_not_only_equalled():
    assert comparison("v2").behind == ("Brier", "ECE")
    better = Interval(-0.01, -0.02, 0.001)
    assert comparison("v2", brier=better, ece=better).behind == ()


def test_a_cost_that_one_seed_never_reaches_misses_every_bound():
    found = Spread.of([0.3, math.inf])
    assert spread(found, percent=True) == "never in 1 of 2"
    assert not Demand("parity_cost", "<=", 0.5, "aim").met(found.mean)
    assert not Demand("auc", ">=", 0.5, "must").met(math.nan)
    assert number(math.nan) == "-"
    assert spread(Spread.of([0.1, 0.3, math.nan]), percent=True) == "20.0 % ± 14.1"


def test_demands_name_figures_that_are_measured():
    from quality_parts.measures import FIGURES

    for table in TABLES.values():
        assert {demand.figure for demand in table.demands} <= set(FIGURES)
        assert {demand.level for demand in table.demands} == {"must", "aim"}
