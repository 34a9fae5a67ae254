from __future__ import annotations

import io
import re

import matplotlib as mpl
import PIL.Image
import pytest
from matplotlib.figure import Figure

from router_runtime.errors import RouterError
from router_training.plot_files import StyleSheet, png_of, svg_of, write_png
from router_training.plot_style import PALETTE, STYLE


def figure():
    with mpl.rc_context({**STYLE}):
        drawn = Figure(figsize=(3, 2))
        axes = drawn.add_subplot()
        axes.plot([0, 1], [0, 1], "o-", color=PALETTE["router"])
        axes.set_title("<script>alert(1)</script> & $x$")
        return drawn


def test_the_svg_stands_alone_and_runs_nothing():
    styles = StyleSheet()
    text = svg_of(figure(), "one", label="a &lt;line&gt;", styles=styles)
    assert text.startswith("<svg") and text.endswith("</svg>")
    assert 'role="img" aria-label="a &lt;line&gt;"' in text
    for absent in ("http", "style=", "<style", "<metadata", "<script", 'width="2'):
        assert absent not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; $x$" in text


def test_colours_and_font_are_the_pages_own():
    styles = StyleSheet()
    svg_of(figure(), "one", label="", styles=styles)
    assert "var(--router)" in styles.css
    assert "var(--font)" in styles.css
    assert "DejaVu" not in styles.css
    assert not re.search("|".join(PALETTE.values()), styles.css)


def test_two_figures_share_no_id():
    styles = StyleSheet()
    one, two = (svg_of(figure(), name, label="", styles=styles) for name in ("one", "two"))
    ids = re.findall(r' id="([^"]+)"', one + two)
    assert len(ids) == len(set(ids)) > 0
    for name, text in (("one", one), ("two", two)):
        used = re.findall(r'(?:url\(#|href="#)([^)"]+)', text)
        assert set(used) <= set(ids)
        assert all(entry.startswith(name) for entry in used)


def test_equal_figures_give_equal_text():
    first, second = (svg_of(figure(), "one", label="", styles=StyleSheet()) for _ in range(2))
    assert first == second


def test_a_style_has_one_class():
    styles = StyleSheet()
    names = [styles.class_of(text) for text in ("fill: none", "stroke: red", "fill: none")]
    assert names == ["s0", "s1", "s0"]
    assert styles.css == ".s0{fill: none}\n.s1{stroke: red}\n"


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RouterError, match="cannot be written"):
        write_png(figure(), tmp_path / "file" / "x.png")


def test_a_png_has_the_pixels_that_are_asked_for_and_nothing_of_its_making():
    small, large = (png_of(figure(), dpi=dpi) for dpi in (50, 100))
    assert PIL.Image.open(io.BytesIO(small)).size == (150, 100)
    assert PIL.Image.open(io.BytesIO(large)).size == (300, 200)
    assert small == png_of(figure(), dpi=50)
    assert b"atplotlib" not in small
