"""Pictures for the simulated workload: charts, scattered shapes and tables, as PNG bytes.

Everything follows from the arguments and the random generator, so equal seeds give equal pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from io import BytesIO
from typing import Final, TypeAlias

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Colour: TypeAlias = tuple[int, int, int]

SHAPES: Final = ("circle", "square", "triangle")
_BACKGROUNDS: Final[tuple[Colour, ...]] = (
    (255, 255, 255),
    (250, 247, 240),
    (238, 243, 250),
    (245, 245, 245),
)
_INKS: Final[tuple[Colour, ...]] = (
    (214, 69, 65),
    (52, 120, 190),
    (46, 139, 87),
    (222, 145, 40),
    (120, 81, 169),
    (20, 150, 160),
)
_DARK: Final[Colour] = (40, 44, 52)
_PALE: Final[Colour] = (205, 209, 216)


def draw_chart(rng: np.random.Generator, names: Sequence[str], values: Sequence[int]) -> bytes:
    """Return a bar chart or, half of the time, a line chart of ``values`` labelled ``names``."""
    width, height = int(rng.integers(220, 321)), int(rng.integers(160, 221))
    image, pen = _canvas(rng, width, height)
    left, top, bottom = 26, 14, height - 24
    step = (width - left - 8) / len(values)
    scale = (bottom - top) / (1.1 * max(values))
    for tick in range(0, math.ceil(max(values) * 1.1), max(1, max(values) // 4)):
        y = bottom - tick * scale
        pen.line([(left, y), (width - 8, y)], fill=_PALE)
        pen.text((2, y - 5), str(tick), fill=_DARK, font=_font(9))
    tops = [(left + (at + 0.5) * step, bottom - v * scale) for at, v in enumerate(values)]
    ink = _ink(rng)
    if rng.random() < 0.5:
        for x, y in tops:
            pen.rectangle([x - 0.35 * step, y, x + 0.35 * step, bottom], fill=ink, outline=_DARK)
    else:
        pen.line(tops, fill=ink, width=2)
        for x, y in tops:
            pen.ellipse([x - 3, y - 3, x + 3, y + 3], fill=ink)
    for name, (x, _) in zip(names, tops, strict=True):
        pen.text((x, bottom + 4), name, fill=_DARK, font=_font(9), anchor="ma")
    pen.line([(left, top), (left, bottom), (width - 8, bottom)], fill=_DARK)
    return _png(_speckled(rng, image, share=0.004))


def draw_shapes(rng: np.random.Generator, kinds: Sequence[str]) -> bytes:
    """Return one shape per entry of ``kinds`` (of ``SHAPES``), scattered; many shapes overlap."""
    side = int(rng.integers(200, 301))
    image, pen = _canvas(rng, side, side)
    largest = max(8.0, 0.28 * side / math.sqrt(len(kinds)))
    for kind in kinds:
        radius = float(rng.uniform(0.5, 1.0)) * largest
        x, y = rng.uniform(radius + 2, side - radius - 2, size=2)
        ink = _ink(rng)
        if kind == "circle":
            pen.ellipse([x - radius, y - radius, x + radius, y + radius], fill=ink, outline=_DARK)
        else:
            corners = {"square": 4, "triangle": 3}[kind]
            turn = float(rng.uniform(0, 90))
            pen.regular_polygon((x, y, radius), corners, rotation=turn, fill=ink, outline=_DARK)
    return _png(_speckled(rng, image, share=0.003))


def draw_table(rng: np.random.Generator, rows: Sequence[Sequence[str]]) -> bytes:
    """Return a ruled table whose first row is the header, like a screenshot of a spreadsheet."""
    size = int(rng.integers(9, 13))
    cell_w, cell_h = 6 * size, 2 * size
    image, pen = _canvas(rng, cell_w * len(rows[0]) + 16, cell_h * len(rows) + 16)
    ink = _ink(rng)
    for r, cells in enumerate(rows):
        for c, text in enumerate(cells):
            x, y = 8 + c * cell_w, 8 + r * cell_h
            box = [x, y, x + cell_w, y + cell_h]
            pen.rectangle(box, fill=ink if r == 0 else None, outline=_PALE)
            colour = (255, 255, 255) if r == 0 else _DARK
            pen.text((x + 4, y + size / 2), text, fill=colour, font=_font(size))
    return _png(image)


def _canvas(
    rng: np.random.Generator, width: int, height: int
) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    ground = _BACKGROUNDS[int(rng.integers(len(_BACKGROUNDS)))]
    image = Image.new("RGB", (width, height), ground)
    return image, ImageDraw.Draw(image)


def _ink(rng: np.random.Generator) -> Colour:
    return _INKS[int(rng.integers(len(_INKS)))]


@cache  # loading it takes longer than drawing a chart
def _font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size=size)


def _speckled(rng: np.random.Generator, image: Image.Image, *, share: float) -> Image.Image:
    """Colour a share of the pixels at random, as a poor scan would."""
    pixels = np.array(image)
    hit = rng.random(pixels.shape[:2]) < share
    pixels[hit] = rng.integers(0, 256, size=(int(hit.sum()), 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def _png(image: Image.Image) -> bytes:
    buffer = BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()
