"""What a picture looks like: statistics that a person can name, and a small grey thumbnail.

All of it is read from the pixels, so the same picture stored in another lossless format gives the
same numbers. Pictures are first shrunk to at most ``WORKING_SIDE`` pixels a side; only their size
is taken from the original. "Ink" is every pixel that differs from the most common colour: in
diagrams, charts and scans that is what was drawn, in photographs merely one more statistic.
"""

from __future__ import annotations

import math
from io import BytesIO
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import PIL.Image

from router_runtime.images import decode
from router_runtime.types import F32, F64, Image, Int

Mask: TypeAlias = npt.NDArray[np.bool_]
Plane: TypeAlias = npt.NDArray[np.uint8]
Planes: TypeAlias = npt.NDArray[np.uint8]  # one plane after another
Bins: TypeAlias = npt.NDArray[np.uint16]

WORKING_SIDE = 256

_HUES = 6  # named in _hues
_GREYS = 8
_ORIENTATIONS = 6
_INK_DISTANCE = 32  # of 255, in the channel that differs most
_EDGE = 0.06  # of the range of grey, per pixel
_DOMINANT_SHARE = 0.005
_NEAR = 13  # of 256 greys, from either end: within 5 %

PIXEL_NAMES = (
    *("log_width", "log_height", "log_aspect"),
    *("red_mean", "green_mean", "blue_mean", "red_std", "green_std", "blue_std"),
    *("saturation_mean", "saturation_std", "colourfulness"),
    *(f"hue_{i}" for i in range(_HUES)),
    *("log_distinct_colours", "log_dominant_colours"),
    *(f"grey_{i}" for i in range(_GREYS)),
    *("grey_entropy", "near_white", "near_black"),
    *("edge_density_fine", "edge_density_coarse", "gradient_mean"),
    *(f"orientation_{i}" for i in range(_ORIENTATIONS)),
    *("left_right_difference", "top_bottom_difference"),
    *("ink_share", "ink_width", "ink_height", "log_stroke_width"),
    *("log_row_runs_mean", "log_row_runs_max", "log_column_runs_mean", "log_column_runs_max"),
    *("log_euler_number_4", "log_euler_number_8"),
)


def describe_picture(image: Image, *, thumbnail_side: int) -> tuple[F64, F32]:
    """Return a picture's statistics and its thumbnail.

    Parameters
    ----------
    image : Image
        From ``images.load_image``.
    thumbnail_side : int
        The thumbnail has this many rows and columns, whatever the picture's aspect ratio.

    Returns
    -------
    statistics : ndarray, float64 (len(PIXEL_NAMES),)
        Finite; the meaning of each is in the function that computes it.
    thumbnail : ndarray, float32 (thumbnail_side**2,)
        Grey in [0, 1], row by row.

    Raises
    ------
    QueryError
        The picture does not decode.
    """
    picture = decode(image, max_side=WORKING_SIDE)
    with PIL.Image.open(BytesIO(image.data)) as original:
        width, height = original.size
    planes = _planes(picture)
    shades = picture.convert("L")
    grey = np.asarray(shades, dtype=np.float32) / np.float32(255)
    bins = _colour_bins(planes)
    tally = np.bincount(bins.ravel(), minlength=4096)
    ink = _ink(planes, bins, tally)
    statistics = [
        *(math.log(width), math.log(height), math.log(width / height)),
        *_colour(planes),
        *_palette(tally),
        *_tone(shades),
        *_edges(grey),
        float(np.abs(grey - grey[:, ::-1]).mean()),
        float(np.abs(grey - grey[::-1]).mean()),
        *_drawing(ink),
    ]
    return np.array(statistics, dtype=np.float64), _thumbnail(shades, thumbnail_side)


def _thumbnail(shades: PIL.Image.Image, side: int) -> F32:
    small = shades.resize((side, side), PIL.Image.Resampling.BOX)
    return np.asarray(small, dtype=np.float32).ravel() / np.float32(255)


def _colour(planes: Planes) -> list[float]:
    """Channel means and deviations, saturation, colourfulness and the shares of six hues.

    Colourfulness is the measure of Hasler and Süsstrunk ("Measuring colourfulness in natural
    images", SPIE 2003) on channels in [0, 1].
    """
    red, green, blue = channels = planes.astype(np.int16)
    value, low = planes.max(axis=0), planes.min(axis=0)
    saturation = (value - low).astype(np.float32) / np.maximum(value, 1)
    moments = [_moments(channel, full=255) for channel in channels]
    red_green = _moments(red - green, full=255)
    yellow_blue = _moments(red + green - 2 * blue, full=510)
    return [
        *(mean for mean, _ in moments),
        *(deviation for _, deviation in moments),
        float(saturation.mean()),
        float(saturation.std()),
        math.hypot(red_green[1], yellow_blue[1]) + 0.3 * math.hypot(red_green[0], yellow_blue[0]),
        *_hues(planes, value, low),
    ]


def _moments(levels: npt.NDArray[np.int16], *, full: int) -> tuple[float, float]:
    """Return mean and standard deviation over ``full``, from exact sums."""
    wide = levels.ravel().astype(np.float64)  # whole numbers below 2**53: exact in any order
    total, squares = int(wide.sum()), int(np.einsum("i,i->", wide, wide))
    n = levels.size
    return total / (n * full), math.sqrt(n * squares - total * total) / (n * full)


def _hues(planes: Planes, value: Plane, low: Plane) -> list[float]:
    """Return the shares of red, yellow, green, cyan, blue and magenta, pixels counting by chroma.

    A pixel has the hue of its highest channel or, where the middle channel is nearer to that than
    to the lowest, the mixture without the lowest.
    """
    red, green, blue = planes
    chroma = value - low
    middle = red ^ green ^ blue ^ value ^ low  # what remains of the three
    mixed = chroma * (middle - low > chroma >> 1)
    pure = chroma - mixed
    reds, greens, blues = (int((pure * (plane == value)).sum(dtype=np.int64)) for plane in planes)
    cyans, magentas, yellows = (
        int((mixed * (plane == low)).sum(dtype=np.int64)) for plane in planes
    )
    return [share / (255 * value.size) for share in (reds, yellows, greens, cyans, blues, magentas)]


def _planes(picture: PIL.Image.Image) -> Planes:
    """Return the channels one after another, uint8 (n_channels, height, width)."""
    return np.ascontiguousarray(np.moveaxis(np.asarray(picture, dtype=np.uint8), -1, 0))


def _colour_bins(planes: Planes) -> Bins:
    """Index of each pixel's colour among 16 x 16 x 16."""
    red, green, blue = planes
    bins: Bins = (red >> 4).astype(np.uint16) << 8
    bins |= (green & 0xF0) | (blue >> 4)
    return bins


def _palette(tally: Int) -> list[float]:
    """Numbers of colours that occur, and that cover at least half a percent, as log(1 + n).

    ``tally`` has the number of pixels in each bin of colour.
    """
    dominant = tally >= max(1.0, _DOMINANT_SHARE * tally.sum())
    return [math.log1p(np.count_nonzero(tally)), math.log1p(np.count_nonzero(dominant))]


def _tone(shades: PIL.Image.Image) -> list[float]:
    """Histogram of grey in eight bins, its entropy in bits over 32, shares of white and black."""
    tally = np.array(shades.histogram())
    share = tally.reshape(32, -1).sum(axis=1) / tally.sum()
    entropy = -float(np.sum(share * np.log2(np.where(share > 0, share, 1.0))))
    return [
        *share.reshape(_GREYS, -1).sum(axis=1),
        entropy,
        float(tally[-_NEAR:].sum() / tally.sum()),
        float(tally[:_NEAR].sum() / tally.sum()),
    ]


def _edges(grey: F32) -> list[float]:
    """Shares of pixels on an edge at two scales, mean gradient, and where edges point.

    Gradients are differences to the right and down; orientations are modulo half a turn, each
    counted by its magnitude, and sum to 1 unless the picture has no edge.
    """
    right, down, size = _gradient(grey)
    edge = size > _EDGE
    turns = np.arctan2(down[edge], right[edge]) / np.float32(math.pi) * _ORIENTATIONS
    sectors = np.bincount(
        np.rint(turns).astype(np.int64) % _ORIENTATIONS, weights=size[edge], minlength=_ORIENTATIONS
    )
    coarse = _gradient(_quartered(grey))[2]
    return [
        float(edge.mean()),
        float((coarse > _EDGE).mean()),
        float(size.mean()),
        *(sectors / max(float(sectors.sum()), 1e-6)),
    ]


def _gradient(grey: F32) -> tuple[F32, F32, F32]:
    right, down = np.zeros_like(grey), np.zeros_like(grey)  # beyond the border all stays the same
    np.subtract(grey[:, 1:], grey[:, :-1], out=right[:, :-1])
    np.subtract(grey[1:], grey[:-1], out=down[:-1])
    return right, down, np.sqrt(right * right + down * down)


def _quartered(grey: F32) -> F32:
    """Means of blocks of 4 x 4; what does not fill a block repeats the border."""
    height, width = grey.shape
    padded = np.pad(grey, ((0, -height % 4), (0, -width % 4)), mode="edge")
    blocks = padded.reshape(padded.shape[0] // 4, 4, -1, 4)
    rows = blocks[..., 0] + blocks[..., 1] + blocks[..., 2] + blocks[..., 3]
    means: F32 = (rows[:, 0] + rows[:, 1] + rows[:, 2] + rows[:, 3]) / np.float32(16)
    return means


def _ink(planes: Planes, bins: Bins, tally: Int) -> Mask:
    """Return the pixels that differ from the most common colour (mean of the fullest bin)."""
    fullest = tally.argmax()
    within, n = (bins == fullest).view(np.uint8), int(tally[fullest])
    ink = np.zeros(bins.shape, dtype=bool)
    for plane in planes:
        background = round(int((plane * within).sum(dtype=np.int64)) / n)
        low, high = max(background - _INK_DISTANCE, 0), min(background + _INK_DISTANCE, 255)
        ink |= plane - np.uint8(low) > np.uint8(high - low)  # below low, the difference wraps round
    return ink


def _drawing(ink: Mask) -> list[float]:
    """Extent, stroke width, strokes per row and column, and Euler numbers of the ink.

    A run is a maximal line of ink pixels within a row or column; their mean and maximum count
    bars, lines and rows of a grid. The Euler number is the number of connected parts minus the
    number of holes, from counts of 2 x 2 patterns (Gray, "Local properties of binary images in two
    dimensions", IEEE Trans. Computers 1971), once with parts 4-connected and once 8-connected.
    """
    padded = np.pad(ink, 1)
    row_runs = (padded[:, 1:] & ~padded[:, :-1]).sum(axis=1)[1:-1]
    column_runs = (padded[1:] & ~padded[:-1]).sum(axis=0)[1:-1]
    area = int(ink.sum())
    sides = 2 * int(row_runs.sum() + column_runs.sum())
    return [
        area / ink.size,
        _extent(column_runs),
        _extent(row_runs),
        math.log1p(2 * area / max(sides, 1)),
        math.log1p(row_runs.mean()),
        math.log1p(row_runs.max()),
        math.log1p(column_runs.mean()),
        math.log1p(column_runs.max()),
        *(math.copysign(math.log1p(abs(number)), number) for number in _euler_numbers(padded)),
    ]


def _extent(runs: Int) -> float:
    """Share of the side from the first to the last line with ink."""
    places = np.flatnonzero(runs)
    return float(places[-1] - places[0] + 1) / runs.size if places.size else 0.0


def _euler_numbers(padded: Mask) -> tuple[int, int]:
    corners = padded[:-1, :-1], padded[:-1, 1:], padded[1:, :-1], padded[1:, 1:]
    filled = np.sum(corners, axis=0, dtype=np.int8)
    diagonal = (corners[0] == corners[3]) & (corners[1] == corners[2]) & (corners[0] != corners[1])
    ones, threes = int((filled == 1).sum()), int((filled == 3).sum())
    twice = 2 * int(diagonal.sum())
    return (ones - threes + twice) // 4, (ones - threes - twice) // 4
