"""Picture files to the tensor that CLIP reads, beside Pillow and open_clip's transform."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from io import BytesIO
from typing import Any, Final
from unittest import mock

import numpy as np
import PIL.Image
from embedding_parts.files import photograph, screenshot
from labelling_parts.table import Row

from router_runtime import images
from router_runtime.images import load_image
from router_runtime.prediction.encoders.clip_pixels import CLIP_STD, preprocess

FASTER: Final = 2.0
MOST_DIFFERENT: Final = 1.0  # of 255, on average

Compare = Callable[[Callable[[], object], Callable[[], object]], tuple[float, float]]
Ratio = Callable[[str, tuple[float, float], float | None], Row]


def rows(compare: Compare, ratio: Ratio) -> Iterator[Row]:
    """From a file's bytes, 1280 x 800 pixels, to 3 x 224 x 224 numbers."""
    import open_clip.transform

    transform = open_clip.transform.image_transform(224, is_train=False)
    worst = 0.0
    for what, data, target in _files():

        def ours(data: bytes = data) -> np.ndarray:
            return preprocess(load_image(data))

        def other(data: bytes = data) -> np.ndarray:
            return transform(PIL.Image.open(BytesIO(data))).numpy()

        yield ratio(f"{what}, file to tensor", compare(ours, other), target)
        if data.startswith(b"\x89PNG"):
            with mock.patch.object(images, "_rust", lambda: None):
                yield ratio(
                    f"{what}, file to tensor, without kornia-rs", compare(ours, other), None
                )
        apart = np.abs((ours() - other()) * np.array(CLIP_STD)[:, None, None]).mean() * 255
        worst = max(worst, float(apart))
    what = "  largest mean difference of them to open_clip's, of 255"
    yield Row(what, f"{worst:.2f}", "", worst, MOST_DIFFERENT, at_most=True)


def _files() -> Iterator[tuple[str, bytes, float | None]]:
    seen, read = photograph(1), screenshot(0)
    yield "photograph as JPEG (75)", _stored(seen, "JPEG", {"quality": 75}), FASTER
    yield "photograph as JPEG (90)", _stored(seen, "JPEG", {"quality": 90}), None
    yield "dense text as JPEG (75)", _stored(read, "JPEG", {"quality": 75}), FASTER
    yield "screenshot as PNG", _stored(read, "PNG", {}), FASTER


def _stored(picture: PIL.Image.Image, name: str, options: Mapping[str, Any]) -> bytes:
    buffer = BytesIO()
    picture.save(buffer, name, **options)
    return buffer.getvalue()
