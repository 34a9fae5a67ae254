from __future__ import annotations

import numpy as np
import pytest

from router_runtime.errors import ConfigError
from router_runtime.model_router import ModelRouter
from router_training.plot_thresholds import threshold_figure
from router_training.served import Served
from router_training.threshold_sweep import sweep_thresholds

THRESHOLDS = {"sim-small-vl": 0.7, "sim-large-text": 0.4}


@pytest.fixture(scope="module")
def served(trained):
    config, result = trained
    return Served(ModelRouter(config.output), result.evaluations.take(result.walk.split.test))


@pytest.fixture(scope="module")
def sweep(served):
    return sweep_thresholds(served, THRESHOLDS, steps=11)


def test_a_sweep_finds_what_a_router_with_those_thresholds_reaches(trained, served, sweep):
    at, column = 9, sweep.model_ids.index("sim-small-vl")
    asked = {**THRESHOLDS, "sim-small-vl": float(sweep.grid[at])}
    router = ModelRouter(trained[0].output, model_thresholds=asked)
    chosen = [one.model_id for one in router.decide_batch(served.data.queries)]
    assert sweep.share[column, at] == pytest.approx(chosen.count("sim-small-vl") / len(chosen))
    reached = Served(router, served.data).report().strategy("router").outcome
    assert sweep.quality[column, at] == pytest.approx(reached.quality)
    assert sweep.cost[column, at] == pytest.approx(reached.cost)


def test_where_the_threshold_stands_already_nothing_moves(sweep):
    for model, value in THRESHOLDS.items():
        row, at = sweep.model_ids.index(model), round(10 * value)
        assert sweep.quality[row, at] == sweep.now.quality
        assert sweep.cost[row, at] == sweep.now.cost


def test_a_higher_threshold_never_brings_its_model_more_qualified_queries(sweep):
    row = sweep.model_ids.index("sim-small-text")
    assert sweep.share[row, 0] > sweep.share[row, -1]
    assert sweep.thresholds["sim-small-text"] == 0.0
    assert sweep.grid[[0, -1]].tolist() == [0.0, 1.0]


def test_unknown_models_are_refused(served):
    with pytest.raises(ConfigError, match="gone"):
        sweep_thresholds(served, {"gone": 0.5})


def test_the_grid_has_a_column_per_model_with_its_curves_and_its_mark(sweep):
    figure = threshold_figure(sweep)
    grid = np.array(figure.axes).reshape(3, len(sweep.model_ids))
    column = sweep.model_ids.index("sim-small-vl")
    assert "stands at 0.70" in grid[0, column].get_title(loc="left")
    for axes, values in zip(
        grid[:, column], (sweep.quality, 1000 * sweep.cost, sweep.share), strict=True
    ):
        curve, mark = axes.lines[-2:]
        np.testing.assert_allclose(curve.get_ydata(), values[column])
        np.testing.assert_allclose(mark.get_xdata(), [0.7])
