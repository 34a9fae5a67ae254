from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from router_training.compare import Comparison, Difference, Standing
from router_training.evaluation_report import Interval
from router_training.footprint import Footprint, Latency
from router_training.plot_comparison import comparison_figure

NAN = float("nan")


def standing(name, quality, *, aiq=0.8, fit_s=2.0, difference=None):
    taken = Footprint(1.0, fit_s, 10, 0, 100, 0, Latency(4, 1, 3.0, 5.0, 4, 2.0))
    figures = {"savings": 0.5, "aiq": aiq, "auc": 0.7, "brier": 0.2, "ece": 0.1}
    return Standing(name, "p", quality, 0.002, **figures, difference=difference, footprint=taken)


@pytest.fixture
def comparison():
    between = Interval(-0.1, -0.2, 0.05)
    apart = Difference(*[between] * 7)
    standings = (standing("first", 0.9), standing("other", 0.8, fit_s=99.0, difference=apart))
    return Comparison(40, "usd", (0.0, 1.0), "big", 0.9, 0.01, standings)


def drawn(axes):
    """Return the coordinates of every line."""
    return [np.array(line.get_xydata()).tolist() for line in axes.lines]


def test_a_row_shows_the_value_and_the_interval_around_the_first_routers(comparison):
    figure = comparison_figure(comparison)
    quality = drawn(figure.axes[0])
    assert [[0.9, 0.0]] in quality
    assert [[0.8, 1.0]] in quality
    bar = next(line for line in quality if len(line) == 2 and line[0][1] == line[1][1] == 1)
    np.testing.assert_allclose(bar, [[0.7, 1], [0.95, 1]])
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["first", "other"]


def test_cost_is_per_thousand_calls_and_seconds_are_of_all_learning(comparison):
    figure = comparison_figure(comparison)
    assert [[2.0, 0.0]] in drawn(figure.axes[1])
    assert [[3.0, 0.0]] in drawn(figure.axes[3])
    assert [[100.0, 1.0]] in drawn(figure.axes[3])
    assert figure.axes[3].get_xscale() == "log"
    assert figure.axes[4].get_xlim()[0] == 0


def test_what_is_not_known_is_left_out(comparison):
    bare = tuple(replace(one, aiq=NAN, footprint=None) for one in comparison.standings)
    figure = comparison_figure(replace(comparison, standings=bare))
    assert figure.axes[2].get_title(loc="left") == "AUC"
    assert np.isnan(drawn(figure.axes[4])[0][0][0])
