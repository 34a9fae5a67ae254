from __future__ import annotations

import base64
import struct
import zlib
from io import BytesIO

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router_runtime.errors import ConfigError, QueryError
from router_runtime.images import ImageLimits, decode, load_image, verify
from router_runtime.types import Image


def encoded(picture, name="PNG", **options):
    buffer = BytesIO()
    picture.save(buffer, format=name, **options)
    return buffer.getvalue()


def red(size=(4, 3), mode="RGB"):
    return PIL.Image.new(mode, size, "red")


def noise(width=64, height=48):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return PIL.Image.fromarray(pixels)


def chunk(kind, data):
    body = kind + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))


def png_of(width, height, idat=b"", *extra):
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", header),
            *extra,
            chunk(b"IDAT", zlib.compress(idat)),
            chunk(b"IEND", b""),
        ]
    )


def as_base64(data):
    return base64.b64encode(data).decode()


@pytest.mark.parametrize(
    ("name", "media_type"),
    [("PNG", "image/png"), ("JPEG", "image/jpeg"), ("WEBP", "image/webp"), ("GIF", "image/gif")],
)
def test_the_media_type_is_read_from_the_bytes(name, media_type):
    data = encoded(red(), name)
    assert load_image(data) == Image(data, media_type)


def test_the_claimed_media_type_of_a_data_uri_is_ignored():
    uri = "data:image/jpeg;base64," + as_base64(encoded(red()))
    assert load_image(uri).media_type == "image/png"


def test_every_kind_of_source_gives_the_same_image(tmp_path):
    data = encoded(red())
    path = tmp_path / "red.png"
    path.write_bytes(data)
    wrapped = "\n".join(as_base64(data)[at : at + 20] for at in range(0, 200, 20))
    sources = [
        data,
        bytearray(data),
        as_base64(data),
        wrapped,
        as_base64(data).rstrip("="),
        "data:image/png;base64," + as_base64(data),
        "data:image/png;name=a;base64," + as_base64(data),
        path,
        str(path),
        Image(data, "image/png"),
    ]
    assert {load_image(source).sha256 for source in sources} == {Image(data, "image/png").sha256}


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "F", "I", "HSV"])
def test_a_pil_image_of_any_mode_becomes_a_png(mode):
    image = load_image(noise().convert("RGB").convert(mode if mode != "LA" else "L").convert(mode))
    assert image.media_type == "image/png"
    assert decode(image).size == (64, 48)


def test_equal_pil_images_have_equal_digests():
    assert load_image(noise()).sha256 == load_image(noise()).sha256


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (png_of(50_000, 50_000), "pixels"),
        (png_of(10_000, 10_000), "10000 x 10000 pixels"),
        (b"", "empty"),
        (b"just a text", "unknown format"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
        (b'<?xml version="1.0"?><svg/>', "SVG"),
        (b"\x89PNG\r\n\x1a\n", "0 x 0 pixels"),
        (png_of(4, 4)[:24], "header is damaged"),
        (encoded(red(), "BMP"), "unknown format"),
        ("http://127.0.0.1/cat.png", "not fetched"),
        ("file:///etc/passwd", "not fetched"),
        ("data:image/png;base64,@@@@", "base64 is damaged"),
        ("data:image/svg+xml,<svg/>", "not base64"),
        ("data:image/svg+xml;base64," + as_base64(b"<svg/>"), "SVG"),
        ("iVBORw0KGgoAAAANSUhEUgAA!!", "base64 is damaged"),
        ("", "not a file name"),
        ("no-such-picture.png", "no picture file"),
        ("x" * 5000, "picture file"),
        ("a\0b.png", "not a file name"),
        (17, "int"),
        (b"RIFF\x1e\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + b"\xff\xff\x00" * 2, "65536 x 65536"),
    ],
    ids=lambda value: str(value)[:24] if not isinstance(value, bytes) else None,
)
def test_what_is_not_an_accepted_picture_is_refused_in_one_short_line(source, words):
    with pytest.raises(QueryError, match=words) as caught:
        load_image(source)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("name", ["PNG", "JPEG", "WEBP", "GIF"])
def test_a_truncated_picture_does_not_pass_verification(name):
    data = encoded(noise(), name)[:-800]
    with pytest.raises(QueryError):
        verify(load_image(data))


def test_a_compressed_text_bomb_in_a_png_is_refused():
    bomb = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(80 * 2**20)))
    with pytest.raises(QueryError):
        verify(load_image(png_of(1, 1, b"\0\0\0\0", bomb)))


def test_pixel_data_beyond_the_stated_size_is_never_inflated():
    image = load_image(png_of(1, 1, bytes(50 * 2**20)))
    assert decode(image).size == (1, 1)


def test_limits_are_inclusive_and_checked_for_every_kind_of_source(tmp_path):
    data = encoded(red((10, 10)))
    path = tmp_path / "a.png"
    path.write_bytes(data)
    exact = ImageLimits(max_bytes=len(data) + 10, max_pixels=100)  # PIL may pack differently
    for source in (data, path, as_base64(data), red((10, 10)), Image(data, "image/png")):
        assert load_image(source, limits=exact)
        with pytest.raises(QueryError, match="pixels"):
            load_image(source, limits=ImageLimits(max_pixels=99))
    for source in (data, path, as_base64(data), Image(data, "image/png")):
        assert load_image(source, limits=ImageLimits(max_bytes=len(data)))
        with pytest.raises(QueryError, match="bytes"):
            load_image(source, limits=ImageLimits(max_bytes=len(data) - 1))


def test_a_format_can_be_switched_off():
    with pytest.raises(QueryError, match="GIF; accepted: PNG"):
        load_image(encoded(red(), "GIF"), limits=ImageLimits(formats=("PNG",)))


@pytest.mark.parametrize("values", [{"max_bytes": 0}, {"max_pixels": -1}, {"formats": ("BMP",)}])
def test_impossible_limits_are_a_config_error(values):
    with pytest.raises(ConfigError):
        ImageLimits(**values)


def test_a_client_cannot_name_files_of_the_server(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(encoded(red()))
    for source in (path, str(path)):
        with pytest.raises(QueryError):
            load_image(source, allow_paths=False)


def test_relative_paths_start_at_the_base_folder_and_cannot_leave_it(tmp_path):
    inside = tmp_path / "data" / "pictures"
    inside.mkdir(parents=True)
    (inside / "a.png").write_bytes(encoded(red()))
    (tmp_path / "secret.png").write_bytes(encoded(red()))
    base = tmp_path / "data"
    assert load_image("pictures/a.png", base_dir=base)
    assert load_image(str(inside / "a.png"), base_dir=base)
    for path in ("../secret.png", "pictures/../../secret.png", str(tmp_path / "secret.png")):
        with pytest.raises(QueryError, match="outside"):
            load_image(path, base_dir=base)


def test_a_folder_is_not_a_picture(tmp_path):
    with pytest.raises(QueryError, match="no picture file"):
        load_image(tmp_path)


def test_transparency_is_composited_on_white():
    half = PIL.Image.new("RGBA", (2, 2), (255, 0, 0, 0))
    assert decode(load_image(half)).getpixel((0, 0)) == (255, 255, 255)


def test_sixteen_bit_grey_is_scaled_not_clipped():
    grey = PIL.Image.fromarray(np.full((2, 2), 0x8000, dtype=np.uint16))
    assert decode(load_image(grey)).getpixel((0, 0)) == (128, 128, 128)


def test_an_animation_is_its_first_frame():
    frames = [red(), PIL.Image.new("RGB", (4, 3), "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode(load_image(data)).getpixel((0, 0)) == (255, 0, 0)


def test_exif_orientation_is_not_applied():
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    image = load_image(encoded(red((8, 4)), "JPEG", exif=exif.tobytes()))
    assert decode(image).size == (8, 4)


@pytest.mark.parametrize("name", ["PNG", "JPEG", "WEBP"])
def test_max_side_shrinks_and_keeps_the_aspect_but_never_enlarges(name):
    image = load_image(encoded(noise(640, 320), name))
    assert decode(image, max_side=64).size == (64, 32)
    assert decode(image, max_side=1000).size == (640, 320)


def test_pillow_s_global_limits_are_left_alone():
    before = PIL.Image.MAX_IMAGE_PIXELS
    with pytest.raises(QueryError):
        load_image(png_of(50_000, 50_000))
    assert before == PIL.Image.MAX_IMAGE_PIXELS


@settings(deadline=None, max_examples=150)
@given(at=st.integers(0, 400), byte=st.integers(0, 255), name=st.sampled_from(["PNG", "JPEG"]))
def test_a_changed_byte_gives_a_picture_or_a_query_error(at, byte, name):
    data = bytearray(encoded(noise(12, 12), name))
    data[at % len(data)] = byte
    try:
        assert decode(load_image(bytes(data))).mode == "RGB"
    except QueryError as error:
        assert "\n" not in str(error)
