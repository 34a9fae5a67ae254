"""What all drawn screens share: themes, fonts, the window around the content, and wear.

Frames, themes, fonts and sizes are drawn from the same distributions for every kind of screen, so
that only what a screen shows tells what it is.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias, TypeVar

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from router_runtime.errors import MissingDependencyError

Colour: TypeAlias = tuple[int, int, int]
Font: TypeAlias = ImageFont.FreeTypeFont | ImageFont.ImageFont
T = TypeVar("T")

_FAMILIES: Final[Mapping[str, tuple[str, str] | None]] = {
    "sans": ("DejaVuSans.ttf", "DejaVuSans-Bold.ttf"),
    "serif": ("DejaVuSerif.ttf", "DejaVuSerif-Bold.ttf"),
    "mono": ("DejaVuSansMono.ttf", "DejaVuSansMono-Bold.ttf"),
    "times": ("STIXGeneral.ttf", "STIXGeneralBol.ttf"),
    "plain": None,  # the font inside Pillow
}
_SCREEN_FAMILIES: Final = ("sans", "plain", "sans", "serif", "mono")
_PAGE_FAMILIES: Final = ("times", "serif", "mono", "sans")

_ACCENTS: Final[tuple[Colour, ...]] = (
    (36, 104, 196),
    (22, 128, 110),
    (124, 78, 182),
    (198, 74, 52),
    (176, 122, 20),
    (60, 72, 92),
)
_TITLES: Final = ("Desk", "Office Suite", "Front Office", "Workbench", "Portal", "Console")
_MENU: Final = ("Home", "Inbox", "Tasks", "Reports", "Files", "Help", "Settings", "Search")


class Box(NamedTuple):
    """A rectangle in pixels."""

    left: float
    top: float
    right: float
    bottom: float

    @property
    def width(self) -> float:
        """Pixels from left to right."""
        return self.right - self.left

    @property
    def height(self) -> float:
        """Pixels from top to bottom."""
        return self.bottom - self.top

    @property
    def centre(self) -> tuple[int, int]:
        """Where one would click."""
        return round((self.left + self.right) / 2), round((self.top + self.bottom) / 2)

    def inner(self, by: float) -> Box:
        """Return the rectangle that is smaller by ``by`` on every side."""
        return Box(self.left + by, self.top + by, self.right - by, self.bottom - by)


class Asked(NamedTuple):
    """A request about a screen and its true answer."""

    prompt: str
    answer: str


class Entry(NamedTuple):
    """One of the things on a screen that "the second entry" may mean."""

    label: str
    box: Box


@dataclass(frozen=True)
class Drawn:
    """What a screen shows.

    Parameters
    ----------
    asked : tuple of Asked
        Requests whose text says what kind of screen it is.
    entries : tuple of Entry
        At least three, in reading order, for requests whose text does not.
    """

    asked: tuple[Asked, ...]
    entries: tuple[Entry, ...]


def click(box: Box) -> str:
    """Return the tool call that clicks on the middle of ``box``."""
    x, y = box.centre
    return json.dumps({"name": "click", "arguments": {"x": x, "y": y}})


def typed(box: Box, text: str) -> str:
    """Return the tool call that types ``text`` into the field at ``box``."""
    x, y = box.centre
    return json.dumps({"name": "type", "arguments": {"x": x, "y": y, "text": text}})


@dataclass(frozen=True)
class Theme:
    """The colours of a screen."""

    ground: Colour
    panel: Colour
    ink: Colour
    faint: Colour
    line: Colour
    accent: Colour
    on_accent: Colour

    @classmethod
    def drawn(cls, rng: np.random.Generator) -> Theme:
        """Return a light theme or, two times in five, a dark one."""
        accent = pick(rng, _ACCENTS)
        shift = int(rng.integers(-6, 7))
        if rng.random() < 0.4:
            base = 30 + shift
            return cls(
                ground=(base, base + 2, base + 6),
                panel=(base + 14, base + 16, base + 22),
                ink=(228, 230, 234),
                faint=(150, 156, 166),
                line=(base + 42, base + 45, base + 52),
                accent=_mixed(accent, (255, 255, 255), 0.25),
                on_accent=(255, 255, 255),
            )
        base = 240 + shift
        return cls(
            ground=(base, base + 1, base + 3),
            panel=(255, 255, 255),
            ink=(34, 38, 46),
            faint=(112, 120, 132),
            line=(206, 211, 219),
            accent=accent,
            on_accent=(255, 255, 255),
        )

    def tint(self, share: float) -> Colour:
        """Return the panel's colour with a share of the accent's."""
        return _mixed(self.panel, self.accent, share)


@dataclass
class Canvas:
    """A picture being drawn, with its random generator, theme, font and size of text.

    Parameters
    ----------
    rng : Generator
        Decides everything that varies.
    image : PIL.Image.Image
        RGB; drawn on.
    theme : Theme
    family : str
        Of ``_FAMILIES``.
    size : int
        Of ordinary text, in pixels.
    """

    rng: np.random.Generator
    image: Image.Image
    theme: Theme
    family: str
    size: int
    pen: ImageDraw.ImageDraw = field(init=False)

    def __post_init__(self) -> None:
        self.pen = ImageDraw.Draw(self.image)

    @classmethod
    def screen(cls, rng: np.random.Generator) -> Canvas:
        """Return an empty screen, 640 to 1,280 pixels wide."""
        width = int(rng.integers(640, 1281))
        height = int(width * rng.uniform(0.56, 0.8))
        theme = Theme.drawn(rng)
        size = round(float(rng.uniform(0.0145, 0.018)) * width)
        image = Image.new("RGB", (width, height), theme.ground)
        return cls(rng, image, theme, pick(rng, _SCREEN_FAMILIES), max(size, 11))

    @classmethod
    def page(cls, rng: np.random.Generator) -> Canvas:
        """Return an empty sheet of paper, upright and a little yellow or grey."""
        width = int(rng.integers(640, 961))
        height = int(width * rng.uniform(1.1, 1.42))
        paper = int(rng.integers(232, 254))
        yellow = int(rng.integers(0, 16))
        ground = (paper, paper - yellow // 3, paper - yellow)
        ink = int(rng.integers(16, 70))
        theme = Theme(ground, ground, (ink, ink, ink + 4), (95, 95, 95), (150, 150, 150), *_STAMP)
        size = round(float(rng.uniform(0.017, 0.025)) * width)
        image = Image.new("RGB", (width, height), ground)
        return cls(rng, image, theme, pick(rng, _PAGE_FAMILIES), max(size, 12))

    def font(self, scale: float = 1.0, *, bold: bool = False) -> Font:
        """Return the font at ``scale`` times the ordinary size."""
        return _font(self.family, max(9, round(self.size * scale)), bold)

    def text(
        self,
        at: tuple[float, float],
        words: str,
        *,
        scale: float = 1.0,
        bold: bool = False,
        colour: Colour | None = None,
        anchor: str = "lm",
        within: float | None = None,
    ) -> float:
        """Write ``words`` and return how wide they are, cut to ``within`` pixels."""
        font = self.font(scale, bold=bold)
        while within is not None and len(words) > 1 and font.getlength(words) > within:
            words = words[:-1]
        self.pen.text(at, words, fill=colour or self.theme.ink, font=font, anchor=anchor)
        return float(font.getlength(words))

    def panel(
        self,
        box: Box,
        *,
        fill: Colour | None = None,
        outline: Colour | None = None,
        radius: float = 4,
    ) -> None:
        """Draw a rectangle with round corners."""
        self.pen.rounded_rectangle(box, radius, fill or self.theme.panel, outline)

    def button(self, left: float, middle: float, words: str, *, main: bool = False) -> Box:
        """Draw a button whose left edge and middle line are given, and return where it is."""
        width = self.font().getlength(words) + 1.8 * self.size
        box = Box(left, middle - 0.95 * self.size, left + width, middle + 0.95 * self.size)
        theme = self.theme
        if main:
            self.panel(box, fill=theme.accent)
        else:
            self.panel(box, outline=theme.line)
        colour = theme.on_accent if main else theme.ink
        self.text(box.centre, words, colour=colour, anchor="mm")
        return box

    def input(self, box: Box, words: str, *, faint: bool = False) -> None:
        """Draw a field to type into, with what stands in it."""
        self.panel(box, outline=self.theme.line, radius=3)
        colour = self.theme.faint if faint else self.theme.ink
        middle = (box.top + box.bottom) / 2
        room = box.width - self.size
        self.text((box.left + 0.5 * self.size, middle), words, colour=colour, within=room)

    def arrow(self, box: Box, *, left: bool) -> None:
        """Draw a button with an arrow to the left or right."""
        self.panel(box, outline=self.theme.line)
        (x, y), by = box.centre, 0.25 * box.height
        tip = -by if left else by
        self.pen.polygon([(x + tip, y), (x - tip, y - by), (x - tip, y + by)], fill=self.theme.ink)

    def window(self, heading: str) -> Box:
        """Draw title bar, perhaps a menu at the side, and return where the content goes."""
        theme, size = self.theme, self.size
        width, height = self.image.size
        bar = 2.6 * size
        painted = self.rng.random() < 0.5
        self.pen.rectangle((0, 0, width, bar), fill=theme.accent if painted else theme.panel)
        ink = theme.on_accent if painted else theme.ink
        wrote = self.text((size, bar / 2), pick(self.rng, _TITLES), bold=True, colour=ink)
        if self.rng.random() < 0.6:
            self.text((2.2 * size + wrote, bar / 2), heading, colour=ink)
        for at in range(3):
            x = width - (1.3 + 1.5 * at) * size
            self.pen.ellipse((x, bar / 2 - 4, x + 8, bar / 2 + 4), outline=ink)
        left = 0.0
        if self.rng.random() < 0.5:
            left = 8.5 * size
            self.pen.rectangle((0, bar, left, height), fill=theme.panel)
            for at, word in enumerate(sample(self.rng, _MENU, 5)):
                self.text((size, bar + (1.8 + 2.3 * at) * size), word, colour=theme.faint)
        return Box(left, bar, width, height).inner(float(self.rng.uniform(0.8, 1.6)) * size)


_STAMP: Final[tuple[Colour, Colour]] = ((150, 40, 60), (255, 255, 255))


def pick(rng: np.random.Generator, among: Sequence[T]) -> T:
    """Return one of ``among``."""
    return among[int(rng.integers(len(among)))]


def sample(rng: np.random.Generator, among: Sequence[T], n: int) -> list[T]:
    """Return ``n`` different ones of ``among``."""
    return [among[int(at)] for at in rng.permutation(len(among))[:n]]


def noisy(rng: np.random.Generator, image: Image.Image, *, sigma: float) -> Image.Image:
    """Add grey noise, as a sensor does."""
    pixels = np.asarray(image, dtype=np.float32)
    noise = rng.normal(0.0, sigma, size=(*pixels.shape[:2], 1)).astype(np.float32)
    return Image.fromarray(np.clip(pixels + noise, 0, 255).astype(np.uint8))


def _mixed(a: Colour, b: Colour, share: float) -> Colour:
    red, green, blue = (round(x + (y - x) * share) for x, y in zip(a, b, strict=True))
    return red, green, blue


@cache
def _font(family: str, size: int, bold: bool) -> Font:
    files = _FAMILIES[family]
    if files is None:
        return ImageFont.load_default(size=size)
    # Pillow's own layout: the other is not installed everywhere, and would move letters.
    return ImageFont.truetype(
        _font_folder() / files[bold], size, layout_engine=ImageFont.Layout.BASIC
    )


@cache
def _font_folder() -> Path:
    """Return where matplotlib keeps its fonts, without importing it."""
    spec = importlib.util.find_spec("matplotlib")
    if spec is None or spec.origin is None:
        raise MissingDependencyError("matplotlib", "report")
    return Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf"
