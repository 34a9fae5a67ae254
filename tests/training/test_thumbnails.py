from __future__ import annotations

import base64
import io

import PIL.Image
import pytest

from router_runtime.types import Image
from router_training.thumbnails import thumbnail


def encoded(size, **options) -> bytes:
    stream = io.BytesIO()
    PIL.Image.new("RGB", size, "teal").save(stream, format="PNG", **options)
    return stream.getvalue()


@pytest.mark.parametrize(("size", "shown"), [((900, 300), (90, 30)), ((20, 10), (20, 10))])
def test_a_large_picture_is_shrunk_and_a_small_one_is_not_grown(size, shown):
    found = thumbnail(Image(encoded(size), "image/png"), max_side=90)
    assert (found.width, found.height) == shown
    head, _, data = found.uri.partition(",")
    assert head in ("data:image/png;base64", "data:image/jpeg;base64")
    assert PIL.Image.open(io.BytesIO(base64.b64decode(data))).size == shown


def test_no_byte_beside_the_pixels_is_passed_on():
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("Comment", "where it was taken")
    data = encoded((8, 8), pnginfo=info)
    assert b"where it was taken" in data
    found = thumbnail(Image(data, "image/png"), max_side=90)
    assert b"where it was taken" not in base64.b64decode(found.uri.partition(",")[2])


def test_a_damaged_picture_has_no_thumbnail():
    assert thumbnail(Image(encoded((8, 8))[:40], "image/png"), max_side=90) is None
