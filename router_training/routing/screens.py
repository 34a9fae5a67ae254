"""DRAWN screenshots of three kinds of screen and of scanned pages, as the adapters' data sets.

Nothing is photographed: months, claims, practices and pages are invented and rendered. Figures
reached on them say that the machinery works, and little about real screens.

``FOLDER/<adapter>/train.jsonl`` holds conversations as adapters are trained on (``<image>`` and a
request, then the answer), ``images/`` the pictures. A row's ``metadata.told_by`` says what tells
its adapter: ``both`` text and picture, only the ``picture`` (the request fits any screen: "Select
the second entry"), or only the ``text`` (the picture is blank, still loading, or cut to its title
bar). Some pictures serve two rows.

Every picture has a random generator of its own, named by seed, adapter and number: another number
of rows or another choice of adapters changes no picture. PNG files are equal to the byte wherever
Pillow and its zlib are; JPEG files where its libjpeg is the same too.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Final, Literal, TypeAlias

import numpy as np
from PIL import Image

from router_runtime.errors import ConfigError
from router_runtime.types import Json
from router_training.formats import write_json
from router_training.routing.screen_calendar import draw_calendar
from router_training.routing.screen_canvas import Asked, Canvas, Drawn, Entry, click, noisy, pick
from router_training.routing.screen_claim import draw_claim
from router_training.routing.screen_providers import draw_providers
from router_training.routing.screen_scan import draw_scan

ToldBy: TypeAlias = Literal["both", "picture", "text"]


@dataclass(frozen=True)
class _Kind:
    draw: Callable[[Canvas], Drawn]
    is_page: bool = False


SCREENS: Final[Mapping[str, _Kind]] = {
    "calendar": _Kind(draw_calendar),
    "claim-window": _Kind(draw_claim),
    "provider-select": _Kind(draw_providers),
    "chandra-ocr": _Kind(draw_scan, is_page=True),
}
"""What can be drawn, by the adapter that would handle it."""

DEFAULT_ADAPTERS: Final = ("calendar", "claim-window", "provider-select")

_DRAWN: Final = "drawn.json"
_FORMAT: Final = 1  # raise when equal options give other pictures or requests
_SHARED: Final = 0.25  # of the pictures serve a second row
_AGAIN: Final = json.dumps({"name": "screenshot", "arguments": {}})
_VAGUE: Final[tuple[tuple[str, int, bool], ...]] = (  # request, which entry, asks for its text
    ("Select the second entry", 1, False),
    ("Open the third one", 2, False),
    ("Choose the last entry", -1, False),
    ("Click on the first one", 0, False),
    ("What does the first line say?", 0, True),
    ("Which one comes last?", -1, True),
    ("Read out the second one", 1, True),
)


@dataclass(frozen=True)
class DrawOptions:
    """What is drawn.

    Parameters
    ----------
    rows : int
        Of all adapters together, at least one each.
    seed : int
        Of everything random.
    adapters : tuple of str
        Of ``SCREENS``.
    ambiguous_share : float
        Rows whose request could be about any screen.
    blank_share : float
        Rows whose picture could be of any screen.

    Raises
    ------
    ConfigError
        Naming the value.
    """

    rows: int = 600
    seed: int = 0
    adapters: tuple[str, ...] = DEFAULT_ADAPTERS
    ambiguous_share: float = 0.2
    blank_share: float = 0.1

    def __post_init__(self) -> None:
        for name in self.adapters:
            if name not in SCREENS:
                raise ConfigError(f"No screen is drawn for '{name}'; known: {', '.join(SCREENS)}.")
        if not self.adapters or len(set(self.adapters)) != len(self.adapters):
            raise ConfigError(
                f"The adapters '{', '.join(self.adapters)}' must be at least one, each once."
            )
        if self.rows < len(self.adapters):
            raise ConfigError(f"rows is {self.rows}; draw at least {len(self.adapters)}.")
        if self.seed < 0:
            raise ConfigError(f"seed is {self.seed}; it must be at least 0.")
        for name, share in (
            ("ambiguous_share", self.ambiguous_share),
            ("blank_share", self.blank_share),
            ("their sum", self.ambiguous_share + self.blank_share),
        ):
            if not 0 <= share <= 1:
                raise ConfigError(f"{name} is {share:g}; it must lie in [0, 1].")


def draw_screens(folder: str | Path, options: DrawOptions = DrawOptions()) -> tuple[Path, ...]:
    """Draw the data sets and return the path of each adapter's ``train.jsonl``.

    The folder appears whole or not at all. One that was drawn with equal options is kept as it is.

    Raises
    ------
    ConfigError
        The folder holds something else.
    """
    folder = Path(folder)
    files = tuple(folder / name / "train.jsonl" for name in options.adapters)
    wanted = {"format": _FORMAT, **_as_json(options)}
    if folder.exists():
        if _drawn_with(folder) != wanted:
            raise ConfigError(
                f"'{folder}' exists and was not drawn with these options; choose another folder, "
                "or delete it."
            )
        return files
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        for at, name in enumerate(options.adapters):
            n = options.rows // len(options.adapters)
            n += at < options.rows % len(options.adapters)
            _draw_adapter(staging / name, name, n, options)
        (staging / _DRAWN).write_text(json.dumps(wanted, indent=2) + "\n", encoding="utf-8")
        staging.chmod(0o755)
        os.replace(staging, folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return files


def _as_json(options: DrawOptions) -> dict[str, Json]:
    return {
        "simulated": True,
        "rows": options.rows,
        "seed": options.seed,
        "adapters": list(options.adapters),
        "ambiguous_share": options.ambiguous_share,
        "blank_share": options.blank_share,
    }


def _drawn_with(folder: Path) -> Json:
    try:
        content: Json = json.loads((folder / _DRAWN).read_bytes())
        return content
    except (OSError, ValueError):
        return None


def _draw_adapter(folder: Path, adapter: str, n: int, options: DrawOptions) -> None:
    (folder / "images").mkdir(parents=True)
    write_json(
        folder / "train.jsonl", _rows(folder, adapter, _told_by(adapter, n, options), options)
    )


def _told_by(adapter: str, n: int, options: DrawOptions) -> list[ToldBy]:
    """Return what tells each row's adapter: exact shares, in a random order."""
    n_picture = round(options.ambiguous_share * n)
    n_text = min(round(options.blank_share * n), n - n_picture)
    counts: dict[ToldBy, int] = {"picture": n_picture, "text": n_text}
    kinds = [kind for kind, count in counts.items() for _ in range(count)]
    kinds += ["both"] * (n - len(kinds))
    order = _generator(options.seed, adapter, 0).permutation(n)
    return [kinds[int(at)] for at in order]


def _generator(seed: int, adapter: str, number: int) -> np.random.Generator:
    return np.random.default_rng([seed, tuple(SCREENS).index(adapter), number])


def _rows(
    folder: Path, adapter: str, told: Sequence[ToldBy], options: DrawOptions
) -> Iterator[dict[str, Json]]:
    at, number = 0, 0
    while at < len(told):
        number += 1
        rng = _generator(options.seed, adapter, number)
        shared = rng.random() < _SHARED and "text" not in told[at : at + 2]
        served = told[at : at + 1 + shared]
        data, suffix, asked = _picture(rng, SCREENS[adapter], served)
        name = f"images/{adapter}_{number:05d}{suffix}"
        (folder / name).write_bytes(data)
        for told_by, (prompt, answer) in zip(served, asked, strict=True):
            at += 1
            yield {
                "id": f"{adapter}_{at:05d}",
                "image": name,
                "conversations": [
                    {"from": "human", "value": f"<image>\n{prompt}"},
                    {"from": "gpt", "value": answer},
                ],
                "metadata": {"drawn": True, "told_by": told_by},
            }


def _picture(
    rng: np.random.Generator, kind: _Kind, served: Sequence[ToldBy]
) -> tuple[bytes, str, list[Asked]]:
    """Return a file, its suffix, and a request with its answer for each row that it serves."""
    canvas = Canvas.page(rng) if kind.is_page else Canvas.screen(rng)
    drawn = kind.draw(canvas)
    if served[0] == "text":
        asked = [Asked(pick(rng, drawn.asked).prompt, _AGAIN)]
        return *_encoded(rng, _nothing(rng), worn=False), asked
    order = rng.permutation(len(drawn.asked))
    asked = [
        _vague(rng, drawn.entries, has_clicks=not kind.is_page)
        if told_by == "picture"
        else drawn.asked[int(order[at])]
        for at, told_by in enumerate(served)
    ]
    return *_encoded(rng, canvas.image, worn=kind.is_page), asked


def _vague(rng: np.random.Generator, entries: Sequence[Entry], *, has_clicks: bool) -> Asked:
    fitting = [one for one in _VAGUE if one[1] < len(entries)]
    prompt, at, reads = pick(rng, fitting)
    entry = entries[at]
    return Asked(prompt, entry.label if reads or not has_clicks else click(entry.box))


def _nothing(rng: np.random.Generator) -> Image.Image:
    """Return a picture that could be of any screen: empty, still loading, or a title bar."""
    canvas = Canvas.screen(rng)
    kind = float(rng.random())
    if kind < 0.35:
        height = canvas.image.height
        shade = float(rng.uniform(-12, 12))
        ramp = np.linspace(0, shade, height, dtype=np.float32)[:, None, None]
        pixels = np.asarray(canvas.image, dtype=np.float32) + ramp
        return noisy(rng, Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)), sigma=1.5)
    content = canvas.window("Loading")
    if kind < 0.7:
        x, y = content.centre
        for at in range(8):
            turn = at * np.pi / 4
            dot_x, dot_y = (
                x + 1.6 * canvas.size * np.cos(turn),
                y + 1.6 * canvas.size * np.sin(turn),
            )
            colour = canvas.theme.accent if at < 3 else canvas.theme.line
            canvas.pen.ellipse((dot_x - 4, dot_y - 4, dot_x + 4, dot_y + 4), fill=colour)
        canvas.text((x, y + 3.5 * canvas.size), "Loading ...", anchor="mm")
        return canvas.image
    return canvas.image.crop((0, 0, canvas.image.width, round(2.6 * canvas.size)))


def _encoded(rng: np.random.Generator, image: Image.Image, *, worn: bool) -> tuple[bytes, str]:
    """Return the file: of pages and three screens in ten a JPEG, half of those with noise."""
    buffer = BytesIO()
    if not worn and rng.random() < 0.7:
        image.save(buffer, format="PNG", compress_level=6)
        return buffer.getvalue(), ".png"
    if rng.random() < 0.5:
        image = noisy(rng, image, sigma=float(rng.uniform(2, 7)))
    image.save(buffer, format="JPEG", quality=int(rng.integers(40, 90)))
    return buffer.getvalue(), ".jpg"
