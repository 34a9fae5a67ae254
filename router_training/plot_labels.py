"""Where labels of points go so that none covers another label, a point or a line.

Pixels only, with the origin at the lower left; what draws them is not known here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from router_runtime.types import F64, Bool

_RADII = (9.0, 14.0, 20.0, 28.0, 38.0, 50.0, 66.0, 86.0, 110.0, 140.0)
_ANGLES = np.deg2rad(np.concatenate([[0, 180, 90, 270], np.arange(15, 360, 15)]))
_OUTSIDE, _LABEL, _POINT, _LINE, _DISTANCE = 1e3, 1e2, 10.0, 0.6, 0.05
_MARGIN = 2.0  # pixels kept free around a label
_POINT_RADIUS = 5.0


@dataclass(frozen=True)
class Placed:
    """A label's box, and how far it is from its point.

    Parameters
    ----------
    left, bottom, width, height : float
        The box in pixels.
    distance : float
        Pixels between the box and the point; a line should join them where it is large.
    """

    left: float
    bottom: float
    width: float
    height: float
    distance: float

    def overlaps(self, other: Placed) -> bool:
        """Return whether the two boxes share an area."""
        return bool(_overlap(_corners(self), _corners(other)[None])[0] > 0)


def place_labels(
    points: F64,
    sizes: F64,
    area: tuple[float, float, float, float],
    *,
    obstacles: F64 | None = None,
) -> list[Placed]:
    """Place one label per point, the most crowded first, each where it costs least.

    Parameters
    ----------
    points : ndarray of shape (n, 2)
        What is labelled, in pixels.
    sizes : ndarray of shape (n, 2)
        Widths and heights of the labels in pixels.
    area : (float, float, float, float)
        Left, bottom, right, top that no label should leave.
    obstacles : ndarray of shape (k, 2), optional
        Points along lines that should rather not be covered.

    Returns
    -------
    list of Placed
        In the order of ``points``.
    """
    lines = np.empty((0, 2)) if obstacles is None else obstacles
    distances = np.hypot(*(points[:, None] - points[None]).transpose(2, 0, 1))
    crowding = (distances < 60).sum(axis=1) if len(points) else np.empty(0)
    found: dict[int, Placed] = {}
    for at in np.argsort(-crowding, kind="stable"):
        taken = np.array([_corners(label) for label in found.values()]).reshape(-1, 4)
        boxes = _candidates(points[at], sizes[at])
        cost = _cost(boxes, points, taken, lines, area) + _DISTANCE * np.repeat(
            _RADII, len(_ANGLES)
        )
        box = boxes[int(np.argmin(cost))]
        found[int(at)] = Placed(
            float(box[0]),
            float(box[1]),
            float(box[2] - box[0]),
            float(box[3] - box[1]),
            _distance(box, points[at]),
        )
    return [found[at] for at in range(len(points))]


def in_reading_order(values: Sequence[float]) -> list[int]:
    """Return the positions of ``values`` by falling value, NaN last: the numbers of a legend."""
    keys = np.nan_to_num(np.asarray(values, dtype=np.float64), nan=-np.inf)
    return [int(at) for at in np.argsort(-keys, kind="stable")]


def _candidates(point: F64, size: F64) -> F64:
    """Return boxes (n_candidates, 4) around a point whose near side is a radius away."""
    directions = np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], axis=1)
    radii = np.repeat(_RADII, len(_ANGLES))[:, None]
    steps = np.tile(directions, (len(_RADII), 1))
    # An ellipse around half the label keeps the gap between box and point about equal all around.
    centres = point + steps * radii + np.clip(steps * 1.3, -1, 1) * size / 2
    return np.concatenate([centres - size / 2, centres + size / 2], axis=1)


def _cost(
    boxes: F64, points: F64, taken: F64, lines: F64, area: tuple[float, float, float, float]
) -> F64:
    wide = boxes + np.array([-_MARGIN, -_MARGIN, _MARGIN, _MARGIN])
    left, bottom, right, top = area
    outside = (
        np.maximum(left - boxes[:, 0], 0)
        + np.maximum(bottom - boxes[:, 1], 0)
        + np.maximum(boxes[:, 2] - right, 0)
        + np.maximum(boxes[:, 3] - top, 0)
    )
    covered = np.array([(_overlap(box, taken) > 0).sum() for box in wide], dtype=np.float64)
    around = wide + _POINT_RADIUS * np.array([-1, -1, 1, 1])
    return (
        _OUTSIDE * (outside > 0)
        + _LABEL * covered
        + _POINT * _inside(around, points)
        + _LINE * _inside(wide, lines)
    )


def _inside(boxes: F64, points: F64) -> F64:
    """Return how many points lie in each box."""
    x, y = points[None, :, 0], points[None, :, 1]
    left, bottom, right, top = (boxes[:, [column]] for column in range(4))
    covered: Bool = (x > left) & (x < right) & (y > bottom) & (y < top)
    counts: F64 = covered.sum(axis=1, dtype=np.float64)
    return counts


def _overlap(box: F64, others: F64) -> F64:
    """Return the area that ``box`` (4,) shares with each of ``others`` (k, 4)."""
    width = np.minimum(box[2], others[:, 2]) - np.maximum(box[0], others[:, 0])
    height = np.minimum(box[3], others[:, 3]) - np.maximum(box[1], others[:, 1])
    shared: F64 = np.maximum(width, 0) * np.maximum(height, 0)
    return shared


def _corners(label: Placed) -> F64:
    right, top = label.left + label.width, label.bottom + label.height
    return np.array([label.left, label.bottom, right, top])


def _distance(box: F64, point: F64) -> float:
    aside = np.maximum(np.maximum(box[:2] - point, point - box[2:]), 0)
    return float(np.hypot(*aside))
