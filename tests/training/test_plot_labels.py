from __future__ import annotations

from itertools import combinations

import numpy as np

from router_training.plot_labels import in_reading_order, place_labels

AREA = (0.0, 0.0, 800.0, 500.0)


def inside(label):
    right, top = label.left + label.width, label.bottom + label.height
    return label.left >= 0 and label.bottom >= 0 and right <= 800 and top <= 500


def test_a_label_alone_stands_right_of_its_point():
    (label,) = place_labels(np.array([[100.0, 100.0]]), np.array([[60.0, 12.0]]), AREA)
    assert 100 < label.left < 115
    assert label.bottom == 100 - 6
    assert label.distance < 12


def test_a_label_at_the_edge_stays_inside():
    points = np.array([[799.0, 499.0], [1.0, 1.0]])
    assert all(map(inside, place_labels(points, np.full((2, 2), (120.0, 12.0)), AREA)))


def test_twenty_crowded_labels_do_not_overlap():
    points = np.random.default_rng(0).normal((400, 250), (25, 12), (20, 2))
    placed = place_labels(points, np.full((20, 2), (40.0, 12.0)), AREA)
    assert not any(a.overlaps(b) for a, b in combinations(placed, 2))
    assert all(map(inside, placed))
    assert placed == place_labels(points, np.full((20, 2), (40.0, 12.0)), AREA)


def test_equal_points_get_labels_apart():
    placed = place_labels(np.full((3, 2), 200.0), np.full((3, 2), (50.0, 12.0)), AREA)
    assert not any(a.overlaps(b) for a, b in combinations(placed, 2))


def test_a_line_is_avoided():
    line = np.stack([np.linspace(0, 800, 800), np.full(800, 100.0)], axis=1)
    point, size = np.array([[100.0, 100.0]]), np.array([[60.0, 12.0]])
    (label,) = place_labels(point, size, AREA, obstacles=line)
    assert label.bottom > 100 or label.bottom + label.height < 100


def test_labels_that_share_a_border_do_not_overlap():
    first, second = place_labels(
        np.array([[100.0, 100.0], [300.0, 100.0]]), np.full((2, 2), (60.0, 12.0)), AREA
    )
    assert not first.overlaps(second)
    assert first.overlaps(first)


def test_nothing_to_label_is_nothing():
    assert place_labels(np.empty((0, 2)), np.empty((0, 2)), AREA) == []


def test_numbers_go_by_falling_value_and_unknown_comes_last():
    assert in_reading_order([0.2, float("nan"), 0.9, 0.2]) == [2, 0, 3, 1]
