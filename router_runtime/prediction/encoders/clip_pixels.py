"""Pictures to the tensor that CLIP reads: open_clip's preprocessing in NumPy.

Resizing is Pillow's antialiased convolution, written as matrix products on blocks of rows and
columns, and restricted to what the crop keeps: the result is Pillow's but for the rounding between
its two passes (about a tenth of 1/255 on average), in half of its time. What a picture is before,
transparency on white and pixels as stored, is defined in ``router_runtime.images``.

A JPEG is decoded at a half, a quarter or an eighth of its size, by its own decoder, where that
leaves ``_ENOUGH`` times the pixels a side that are needed and loses little. What is lost grows with
the detail of the small picture (``_detail``); the more pixels are left the less it is, but not
where much is white or black, since ringing is clipped there and the rest no longer cancels out. The
limits were set on JPEGs drawn for it, 777 drafts of them: noise with the spectra of photographs
(1/f to 1/f^1.5, three contrasts), pages of black, light and coloured text of 8 to 48 pixels, lines,
grids, chequers, slides, charts, scans, gradients and white noise, 1000 x 800 to 4000 x 3000, of
qualities 75 and 88 (4:2:0) and 95 (4:4:4). No draft within them was 0.95 of 255 away on average,
and all dense text was outside. A file with many bits a pixel holds more detail than they allow: it
is decoded once, in full. Few bits do not prove the contrary, so that a sparse line drawing may be
decoded twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, Literal, Self, TypeAlias

import numpy as np
import PIL.Image

from router_runtime.errors import EncoderError
from router_runtime.images import OpenPicture, Pixels
from router_runtime.types import F32, F64, Image

ResizeMode: TypeAlias = Literal["shortest", "longest", "squash"]
Interpolation: TypeAlias = Literal["bicubic", "bilinear"]
Block: TypeAlias = tuple[slice, slice, F32]  # outputs, inputs, weight (n_outputs, n_inputs)

CLIP_MEAN: Final = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD: Final = (0.26862954, 0.26130258, 0.27577711)

_ENOUGH: Final = 1.75
_MOST_BITS: Final = 0.9  # per pixel of the file, times the factor that a draft leaves
_MOST_DETAIL: Final = 12.0  # times the factor, where few pixels are clipped
_FEW_CLIPPED: Final = 0.1
_BLOCK: Final = 8  # outputs of one product; more mean fewer products with more zeros in them
_ONE_THREAD: Final = 1 << 18
"""Multiplications below which OpenBLAS stays on the caller's thread.

Larger products would wake its pool, which fights with the encoder's threads for the same cores.
"""


def preprocess(
    image: Image | PIL.Image.Image,
    *,
    size: int | tuple[int, int] = 224,
    mean: Sequence[float] = CLIP_MEAN,
    std: Sequence[float] = CLIP_STD,
    resize_mode: ResizeMode = "shortest",
    interpolation: Interpolation = "bicubic",
    fill_color: int = 0,
) -> F32:
    """Return what open_clip's transform makes of ``decode(image)``; see ``Preprocessing``.

    Returns
    -------
    ndarray of shape (3, height, width), float32
    """
    return _preprocessing(size, tuple(mean), tuple(std), resize_mode, interpolation, fill_color)(
        image
    )


@dataclass(frozen=True)
class Preprocessing:
    """What happens to a picture before the encoder sees it.

    Parameters
    ----------
    height, width : int
        Of the tensor.
    mean, std : tuple of float
        Per channel, of values in [0, 1]; each standard deviation is above 0.
    resize_mode : {"shortest", "longest", "squash"}
        The shorter side is made to fit and the rest cut off; the longer side is made to fit and the
        rest filled; or both are made to fit.
    interpolation : {"bicubic", "bilinear"}
    fill_color : int
        In 0 ... 255, for ``longest``.

    Raises
    ------
    EncoderError
        A value is outside its range.
    """

    height: int = 224
    width: int = 224
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD
    resize_mode: ResizeMode = "shortest"
    interpolation: Interpolation = "bicubic"
    fill_color: int = 0

    def __post_init__(self) -> None:
        problems = {
            "size": (self.height, self.width) if min(self.height, self.width) < 1 else None,
            "mean": self.mean if len(self.mean) != 3 else None,
            "std": self.std if len(self.std) != 3 or min(self.std) <= 0 else None,
            "resize_mode": None if self.resize_mode in _PLACES else self.resize_mode,
            "interpolation": None if self.interpolation in _KERNELS else self.interpolation,
        }
        for name, value in problems.items():
            if value is not None:
                raise EncoderError(
                    f"preprocessing '{name}' is {value!r}, which no CLIP model has. Correct it in "
                    "the encoder's configuration."
                )

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Return the preprocessing of open_clip's ``preprocess_cfg``; what is left out is CLIP's.

        Raises
        ------
        EncoderError
            A value is outside its range.
        """
        given = {key: value for key, value in config.items() if value is not None}
        size = given.get("size", 224)
        height, width = (size, size) if isinstance(size, int) else size
        mean, std = (
            (value,) * 3 if isinstance(value, int | float) else tuple(value)
            for value in (given.get("mean") or CLIP_MEAN, given.get("std") or CLIP_STD)
        )
        return cls(
            height=height,
            width=width,
            mean=mean,
            std=std,
            resize_mode=given.get("resize_mode", "shortest"),
            interpolation="bilinear" if given.get("interpolation") == "bilinear" else "bicubic",
            fill_color=given.get("fill_color", 0),
        )

    def __call__(self, image: Image | PIL.Image.Image) -> F32:
        """Return float32 (3, height, width).

        Parameters
        ----------
        image : Image or PIL.Image.Image
            A Pillow image is taken as it is, converted to RGB.

        Raises
        ------
        QueryError
            The file is truncated or damaged.
        """
        if isinstance(image, Image):
            picture = OpenPicture(image)
            rows, columns = self._places(*picture.size)
            source = _decoded(picture, len(image.data), columns.resized, rows.resized)
        else:
            rows, columns = self._places(*image.size)
            source = np.asarray(image.convert("RGB"))
        kernel: Interpolation = self.interpolation
        if self.resize_mode == "shortest" and self.height != self.width:
            kernel = "bicubic"  # open_clip forgets to pass it on there
        out = np.full((3, self.height, self.width), self.fill_color, dtype=np.float32)
        kept = out[:, rows.target, columns.target]
        _resize(source, rows, columns, kernel, out=kept)
        return self._normalised(out)

    def _places(self, width: int, height: int) -> tuple[Place, Place]:
        """Return where rows and columns of the picture go."""
        return _PLACES[self.resize_mode]((height, width), (self.height, self.width))

    def _normalised(self, out: F32) -> F32:
        np.rint(out, out=out)
        np.clip(out, 0, 255, out=out)
        mean, std = (np.array(v, dtype=np.float32)[:, None, None] for v in (self.mean, self.std))
        out /= np.float32(255)
        out -= mean
        out /= std
        return out


@lru_cache(maxsize=16)
def _preprocessing(
    size: int | tuple[int, int],
    mean: tuple[float, ...],
    std: tuple[float, ...],
    resize_mode: ResizeMode,
    interpolation: Interpolation,
    fill_color: int,
) -> Preprocessing:
    height, width = (size, size) if isinstance(size, int) else size
    return Preprocessing(height, width, mean, std, resize_mode, interpolation, fill_color)


@dataclass(frozen=True)
class Place:
    """One axis: the picture is resized to ``resized`` pixels, of which ``target`` gets some.

    Parameters
    ----------
    resized : int
        Pixels of the whole resized picture.
    start : int
        The first of them that is kept.
    target : slice
        Where they go in the tensor.
    """

    resized: int
    start: int
    target: slice


def _place(resized: int, wanted: int) -> Place:
    """Cut ``resized`` pixels down to ``wanted``, or set them into the middle of as many."""
    if resized >= wanted:
        return Place(resized, round((resized - wanted) / 2), slice(wanted))
    before = (wanted - resized) // 2
    return Place(resized, 0, slice(before, before + resized))


def _shortest(full: tuple[int, int], wanted: tuple[int, int]) -> tuple[Place, Place]:
    if wanted[0] == wanted[1]:  # torchvision's Resize: cut off, not rounded
        short = min(full)
        sizes = [wanted[0] if side == short else int(wanted[0] * side / short) for side in full]
    else:
        ratio = min(side / side_wanted for side, side_wanted in zip(full, wanted, strict=True))
        sizes = [max(1, round(side / ratio)) for side in full]
    return _place(sizes[0], wanted[0]), _place(sizes[1], wanted[1])


def _longest(full: tuple[int, int], wanted: tuple[int, int]) -> tuple[Place, Place]:
    ratio = max(side / side_wanted for side, side_wanted in zip(full, wanted, strict=True))
    rows, columns = (max(1, round(side / ratio)) for side in full)
    return _place(rows, wanted[0]), _place(columns, wanted[1])


def _squash(_: tuple[int, int], wanted: tuple[int, int]) -> tuple[Place, Place]:
    return _place(wanted[0], wanted[0]), _place(wanted[1], wanted[1])


def _decoded(picture: OpenPicture, n_bytes: int, width: int, height: int) -> Pixels:
    """Decode as many pixels as a resize to ``width`` and ``height`` should start from."""
    whole = min(picture.size[0] / width, picture.size[1] / height)
    left = min((whole / by for by in (2, 4, 8) if whole / by >= _ENOUGH), default=0.0)
    if 8 * n_bytes > _MOST_BITS * left * picture.size[0] * picture.size[1]:
        return picture.pixels()
    source = picture.pixels(at_least=(math.ceil(_ENOUGH * width), math.ceil(_ENOUGH * height)))
    if source.shape[1::-1] == picture.size:
        return source
    factor = min(source.shape[1] / width, source.shape[0] / height)
    return source if _detail(source) <= _most_detail(source, factor) else picture.pixels()


def _most_detail(draft: Pixels, factor: float) -> float:
    """Return how much detail a draft may have that is ``factor`` times what is needed."""
    green = draft[::8, ::8, 1]
    clipped = np.count_nonzero((green >= 250) | (green <= 5)) / green.size
    return _MOST_DETAIL * factor if clipped < _FEW_CLIPPED else _MOST_DETAIL


def _detail(source: Pixels) -> float:
    """Return the mean curvature of every eighth row and column of green, of 255."""
    rows = source[::8, :, 1].astype(np.int16)
    columns = source[:, ::8, 1].astype(np.int16)
    across = np.abs(2 * rows[:, 1:-1] - rows[:, :-2] - rows[:, 2:]).mean()
    down = np.abs(2 * columns[1:-1] - columns[:-2] - columns[2:]).mean()
    return float(across + down)


def _resize(
    source: Pixels, rows: Place, columns: Place, kernel: Interpolation, *, out: F32
) -> None:
    """Write the resized channels to ``out`` (3, n_rows, n_columns), neither rounded nor clipped."""
    n_rows, n_columns = out.shape[1:]
    height, width, channels = source.shape
    vertical = _blocks(height, rows.resized, rows.start, n_rows, kernel)
    horizontal = _blocks_of_channels(
        width, columns.resized, columns.start, n_columns, kernel, channels
    )
    first, last = horizontal[0][1].start, horizontal[-1][1].stop
    middle = np.empty((n_rows, channels * (last - first)), dtype=np.float32)
    for into, taken, weight in vertical:
        strip = source[taken, first:last].astype(np.float32).reshape(weight.shape[1], -1)
        _multiply(weight, strip, middle[into])
    for into, taken, weight in horizontal:
        strip = middle[:, channels * (taken.start - first) : channels * (taken.stop - first)]
        found = np.empty((n_rows, weight.shape[1]), dtype=np.float32)
        _multiply_by_rows(strip, weight, found)
        out[:, :, into] = found.reshape(n_rows, 3, -1).transpose(1, 0, 2)


def _multiply(A: F32, B: F32, out: F32) -> None:
    step = max(1, _ONE_THREAD // A.size)
    for start in range(0, B.shape[1], step):
        np.matmul(A, B[:, start : start + step], out=out[:, start : start + step])


def _multiply_by_rows(A: F32, B: F32, out: F32) -> None:
    step = max(1, _ONE_THREAD // B.size)
    for start in range(0, len(A), step):
        np.matmul(A[start : start + step], B, out=out[start : start + step])


@lru_cache(maxsize=32)
def _blocks(n: int, resized: int, start: int, kept: int, kernel: Interpolation) -> list[Block]:
    """Return the weights that make ``kept`` pixels of ``n``, some outputs at a time.

    They are Pillow's (``precompute_coeffs`` in its ``Resample.c``): the kernel stretched by the
    factor of shrinking, cut off at the picture's border, each output's weights with sum 1.
    """
    function, reach = _KERNELS[kernel]
    scale = n / resized
    stretch = max(scale, 1.0)
    centers = (np.arange(start, start + kept) + 0.5) * scale
    low = np.maximum((centers - reach * stretch + 0.5).astype(np.int64), 0)
    high = np.minimum((centers + reach * stretch + 0.5).astype(np.int64), n)
    taps = np.arange(int((high - low).max()))
    places = low[:, None] + taps
    weights = function((places - centers[:, None] + 0.5) / stretch)
    weights[places >= high[:, None]] = 0.0
    weights /= weights.sum(axis=1, keepdims=True)
    blocks: list[Block] = []
    for first in range(0, kept, _BLOCK):
        into = slice(first, min(first + _BLOCK, kept))
        taken = slice(int(low[first]), int(high[into.stop - 1]))
        weight = np.zeros((into.stop - first, taken.stop - taken.start), dtype=np.float32)
        for row, output in enumerate(range(first, into.stop)):
            at, count = low[output] - taken.start, high[output] - low[output]
            weight[row, at : at + count] = weights[output, :count]
        blocks.append((into, taken, weight))
    return blocks


@lru_cache(maxsize=16)
def _blocks_of_channels(
    n: int, resized: int, start: int, kept: int, kernel: Interpolation, channels: int
) -> list[Block]:
    """Return the same for columns whose channels stand side by side, to multiply from the right.

    ``weight`` is (channels * n_inputs, 3 * n_outputs): channels alternate in the inputs and follow
    one another in the outputs, where a fourth, alpha, is left out. Two thirds of the weights are
    zeros; turning the array would cost more.
    """
    blocks: list[Block] = []
    for into, taken, weight in _blocks(n, resized, start, kept, kernel):
        outputs, inputs = weight.shape
        wide = np.zeros((channels * inputs, 3 * outputs), dtype=np.float32)
        for channel in range(3):
            wide[channel::channels, channel * outputs : (channel + 1) * outputs] = weight.T
        blocks.append((into, taken, wide))
    return blocks


def _cubic(x: F64) -> F64:
    """Keys' kernel with a = -0.5."""
    x = np.abs(x)
    inner, outer = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x < 1, inner, np.where(x < 2, outer, 0.0))


def _triangle(x: F64) -> F64:
    weights: F64 = np.maximum(1 - np.abs(x), 0.0)
    return weights


_KERNELS: Final[dict[Interpolation, tuple[Callable[[F64], F64], float]]] = {
    "bicubic": (_cubic, 2.0),
    "bilinear": (_triangle, 1.0),
}
_PLACES: Final = {"shortest": _shortest, "longest": _longest, "squash": _squash}
