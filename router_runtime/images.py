"""Bytes, paths, data URIs and Pillow images become a checked ``Image``, and that becomes pixels.

What is accepted is decided from the first bytes and the header, before anything is decoded: format,
bytes, pixels. Nothing is ever fetched: a URL is refused, so a request cannot make the router call
other machines. Every defect is a ``QueryError`` of one line that never contains the picture.

Where ``kornia_rs`` is installed (extra ``onnx``) it decodes the common kinds of PNG and, for
``OpenPicture``, of JPEG: the same pixels, of a screenshot in a third of Pillow's time. Pillow reads
every header, decodes what is less common, and has the last word on what is damaged.

EXIF orientation is not applied. CLIP, SigLIP and DINOv2 were trained on, and candidates' own
preprocessors mostly read, pixels as stored; rotating here would make routing see another picture
than the model that answers.
"""

from __future__ import annotations

import base64
import binascii
import importlib
import os
import re
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path, PurePath
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
import PIL.Image

from router_runtime.errors import ConfigError, QueryError
from router_runtime.types import Image

Pixels: TypeAlias = npt.NDArray[np.uint8]  # (height, width, channels)

_MEDIA_TYPES: Final = {
    "PNG": "image/png",
    "JPEG": "image/jpeg",
    "WEBP": "image/webp",
    "GIF": "image/gif",
}
_FORMATS: Final = {media_type: name for name, media_type in _MEDIA_TYPES.items()}
_DATA_URI: Final = re.compile(r"data:[^,;]*(?:;[^,;]*)*?;base64,", re.IGNORECASE)
_URL: Final = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
_RUST_MODES: Final = {"RGB": "rgb", "RGBA": "rgba", "L": "mono"}
_PEEK_CHARS: Final = 24  # 18 bytes, more than any magic number needs


@dataclass(frozen=True)
class ImageLimits:
    """What one picture may be.

    Parameters
    ----------
    max_bytes : int
        Size of the encoded file.
    max_pixels : int
        Width times height as the header states it; 50 million decode to 200 MB. Pillow's own
        limit, ``PIL.Image.MAX_IMAGE_PIXELS``, stays in force and is never changed here.
    formats : tuple of str
        Pillow's names of the accepted formats, among PNG, JPEG, WEBP and GIF (first frame).

    Raises
    ------
    ConfigError
        A limit below 1 or a format outside those four.
    """

    max_bytes: int = 20 * 2**20
    max_pixels: int = 50_000_000
    formats: tuple[str, ...] = ("PNG", "JPEG", "WEBP", "GIF")

    def __post_init__(self) -> None:
        for name, value in (("max_bytes", self.max_bytes), ("max_pixels", self.max_pixels)):
            if value < 1:
                raise ConfigError(f"ImageLimits.{name} is {value}; it must be at least 1.")
        if unknown := sorted(set(self.formats) - set(_MEDIA_TYPES)):
            raise ConfigError(
                f"ImageLimits.formats has {', '.join(unknown)}; known: {', '.join(_MEDIA_TYPES)}."
            )


DEFAULT_LIMITS: Final = ImageLimits()


def load_image(
    source: bytes | bytearray | memoryview | str | PurePath | PIL.Image.Image | Image,
    *,
    limits: ImageLimits = DEFAULT_LIMITS,
    allow_paths: bool = True,
    base_dir: Path | None = None,
) -> Image:
    """Return ``source`` as a checked picture; only its header is read, no pixel is decoded.

    Parameters
    ----------
    source : bytes, str, Path, PIL.Image.Image or Image
        An encoded file. A string is a base64 ``data:`` URI, else plain base64 whose bytes begin
        like a picture, else (with ``allow_paths``) a path. A Pillow image is stored as PNG.
    limits : ImageLimits
        Checked for every kind of source.
    allow_paths : bool
        False for whatever comes over a network: a client must not name files of the server.
    base_dir : Path or None
        Where relative paths start. When given, paths that leave it are refused, so that a data
        file cannot point at the rest of the disk; links inside it are followed.

    Raises
    ------
    QueryError
        The source is none of these, too large, missing, or not an accepted picture.
    """
    if isinstance(source, Image):
        data = source.data
    elif isinstance(source, PIL.Image.Image):
        data = _png_bytes(source, limits)
    elif isinstance(source, bytes | bytearray | memoryview):
        data = bytes(source)
    elif isinstance(source, str):
        data = _string_bytes(source, limits, allow_paths, base_dir)
    elif isinstance(source, PurePath):
        if not allow_paths:
            raise QueryError("A picture is given as a path, and paths are not accepted here.")
        data = _file_bytes(str(source), limits, base_dir)
    else:
        raise QueryError(
            f"A picture is given as {type(source).__name__}; give a data URI, base64 text, bytes, "
            "a path or a PIL image."
        )
    media_type = _checked_media_type(data, limits)
    if isinstance(source, Image) and source.media_type == media_type:
        return source
    return Image(data, media_type)


def decode(image: Image, *, max_side: int | None = None) -> PIL.Image.Image:
    """Return the pixels in RGB: transparency on white, of an animation the first frame.

    Parameters
    ----------
    image : Image
        From ``load_image``.
    max_side : int or None
        When given, the picture is shrunk (never enlarged) to at most this many pixels a side; a
        JPEG is then decoded at a fraction of its size, which is several times faster.

    Raises
    ------
    QueryError
        The file is truncated or damaged.
    """
    name = _format(image)
    picture = _opened(image.data, name)
    if max_side is not None and name == "JPEG":
        picture.draft(None, (max_side, max_side))
    found = _rust_png(image.data, picture) if name == "PNG" else None
    picture = _to_rgb(_loaded(picture, name) if found is None else _picture_of(found))
    if max_side is not None and max(picture.size) > max_side:
        picture.thumbnail((max_side, max_side), PIL.Image.Resampling.BICUBIC)
    return picture


class OpenPicture:
    """A picture whose header is read and whose pixels are not yet decoded.

    Parameters
    ----------
    image : Image
        From ``load_image``.

    Attributes
    ----------
    size : (int, int)
        Width and height as stored.

    Raises
    ------
    QueryError
        The header is damaged.
    """

    def __init__(self, image: Image) -> None:
        self._data = image.data
        self._format = _format(image)
        picture = _opened(image.data, self._format)
        self._picture: PIL.Image.Image | None = picture
        self.size = picture.size

    def pixels(self, *, at_least: tuple[int, int] | None = None) -> Pixels:
        """Decode what ``decode`` gives.

        Parameters
        ----------
        at_least : (int, int), optional
            Width and height that are enough. A JPEG is decoded at a half, a quarter or an eighth
            of its size where that is no less; no other format can be.

        Returns
        -------
        ndarray of shape (height, width, 3 or 4), uint8
            Red, green, blue, and perhaps an alpha of 255 throughout; read-only or not.

        Raises
        ------
        QueryError
            The file is truncated or damaged.
        """
        name, found = self._format, None
        picture = self._picture or _opened(self._data, name)
        self._picture = None  # a Pillow image is drafted and decoded once
        if name == "JPEG" and at_least is not None:
            picture.draft(None, at_least)
        if name == "PNG":
            found = _rust_png(self._data, picture)
        elif name == "JPEG" and picture.size == self.size:
            found = _rust_jpeg(self._data, picture)
        if found is None:
            return np.asarray(_to_rgb(_loaded(picture, name)))
        if found.shape[2] == 1:
            return np.repeat(found, 3, axis=2)
        if found.shape[2] == 3 or found[..., 3].min() == 255:  # as browsers write screenshots
            return found
        return np.asarray(_to_rgb(_picture_of(found)))


def dimensions(image: Image) -> tuple[int, int]:
    """Return width and height in pixels, from the header alone.

    Raises
    ------
    QueryError
        The header is damaged.
    """
    return _opened(image.data, _format(image)).size


def verify(image: Image) -> None:
    """Read the picture to its end and forget it: proof that ``decode`` will work later.

    Of a JPEG every bit is read and an eighth of the pixels a side is made, which takes two thirds
    of the time.

    Raises
    ------
    QueryError
        The file is truncated or damaged.
    """
    OpenPicture(image).pixels(at_least=(1, 1))


def _string_bytes(
    text: str, limits: ImageLimits, allow_paths: bool, base_dir: Path | None
) -> bytes:
    if text[:5].lower() == "data:":
        header = _DATA_URI.match(text[:200])
        if header is None:
            raise QueryError("A picture's data URI is not base64; write data:image/png;base64,...")
        return _base64_bytes(text[header.end() :], limits)
    if _URL.match(text):
        raise QueryError(
            f"The picture {_shown(text)} is a URL, and URLs are not fetched; send the picture "
            "itself as a data URI."
        )
    if _begins_like_base64_picture(text):
        return _base64_bytes(text, limits)
    if allow_paths:
        return _file_bytes(text, limits, base_dir)
    raise QueryError(
        "A picture's text is neither a data URI nor the base64 of a PNG, JPEG, WebP or GIF file."
    )


def _begins_like_base64_picture(text: str) -> bool:
    head = "".join(text[: 2 * _PEEK_CHARS].split())[:_PEEK_CHARS]
    try:
        return _magic(base64.b64decode(head[: len(head) // 4 * 4], validate=True)) is not None
    except (binascii.Error, ValueError):
        return False


def _base64_bytes(text: str, limits: ImageLimits) -> bytes:
    if len(text) > limits.max_bytes * 1.5 + 100:  # 4/3, and room for line breaks
        raise QueryError(_too_many_bytes(len(text) * 3 // 4, limits))
    compact = "".join(text.split()).rstrip("=")
    try:
        return base64.b64decode(compact + "=" * (-len(compact) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise QueryError("A picture's base64 is damaged; encode the file's bytes again.") from None


def _file_bytes(path: str, limits: ImageLimits, base_dir: Path | None) -> bytes:
    shown = _shown(path)
    if not path.strip() or "\0" in path:
        raise QueryError(f"The picture {shown} is not a file name.")
    place = Path(path)
    if base_dir is not None:
        # Lexical on purpose: links that the operator placed inside base_dir lead where they like.
        base = Path(os.path.abspath(base_dir))
        place = Path(os.path.normpath(base / path))
        if not place.is_relative_to(base):
            raise QueryError(f"The picture {shown} lies outside {base}; name that folder instead.")
    try:
        if not place.is_file():
            raise QueryError(f"There is no picture file {shown}.")
        with place.open("rb") as file:
            data = file.read(limits.max_bytes + 1)
            size = max(len(data), place.stat().st_size)
    except OSError as error:
        raise QueryError(f"The picture file {shown} cannot be read: {error.strerror}.") from error
    if size > limits.max_bytes:
        raise QueryError(_too_many_bytes(size, limits))
    return data


def _png_bytes(picture: PIL.Image.Image, limits: ImageLimits) -> bytes:
    _check_pixels(picture.size, limits)
    buffer = BytesIO()
    try:
        if picture.mode not in {"1", "L", "LA", "P", "RGB", "RGBA", "I;16"}:
            picture = picture.convert("RGBA" if picture.has_transparency_data else "RGB")
        picture.save(buffer, format="PNG", compress_level=1)
    except Exception as error:  # a lazily opened file may turn out to be damaged in many ways
        raise QueryError(f"The PIL image cannot be stored as PNG: {_reason(error)}.") from error
    return buffer.getvalue()


def _checked_media_type(data: bytes, limits: ImageLimits) -> str:
    if len(data) > limits.max_bytes:
        raise QueryError(_too_many_bytes(len(data), limits))
    name = _magic(data)
    if name is None or name not in limits.formats:
        raise QueryError(
            f"A picture is {_described(data) if name is None else name}; accepted: "
            f"{', '.join(limits.formats)}."
        )
    if stated := _stated_size(data, name):
        _check_pixels(stated, limits)
    with _opened(data, name) as picture:
        _check_pixels(picture.size, limits)
    return _MEDIA_TYPES[name]


def _magic(data: bytes) -> str | None:
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    return None


def _described(data: bytes) -> str:
    head = data[:512].lstrip().lower()
    if not data:
        return "empty"
    return "SVG" if head.startswith((b"<svg", b"<?xml")) and b"svg" in head else "of unknown format"


def _stated_size(data: bytes, name: str) -> tuple[int, int] | None:
    """Return width and height from a PNG, GIF or WebP header without Pillow; None for JPEG.

    Pillow warns of large pictures as it opens them, and allocates a WebP's canvas. The layouts are
    those of the three file formats' specifications.
    """
    if name == "PNG":
        return _big(data[16:20]), _big(data[20:24])
    if name == "GIF":
        return _little(data[6:8]), _little(data[8:10])
    if name == "JPEG":
        return None
    kind, head = data[12:16], data[20:30]
    if kind == b"VP8X":
        return 1 + _little(head[4:7]), 1 + _little(head[7:10])
    if kind == b"VP8L":
        bits = _little(head[1:5])
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    return _little(head[6:8]) & 0x3FFF, _little(head[8:10]) & 0x3FFF


def _big(data: bytes) -> int:
    return int.from_bytes(data, "big")


def _little(data: bytes) -> int:
    return int.from_bytes(data, "little")


def _opened(data: bytes, name: str) -> PIL.Image.Image:
    """Open lazily with the one plugin that the magic number names."""
    try:
        return PIL.Image.open(BytesIO(data), formats=[name])
    except PIL.Image.DecompressionBombError:
        raise QueryError("A picture's header states hundreds of millions of pixels.") from None
    except Exception as error:  # hostile bytes make Pillow raise nearly anything
        raise QueryError(f"A picture's {name} header is damaged: {_reason(error)}.") from error


def _format(image: Image) -> str:
    name = _FORMATS.get(image.media_type)
    if name is None:
        raise QueryError(f"A picture is {image.media_type}; accepted: {', '.join(_FORMATS)}.")
    return name


def _loaded(picture: PIL.Image.Image, name: str) -> PIL.Image.Image:
    try:
        picture.load()
    except Exception as error:  # as above: whatever damage raises, it is one damaged picture
        raise QueryError(f"A {name} picture does not decode: {_reason(error)}.") from error
    return picture


@cache
def _rust() -> Any:
    try:
        return importlib.import_module("kornia_rs.io")
    except ImportError:
        return None


def _rust_png(data: bytes, picture: PIL.Image.Image) -> Pixels | None:
    """Return (height, width, channels) of a plain PNG; None where Pillow shall decode it."""
    eight_bits, interlaced = data[24:25] == b"\x08", data[28:29] != b"\0"
    animated = getattr(picture, "is_animated", False)
    if not eight_bits or interlaced or animated or "transparency" in picture.info:
        return None
    return _in_rust("decode_image_png_u8", data, (picture.height, picture.width), picture.mode)


def _rust_jpeg(data: bytes, picture: PIL.Image.Image) -> Pixels | None:
    """Return (height, width, 3) of a JPEG in colour; None where Pillow shall decode it."""
    if picture.mode != "RGB":
        return None
    found = _in_rust("decode_image_jpegturbo", data, "RGB")
    return found if found is not None and found.shape[1::-1] == picture.size else None


def _in_rust(function: str, data: bytes, *arguments: Any) -> Pixels | None:
    *others, mode = arguments
    if _rust() is None or mode not in _RUST_MODES:
        return None
    try:
        found: Pixels = getattr(_rust(), function)(data, *others, _RUST_MODES[mode])
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException:  # damage is a bare Exception, a Rust panic not even that: ask Pillow
        return None
    return found


def _picture_of(found: Pixels) -> PIL.Image.Image:
    return PIL.Image.fromarray(found[..., 0] if found.shape[2] == 1 else found)


def _to_rgb(picture: PIL.Image.Image) -> PIL.Image.Image:
    if picture.mode.startswith("I"):  # 16 bits: Pillow would clip instead of scaling
        picture = PIL.Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    if not picture.has_transparency_data:
        return picture if picture.mode == "RGB" else picture.convert("RGB")
    layer = picture.convert("RGBA")
    canvas = PIL.Image.new("RGBA", layer.size, "white")
    canvas.alpha_composite(layer)
    return canvas.convert("RGB")


def _check_pixels(size: tuple[int, int], limits: ImageLimits) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise QueryError(f"A picture is {width} x {height} pixels, which is empty.")
    if width * height > limits.max_pixels:
        raise QueryError(
            f"A picture is {width} x {height} pixels; at most {limits.max_pixels:,} are accepted. "
            "Scale it down."
        )


def _too_many_bytes(size: int, limits: ImageLimits) -> str:
    return f"A picture has {size:,} bytes; at most {limits.max_bytes:,} are accepted. Shrink it."


def _reason(error: Exception) -> str:
    words = " ".join(str(error).split()).rstrip(".")
    return words[:120] or type(error).__name__


def _shown(text: str) -> str:
    line = " ".join(text.split())
    return repr(line if len(line) <= 80 else line[:60] + "...")
