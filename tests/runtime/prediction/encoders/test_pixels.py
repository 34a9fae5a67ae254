from io import BytesIO

import numpy as np
import PIL.Image
import PIL.ImageDraw
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router_runtime.errors import QueryError
from router_runtime.images import load_image
from router_runtime.prediction.encoders.pixels import PIXEL_NAMES, describe_picture
from router_runtime.types import Image


def blank(width=64, height=64, colour="white"):
    return PIL.Image.new("RGB", (width, height), colour)


def drawn(draw, **size):
    picture = blank(**size)
    draw(PIL.ImageDraw.Draw(picture))
    return picture


def describe(picture, side=8):
    return describe_picture(load_image(picture), thumbnail_side=side)


def statistic(picture, name):
    return describe(picture)[0][PIXEL_NAMES.index(name)]


def encoded(picture, **options):
    buffer = BytesIO()
    picture.save(buffer, **options)
    return load_image(buffer.getvalue())


def checker(draw):
    for row in range(8):
        for column in range(row % 2, 8, 2):
            draw.rectangle((column * 8, row * 8, column * 8 + 7, row * 8 + 7), fill="black")


def squares(count):
    def draw(pen):
        for i in range(count):
            pen.rectangle((4 + 12 * i, 8, 10 + 12 * i, 24), fill="black")

    return drawn(draw)


def test_every_statistic_has_one_name():
    statistics, _ = describe(blank())
    assert len(PIXEL_NAMES) == len(set(PIXEL_NAMES)) == len(statistics)


def test_size_is_that_of_the_original():
    picture = blank(width=1024, height=512)
    assert statistic(picture, "log_width") == pytest.approx(np.log(1024))
    assert statistic(picture, "log_height") == pytest.approx(np.log(512))
    assert statistic(picture, "log_aspect") == pytest.approx(np.log(2))


def test_a_flat_picture_has_no_edges_no_ink_and_no_entropy():
    for name in ("edge_density_fine", "edge_density_coarse", "ink_share", "ink_width"):
        assert statistic(blank(), name) == 0
    assert statistic(blank(), "grey_entropy") == 0
    assert statistic(blank(), "near_white") == 1
    assert statistic(blank(colour="black"), "near_black") == 1


def test_colour_statistics_of_a_half_red_half_white_picture():
    picture = drawn(lambda pen: pen.rectangle((0, 0, 31, 63), fill=(255, 0, 0)))
    expected = {
        "red_mean": 1.0,
        "green_mean": 0.5,
        "red_std": 0.0,
        "blue_std": 0.5,
        "saturation_mean": 0.5,
        "hue_0": 0.5,
        "hue_2": 0.0,
        "log_distinct_colours": np.log(3),
        "log_dominant_colours": np.log(3),
    }
    for name, value in expected.items():
        assert statistic(picture, name) == pytest.approx(value, abs=1e-6), name


def test_hue_tells_the_primary_colours_apart():
    for colour, name in (("red", "hue_0"), ("lime", "hue_2"), ("blue", "hue_4")):
        assert statistic(blank(colour=colour), name) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("colour", "name", "chroma"),
    [
        ("yellow", "hue_1", 255),
        ("cyan", "hue_3", 255),
        ("magenta", "hue_5", 255),
        ((200, 99, 0), "hue_0", 200),
        ((200, 101, 0), "hue_1", 200),
        ((50, 100, 210), "hue_4", 160),
    ],
)
def test_a_mixture_has_the_nearest_hue_by_its_chroma(colour, name, chroma):
    statistics, _ = describe(blank(colour=colour))
    hues = {f"hue_{i}": statistics[PIXEL_NAMES.index(f"hue_{i}")] for i in range(6)}
    assert hues[name] == pytest.approx(chroma / 255)
    assert sum(hues.values()) == pytest.approx(chroma / 255)


def test_grey_pictures_have_no_colour():
    for name in ("saturation_mean", "colourfulness", "hue_0"):
        assert statistic(blank(colour=(90, 90, 90)), name) == pytest.approx(0, abs=1e-6)


def test_an_even_ramp_of_grey_has_the_highest_entropy():
    ramp = PIL.Image.fromarray(np.tile(np.arange(256, dtype=np.uint8), (16, 1)))
    assert statistic(ramp, "grey_entropy") == pytest.approx(5.0, abs=0.02)
    assert statistic(ramp, "grey_0") == pytest.approx(1 / 8, abs=0.01)


def test_orientation_tells_vertical_from_horizontal_strokes():
    vertical = drawn(lambda pen: [pen.line((x, 0, x, 63), fill="black") for x in range(8, 64, 8)])
    assert statistic(vertical, "orientation_0") > 0.9
    assert statistic(vertical.transpose(PIL.Image.Transpose.ROTATE_90), "orientation_3") > 0.9


def test_symmetry_is_a_difference_of_zero():
    left = drawn(lambda pen: pen.rectangle((0, 0, 31, 63), fill="black"))
    assert statistic(left, "left_right_difference") == 1
    assert statistic(left, "top_bottom_difference") == 0


@pytest.mark.parametrize("count", [1, 3, 5])
def test_runs_and_euler_numbers_count_separate_parts(count):
    picture = squares(count)
    assert statistic(picture, "log_row_runs_max") == pytest.approx(np.log(1 + count))
    assert statistic(picture, "log_column_runs_max") == pytest.approx(np.log(2))
    assert statistic(picture, "log_euler_number_4") == pytest.approx(np.log(1 + count))


def test_a_hole_lowers_the_euler_number_by_one():
    ring = drawn(lambda pen: pen.ellipse((8, 8, 40, 40), outline="black", width=4))
    two_holes = drawn(
        lambda pen: (
            pen.rectangle((4, 4, 60, 60), outline="black", width=3),
            pen.line((32, 4, 32, 60), fill="black", width=3),
        )
    )
    assert statistic(ring, "log_euler_number_4") == 0
    assert statistic(two_holes, "log_euler_number_4") == pytest.approx(-np.log(2))


def test_diagonal_neighbours_are_apart_or_together_depending_on_connectivity():
    # 32 black squares that touch at 49 corners only: 32 parts, or one part with 18 holes.
    board = drawn(checker)
    assert statistic(board, "log_euler_number_4") == pytest.approx(np.log(33))
    assert statistic(board, "log_euler_number_8") == pytest.approx(-np.log(18))


def test_ink_extent_and_stroke_width():
    bar = drawn(lambda pen: pen.rectangle((16, 28, 47, 35), fill="black"))
    assert statistic(bar, "ink_share") == pytest.approx(32 * 8 / 64**2)
    assert statistic(bar, "ink_width") == pytest.approx(0.5)
    assert statistic(bar, "ink_height") == pytest.approx(8 / 64)
    assert statistic(bar, "log_stroke_width") == pytest.approx(np.log1p(2 * 256 / (2 * (8 + 32))))


def test_thumbnail_is_the_stretched_picture_in_grey():
    picture = drawn(lambda pen: pen.rectangle((0, 0, 31, 31), fill="black"), height=32)
    _, thumbnail = describe(picture, side=4)
    assert thumbnail.dtype == np.float32
    np.testing.assert_allclose(thumbnail.reshape(4, 4), [[0, 0, 1, 1]] * 4)


def test_another_lossless_format_changes_nothing():
    picture = drawn(checker)
    png = describe_picture(encoded(picture, format="PNG"), thumbnail_side=8)
    webp = describe_picture(encoded(picture, format="WEBP", lossless=True), thumbnail_side=8)
    for one, other in zip(png, webp, strict=True):
        np.testing.assert_array_equal(one, other)


def test_jpeg_noise_is_not_ink():
    picture = drawn(lambda pen: pen.rectangle((16, 16, 47, 47), fill=(0, 0, 160)))
    statistics, _ = describe_picture(encoded(picture, format="JPEG", quality=70), thumbnail_side=8)
    ink = statistics[PIXEL_NAMES.index("ink_share")]
    assert ink == pytest.approx(0.25, abs=0.03)


def test_a_damaged_picture_is_a_query_error():
    whole = encoded(PIL.Image.effect_noise((64, 64), 50), format="PNG")
    with pytest.raises(QueryError):
        describe_picture(Image(whole.data[:200], whole.media_type), thumbnail_side=8)


@settings(deadline=None, max_examples=40)
@given(
    width=st.integers(1, 40),
    height=st.integers(1, 40),
    seed=st.integers(0, 10),
    levels=st.sampled_from([1, 2, 256]),
)
def test_statistics_are_finite_for_every_picture(width, height, seed, levels):
    rng = np.random.default_rng(seed)
    noise = (rng.integers(levels, size=(height, width, 3)) * (255 // max(levels - 1, 1))) % 256
    statistics, thumbnail = describe(PIL.Image.fromarray(noise.astype(np.uint8)))
    assert np.isfinite(statistics).all()
    assert thumbnail.min() >= 0
    assert thumbnail.max() <= 1


def test_a_very_long_picture_is_described():
    statistics, thumbnail = describe(blank(width=5000, height=1))
    assert np.isfinite(statistics).all()
    assert thumbnail.shape == (64,)
