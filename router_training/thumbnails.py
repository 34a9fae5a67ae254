"""Pictures for pages, encoded anew, so that no byte of an untrusted file is passed on."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

from router_runtime.errors import QueryError
from router_runtime.images import decode
from router_runtime.types import Image


@dataclass(frozen=True)
class Thumbnail:
    """A picture as a data URI, with its size in pixels."""

    uri: str
    width: int
    height: int


def thumbnail(image: Image, *, max_side: int) -> Thumbnail | None:
    """Return a picture at most ``max_side`` wide and high, the smaller of PNG and JPEG.

    None where the file is damaged.
    """
    try:
        pixels = decode(image, max_side=max_side)
    except QueryError:
        return None
    encoded = {}
    for kind, options in (("png", {"optimize": True}), ("jpeg", {"quality": 85})):
        stream = io.BytesIO()
        pixels.save(stream, format=kind, **options)
        encoded[kind] = stream.getvalue()
    kind, data = min(encoded.items(), key=lambda entry: len(entry[1]))
    uri = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    return Thumbnail(uri, *pixels.size)
