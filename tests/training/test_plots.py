from __future__ import annotations

import warnings
from dataclasses import replace
from itertools import combinations

import matplotlib as mpl
import PIL.Image
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from router_training.plot_cost_quality import cost_quality_figure
from router_training.plot_style import STYLE
from router_training.plots import (
    MAX_MODELS,
    MAX_SLICES,
    figures,
    largest_slices,
    most_chosen,
    write_plots,
)

NAMES = ["cost_quality", "reliability", "shares", "histograms", "slices"]


def texts_of(figure):
    """(text, box) of everything visible that is written in a figure."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    found = [artist for artist in figure.findobj() if hasattr(artist, "get_text")]
    shown = [t for t in found if t.get_visible() and t.get_text().strip()]
    return [(t.get_text(), t.get_window_extent(renderer)) for t in shown]


def cost_quality(report):
    with mpl.rc_context({**STYLE}):
        return cost_quality_figure(report, report.curves)


def words_of(figure):
    return " | ".join(text for text, _ in texts_of(figure))


@pytest.mark.parametrize("which", ["small_report", "large_report"])
def test_labels_of_the_cost_quality_figure_do_not_overlap(which, request):
    figure = cost_quality(request.getfixturevalue(which))
    axes = figure.axes[0]
    labels = {artist.get_text() for artist in axes.texts}
    boxes = [(text, box) for text, box in texts_of(figure) if text in labels]
    assert len(boxes) >= 6
    assert [(a[0], b[0]) for a, b in combinations(boxes, 2) if a[1].overlaps(b[1])] == []


def test_few_models_are_named_and_many_are_numbered(small_report, large_report):
    small, large = (words_of(cost_quality(r)) for r in (small_report, large_report))
    assert "claude-3.5-sonnet-20241022" in small
    assert "20" in large.split(" | ")
    assert "x-ai/grok-2-1212" in large


def test_costs_far_apart_get_a_logarithmic_axis(small_report, large_report, make_report):
    scales = [
        cost_quality(report).axes[0].get_xscale()
        for report in (small_report, large_report, make_report(4, free=True))
    ]
    assert scales == ["linear", "log", "symlog"]


def test_points_that_coincide_share_a_label(make_report):
    report = make_report(2, spread=1.0)  # at one price every lambda chooses alike
    assert "router (recommended), 98 %, 95 %" in words_of(cost_quality(report))


def test_without_costs_there_is_no_cost_figure(make_report):
    assert "cost_quality" not in figures(make_report(3, costs="unknown"))


def test_relative_costs_are_not_called_dollars(make_report):
    words = words_of(cost_quality(make_report(3, costs="relative")))
    assert "relative" in words
    assert "USD" not in words


def test_names_are_not_read_as_mathematics(make_report):
    names = ["$\\frac{", "a_b^c$", "x\ny", "<svg>&"]
    words = words_of(figures(make_report(names=names))["shares"])
    assert "$\\frac{" in words
    assert "x y" in words


def test_pictures_are_written_and_equal_reports_give_equal_bytes(small_report, tmp_path):
    first = write_plots(small_report, tmp_path / "a")
    second = write_plots(small_report, tmp_path / "b")
    assert [path.name for path in first] == [f"{name}.png" for name in NAMES]
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in second]
    assert PIL.Image.open(first[0]).width == 1536
    assert len(list((tmp_path / "a").iterdir())) == len(NAMES)


def test_names_in_other_scripts_draw_without_a_warning(make_report, tmp_path):
    report = make_report(names=["模型", "модель"], queries=60)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_plots(report, tmp_path)


def test_the_largest_slices_are_drawn_in_their_order(make_report):
    slices = make_report(2, sets=3, queries=100).slices
    assert [part.n for part in slices] == [34, 33, 33]
    assert largest_slices(slices, most=2) == list(slices[:2])
    assert largest_slices(slices[::-1], most=1) == [slices[0]]
    assert len(slices) <= MAX_SLICES


def test_of_very_many_models_the_most_chosen_are_drawn(make_report):
    report = make_report(names=[f"model-{at}" for at in range(43)], queries=60)
    kept = most_chosen(report.models)
    assert len(kept) == MAX_MODELS == 40
    left_out = [model for model in report.models if model not in kept]
    assert max(m.share for m in left_out) <= min(m.share for m in kept)
    assert [m.model_id for m in kept] == sorted(
        (m.model_id for m in kept), key=lambda name: int(name.rpartition("-")[2])
    )
    found = figures(report)
    assert [len(found[name].axes) for name in ("reliability", "histograms", "shares")] == [
        41,
        40,
        1,
    ]


def test_costs_that_no_axis_can_tell_from_nothing_are_drawn(make_report):
    report = make_report(3, queries=60)
    curves = replace(report.curves, oracle=replace(report.curves.oracle, cost=5e-324))
    assert cost_quality(replace(report, curves=curves)).axes[0].get_xscale() == "symlog"
