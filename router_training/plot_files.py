"""Figures as files: PNG for anywhere, SVG that takes the colours and the font of its page.

Equal figures give equal bytes: no date, no random id, one font.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from router_training.plot_style import PALETTE, STYLE
from router_training.store import write_whole

_DPI = 160
_FONT = re.compile(r"'DejaVu Sans'[^;\"]*")
_STYLE = re.compile(r' style="([^"]*)"')
_ID = re.compile(r' id="([^"]*)"')
_SIZE = re.compile(r' (?:width|height)="[\d.]+pt"')


class StyleSheet:
    """Style attributes as classes, so that a page needs no inline style.

    A content security policy can allow one style element by its digest; it cannot allow attributes
    one by one.
    """

    def __init__(self) -> None:
        self._classes: dict[str, str] = {}

    def class_of(self, declarations: str) -> str:
        """Return the class of these CSS declarations, the same for the same text."""
        return self._classes.setdefault(declarations, f"s{len(self._classes)}")

    @property
    def css(self) -> str:
        """One rule per class."""
        return "".join(f".{name}{{{style}}}\n" for style, name in self._classes.items())


def svg_of(figure: Figure, name: str, *, label: str, styles: StyleSheet) -> str:
    """Return the figure as an ``svg`` element for an HTML page.

    Parameters
    ----------
    figure : Figure
        Drawn in the colours of ``PALETTE``, which become ``var(--ink)`` and so on.
    name : str
        Makes ids unique on a page with several figures: letters and underscores.
    label : str
        What a screen reader says, as HTML-escaped text.
    styles : StyleSheet
        Takes up the styles; its ``css`` belongs in the page's head.
    """
    with mpl.rc_context({**STYLE, "svg.hashsalt": name}), no_glyph_warnings():
        stream = io.StringIO()
        metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(stream, format="svg", metadata=metadata, facecolor="none")
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<style[^>]*>.*?</style>", "", text, flags=re.DOTALL)
    text = _with_own_ids(text, name)
    text = _STYLE.sub(lambda found: f' class="{styles.class_of(_themed(found[1]))}"', text)
    head, rest = text.split(">", 1)
    head = re.sub(r' (?:xmlns(?::\w+)?|version)="[^"]*"', "", _SIZE.sub("", head))
    return f'{head} role="img" aria-label="{label}">{rest.rstrip()}'


def write_png(figure: Figure, path: Path) -> None:
    """Write the figure on white, completely or not at all.

    Raises
    ------
    RouterError
        The folder cannot be written.
    """
    write_whole(path, png_of(figure))


def png_of(figure: Figure, *, dpi: int = _DPI) -> bytes:
    """Return the figure on white as the bytes of a PNG file."""
    stream = io.BytesIO()
    with mpl.rc_context({**STYLE}), no_glyph_warnings():
        figure.savefig(stream, format="png", dpi=dpi, metadata={"Software": None})
    return stream.getvalue()


def _themed(style: str) -> str:
    """Replace fixed colours and the font by the page's own."""
    for role, color in PALETTE.items():
        style = style.replace(color, f"var(--{role})")
    return _FONT.sub("var(--font)", style)


def _with_own_ids(text: str, name: str) -> str:
    """Keep only the ids that something refers to, made unique by ``name``."""
    used = set(re.findall(r"url\(#([^)]+)\)", text)) | set(re.findall(r'href="#([^"]+)"', text))
    text = _ID.sub(lambda found: f' id="{name}-{found[1]}"' if found[1] in used else "", text)
    text = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", text)
    return re.sub(r'(?:xlink:)?href="#([^"]+)"', rf'href="#{name}-\1"', text)


@contextmanager
def no_glyph_warnings() -> Iterator[None]:
    """Say nothing of letters that matplotlib's font lacks.

    Names in other scripts are measured with stand-ins; browsers have the letters.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield
