from __future__ import annotations

from io import BytesIO

import numpy as np
import PIL.Image
import PIL.ImageDraw
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from router_runtime import images
from router_runtime.errors import EncoderError, QueryError
from router_runtime.images import OpenPicture, decode, load_image
from router_runtime.prediction.encoders.clip_pixels import (
    CLIP_STD,
    Preprocessing,
    _blocks,
    preprocess,
)

pytest.importorskip("router_runtime.weights.torch_setup")
image_transform = pytest.importorskip("open_clip.transform").image_transform

WORDS = "calendar claim provider window invoice 1,200.50 " * 6


def photo(width: int, height: int) -> PIL.Image.Image:
    """Noise of several scales, as much on each: what a sharp photograph's spectrum is like."""
    rng = np.random.default_rng(0)
    pixels = np.full((height, width, 3), 128, np.float32)
    for side, strength in ((4, 60), (16, 40), (64, 25), (256, 15)):
        coarse = rng.normal(size=(max(2, side * height // width), side, 3)).astype(np.float32)
        for channel in range(3):
            plane = PIL.Image.fromarray(coarse[..., channel])
            pixels[..., channel] += strength * np.asarray(plane.resize((width, height), 3))
    return PIL.Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def screen(width: int, height: int) -> PIL.Image.Image:
    picture = PIL.Image.new("RGB", (width, height), (245, 246, 248))
    draw = PIL.ImageDraw.Draw(picture)
    draw.rectangle((0, 0, width, 40), fill=(32, 44, 72))
    for y in range(50, height, 14):
        draw.text((10, y), WORDS, fill=(20, 30, 60))
    return picture


def stored(picture: PIL.Image.Image, name: str = "PNG", **options) -> images.Image:
    buffer = BytesIO()
    picture.save(buffer, name, **options)
    return load_image(buffer.getvalue())


def difference(image: images.Image, **options) -> float:
    """Mean absolute difference to open_clip's transform, of 255."""
    size = options.pop("size", 224)
    theirs = image_transform(size, is_train=False, **options)(decode(image)).numpy()
    ours = preprocess(image, size=size, **options)
    assert ours.dtype == np.float32
    assert ours.shape == theirs.shape
    std = np.array(options.get("std", CLIP_STD))[:, None, None]
    return float(np.abs((ours - theirs) * std).mean() * 255)


exif = PIL.Image.Exif()
exif[0x0112] = 6
half = screen(500, 300).convert("RGBA")
half.putalpha(128)
KEYED = stored(screen(400, 300).convert("P"), transparency=0)
VARIED = {
    "photo as JPEG": stored(photo(1280, 800), "JPEG", quality=85),
    "large JPEG": stored(photo(2600, 1700), "JPEG", quality=80),
    "text as JPEG": stored(screen(1280, 800), "JPEG", quality=90),
    "turned JPEG": stored(photo(640, 400), "JPEG", exif=exif.tobytes()),
    "progressive JPEG": stored(photo(640, 400), "JPEG", progressive=True, subsampling=0),
    "grey JPEG": stored(photo(700, 500).convert("L"), "JPEG"),
    "CMYK JPEG": stored(photo(700, 500).convert("CMYK"), "JPEG"),
    "screenshot": stored(screen(1280, 800)),
    "opaque RGBA": stored(screen(1280, 800).convert("RGBA")),
    "half transparent": stored(half),
    "palette": stored(screen(800, 600).convert("P")),
    "palette with transparency": KEYED,
    "grey PNG": stored(photo(500, 400).convert("L")),
    "grey and alpha": stored(half.convert("LA")),
    "one bit": stored(photo(500, 400).convert("1")),
    "16 bits": stored(PIL.Image.fromarray(np.arange(90_000, dtype=np.uint16).reshape(300, 300))),
    "WebP": stored(photo(900, 500), "WEBP"),
    "GIF": stored(screen(400, 300), "GIF"),
    "noise": stored(
        PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (500, 700, 3), np.uint8))
    ),
    "tiny": stored(photo(3, 2)),
    "one pixel": stored(PIL.Image.new("RGB", (1, 1), "red")),
    "smaller": stored(photo(180, 120)),
    "just right": stored(photo(224, 224)),
    "wide": stored(screen(3000, 20)),
    "tall": stored(screen(12, 1500)),
}


@pytest.mark.parametrize("name", VARIED)
def test_any_picture_is_within_one_of_255_of_open_clip(name):
    assert difference(VARIED[name]) <= 0.95


@pytest.mark.parametrize("resize_mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [64, 336, (96, 160)])
def test_every_mode_of_open_clip(resize_mode, interpolation, size):
    options = {"resize_mode": resize_mode, "interpolation": interpolation, "size": size}
    for image in (stored(screen(400, 300)), stored(photo(90, 250))):
        assert difference(image, **options, fill_color=7, mean=(0.5,) * 3, std=(0.5,) * 3) <= 0.25


@settings(deadline=None, max_examples=60)
@given(
    width=st.integers(1, 700),
    height=st.integers(1, 700),
    size=st.integers(8, 80),
    mode=st.sampled_from(["shortest", "longest", "squash"]),
)
def test_any_size_gives_open_clips_crop(width, height, size, mode):
    assume(mode != "longest" or size * min(width, height) > max(width, height))  # it fails there
    rows, columns = np.mgrid[:height, :width]
    pixels = np.stack([rows * 5 % 256, columns * 3 % 256, (rows + columns) % 256], axis=2)
    picture = PIL.Image.fromarray(pixels.astype(np.uint8))
    assert difference(stored(picture), size=size, resize_mode=mode) <= 1


def test_a_pillow_image_is_taken_as_it_is():
    picture = screen(500, 400)
    np.testing.assert_array_equal(preprocess(picture), preprocess(stored(picture)))


def test_without_resizing_the_tensor_is_exact():
    image = stored(photo(224, 224))
    expected = image_transform(224, is_train=False)(decode(image)).numpy()
    np.testing.assert_array_equal(preprocess(image), expected)


def test_weights_are_pillows():
    ramp = PIL.Image.fromarray(np.tile(np.linspace(0, 1, 97, dtype=np.float32), (3, 1)))
    small = np.asarray(ramp.resize((31, 3), PIL.Image.Resampling.BICUBIC))[0]
    found = np.concatenate(
        [
            weight @ np.asarray(ramp)[0, taken]
            for _, taken, weight in _blocks(97, 31, 0, 31, "bicubic")
        ]
    )
    np.testing.assert_allclose(found, small, atol=1e-6)


def test_a_configuration_of_open_clip_is_read():
    config = {
        "size": [32, 48],
        "mode": "RGB",
        "mean": 0.5,
        "std": [0.1, 0.2, 0.3],
        "interpolation": "bilinear",
        "resize_mode": "squash",
        "fill_color": 0,
    }
    found = Preprocessing.from_config(config)
    assert (found.height, found.width, found.mean) == (32, 48, (0.5, 0.5, 0.5))
    assert Preprocessing.from_config({"size": 224}) == Preprocessing()


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"size": 0}, "size"),
        ({"std": (1.0, 0.0, 1.0)}, "std"),
        ({"mean": (0.5,)}, "mean"),
        ({"resize_mode": "stretch"}, "resize_mode"),
        ({"interpolation": "nearest"}, "interpolation"),
    ],
)
def test_an_impossible_preprocessing_is_refused(options, word):
    with pytest.raises(EncoderError, match=f"'{word}'"):
        preprocess(screen(50, 40), **options)


def test_a_damaged_picture_is_a_query_error():
    data = VARIED["screenshot"].data
    with pytest.raises(QueryError):
        preprocess(load_image(data[: len(data) // 2]))


@pytest.fixture
def decodings(monkeypatch):
    """The sizes of all that is decoded, height first."""
    seen = []
    inner = OpenPicture.pixels

    def recorded(self, **options):
        found = inner(self, **options)
        seen.append(found.shape[:2])
        return found

    monkeypatch.setattr(OpenPicture, "pixels", recorded)
    return seen


def test_a_large_smooth_jpeg_is_decoded_small(decodings):
    image = stored(photo(1280, 800), "JPEG")
    assert difference(image) <= 0.95
    assert decodings == [(400, 640)]


def test_a_jpeg_of_many_bits_is_decoded_once_and_in_full(decodings):
    preprocess(VARIED["text as JPEG"])
    assert decodings == [(800, 1280)]


def test_a_jpeg_of_few_bits_and_much_detail_is_decoded_again(decodings):
    picture = PIL.Image.new("RGB", (1280, 800), "white")
    draw = PIL.ImageDraw.Draw(picture)
    for x in range(0, 1280, 40):
        draw.line((x, 0, x, 800), fill="black")
    image = stored(picture, "JPEG")
    assert difference(image) <= 0.95
    assert decodings == [(400, 640), (800, 1280)]


def test_fine_coloured_text_is_not_decoded_small_however_large_it_is(decodings):
    rng = np.random.default_rng(0)
    picture = PIL.Image.new("RGB", (2600, 1900), "white")
    draw = PIL.ImageDraw.Draw(picture)
    for y in range(0, 1900, 16):
        draw.text((4, y), WORDS * 2, fill=tuple(int(v) for v in rng.integers(0, 256, 3)))
    assert difference(stored(picture, "JPEG")) <= 0.95
    assert decodings[-1] == (1900, 2600)


@pytest.mark.parametrize("name", [name for name in VARIED if name != "large JPEG"])
def test_with_and_without_the_fast_decoder_the_pixels_are_the_same(name, monkeypatch):
    pytest.importorskip("kornia_rs")
    fast = OpenPicture(VARIED[name]).pixels()[..., :3]
    small = decode(VARIED[name], max_side=100)
    monkeypatch.setattr(images, "_rust", lambda: None)
    np.testing.assert_array_equal(fast, OpenPicture(VARIED[name]).pixels()[..., :3])
    np.testing.assert_array_equal(fast, np.asarray(decode(VARIED[name])))
    slow = decode(VARIED[name], max_side=100)
    assert small.mode == slow.mode
    np.testing.assert_array_equal(np.asarray(small), np.asarray(slow))
