"""Drawn provider lists: cards, rows or a table of invented practices, with a search above them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np

from router_training.routing.screen_canvas import (
    Asked,
    Box,
    Canvas,
    Drawn,
    Entry,
    click,
    pick,
    sample,
    typed,
)

_PLACES: Final = ("North", "South", "Harbour", "Hill", "Lake", "Park", "Station", "Mill", "River")
_KINDS: Final = ("Clinic", "Practice", "Dental", "Eye Centre", "Imaging", "Therapy", "Lab")
_SPECIALTIES: Final = (
    "General practice",
    "Dentistry",
    "Dermatology",
    "Cardiology",
    "Physiotherapy",
    "Ophthalmology",
)


@dataclass(frozen=True)
class _Provider:
    name: str
    specialty: str
    miles: float
    stars: int
    in_network: bool


def draw_providers(canvas: Canvas) -> Drawn:
    """Draw a list of practices to choose from."""
    rng, size, theme = canvas.rng, canvas.size, canvas.theme
    content = canvas.window("Find care")
    canvas.text((content.left, content.top + size), "Choose a provider", scale=1.4, bold=True)
    top = content.top + 2.8 * size
    search = Box(content.left, top, content.left + 0.55 * content.width, top + 2.2 * size)
    hint = pick(rng, ("Search by name or ZIP", "Name, specialty or place", *_SPECIALTIES))
    canvas.input(search, hint, faint=True)
    button = canvas.button(search.right + 0.8 * size, top + 1.1 * size, "Search", main=True)
    top += 3.2 * size
    if rng.random() < 0.6:
        top = _filters(canvas, content, top)
    kind = pick(rng, (_cards, _rows, _rows, _table))
    area = content._replace(top=top)
    found = kind(canvas, area)
    if rng.random() < 0.4:
        canvas.text(
            (content.right, content.top + size),
            f"{int(rng.integers(12, 400))} results",
            colour=theme.faint,
            anchor="rm",
        )
    entries = tuple(Entry(provider.name, box) for provider, box in found)
    return Drawn(_asked(canvas, found, search, button), entries)


def _provider(rng: np.random.Generator) -> _Provider:
    name = f"{pick(rng, _PLACES)} {pick(rng, _KINDS)} {int(rng.integers(1, 99))}"
    return _Provider(
        name,
        pick(rng, _SPECIALTIES),
        round(float(rng.uniform(0.2, 24.0)), 1),
        int(rng.integers(1, 6)),
        bool(rng.random() < 0.6),
    )


def _providers(rng: np.random.Generator, n: int) -> list[_Provider]:
    found: dict[str, _Provider] = {}
    while len(found) < n:
        provider = _provider(rng)
        found[provider.name] = provider
    return list(found.values())


def _filters(canvas: Canvas, content: Box, top: float) -> float:
    x, size = content.left, canvas.size
    for word in sample(canvas.rng, ("In network", "Open today", "4 stars", *_SPECIALTIES), 4):
        width = canvas.font(0.85).getlength(word) + 1.6 * size
        if x + width > content.right:
            break
        box = Box(x, top, x + width, top + 1.7 * size)
        canvas.panel(box, outline=canvas.theme.line, radius=0.85 * size)
        canvas.text(box.centre, word, scale=0.85, anchor="mm")
        x += width + 0.6 * size
    return top + 2.6 * size


def _stars(canvas: Canvas, left: float, middle: float, n: int) -> None:
    by = 0.5 * canvas.size
    for at in range(5):
        x = left + (2 * at + 1) * 1.1 * by
        tips = [(by * (0.45 if k % 2 else 1.0), k * math.pi / 5) for k in range(10)]
        star = [(x + r * math.sin(turn), middle - r * math.cos(turn)) for r, turn in tips]
        canvas.pen.polygon(star, fill=(236, 168, 32) if at < n else canvas.theme.line)


def _portrait(canvas: Canvas, box: Box, name: str) -> None:
    canvas.pen.ellipse(box, fill=canvas.theme.tint(0.35))
    letters = "".join(word[0] for word in name.split()[:2])
    canvas.text(box.centre, letters, bold=True, anchor="mm")


def _rows(canvas: Canvas, area: Box) -> list[tuple[_Provider, Box]]:
    """Draw a row each: portrait, name, specialty, stars, distance, button."""
    rng, size, theme = canvas.rng, canvas.size, canvas.theme
    height = float(rng.uniform(4.2, 5.4)) * size
    n = max(3, min(9, int(area.height / height)))
    height = min(height, area.height / n)
    boxed = rng.random() < 0.5
    found: list[tuple[_Provider, Box]] = []
    for at, provider in enumerate(_providers(rng, n)):
        box = Box(area.left, area.top + at * height, area.right, area.top + (at + 1) * height - 4)
        if boxed:
            canvas.panel(box, outline=theme.line)
        else:
            canvas.pen.line((box.left, box.bottom, box.right, box.bottom), fill=theme.line)
        side = min(2.8 * size, box.height - 8)
        x, middle = box.left + 0.7 * size, (box.top + box.bottom) / 2
        _portrait(canvas, Box(x, middle - side / 2, x + side, middle + side / 2), provider.name)
        x += side + 0.9 * size
        up, down = middle - 0.75 * size, middle + 0.8 * size
        canvas.text((x, up), provider.name, bold=True)
        canvas.text((x, down), provider.specialty, scale=0.9, colour=theme.faint)
        x = box.left + 0.5 * box.width
        _stars(canvas, x, up, provider.stars)
        words = f"{provider.miles} mi" + (" - in network" if provider.in_network else "")
        canvas.text((x, down), words, scale=0.9, within=0.3 * box.width)
        found.append((provider, canvas.button(box.right - 6.2 * size, middle, "Select")))
    return found


def _cards(canvas: Canvas, area: Box) -> list[tuple[_Provider, Box]]:
    """Draw cards, two to four in a row."""
    rng, size, theme = canvas.rng, canvas.size, canvas.theme
    columns = max(2, min(4, int(area.width / (15 * size))))
    rows = max(2, min(3, int(area.height / (10 * size))))
    step, row = area.width / columns, area.height / rows
    found: list[tuple[_Provider, Box]] = []
    for at, provider in enumerate(_providers(rng, rows * columns)):
        x, y = area.left + at % columns * step, area.top + at // columns * row
        box = Box(x, y, x + step - 0.8 * size, y + row - 0.8 * size)
        canvas.panel(box, outline=theme.line, radius=8)
        left, room = box.left + 0.8 * size, box.width - 1.6 * size
        canvas.text((left, box.top + 1.3 * size), provider.name, bold=True, within=room)
        spot = (left, box.top + 2.9 * size)
        canvas.text(spot, provider.specialty, scale=0.9, colour=theme.faint, within=room)
        _stars(canvas, left, box.top + 4.4 * size, provider.stars)
        if box.height > 8 * size:
            canvas.text((left, box.top + 5.9 * size), f"{provider.miles} mi", scale=0.9)
        middle = box.bottom - 1.5 * size
        found.append((provider, canvas.button(left, middle, "Select", main=True)))
    return found


def _table(canvas: Canvas, area: Box) -> list[tuple[_Provider, Box]]:
    """Draw a dense table with a round mark to choose by."""
    rng, size, theme = canvas.rng, canvas.size, canvas.theme
    row = float(rng.uniform(2.1, 2.7)) * size
    n = max(3, min(14, int(area.height / row) - 1))
    places = tuple(area.left + share * area.width for share in (0.0, 0.06, 0.4, 0.68, 0.82))
    head = Box(area.left, area.top, area.right, area.top + row)
    canvas.pen.rectangle(head, fill=theme.tint(0.12))
    for x, words in zip(places[1:], ("Provider", "Specialty", "Miles", "Rating"), strict=True):
        canvas.text((x, head.centre[1]), words, bold=True)
    found: list[tuple[_Provider, Box]] = []
    for at, provider in enumerate(_providers(rng, n)):
        y = area.top + (at + 1.5) * row
        by = 0.5 * size
        mark = Box(places[0] + 0.4 * size, y - by, places[0] + 0.4 * size + 2 * by, y + by)
        canvas.pen.ellipse(mark, outline=theme.faint, width=2)
        canvas.text((places[1], y), provider.name, within=places[2] - places[1] - 6)
        canvas.text((places[2], y), provider.specialty, within=places[3] - places[2] - 6)
        canvas.text((places[3], y), str(provider.miles))
        _stars(canvas, places[4], y, provider.stars)
        under = y + row / 2
        canvas.pen.line((area.left, under, area.right, under), fill=theme.line)
        found.append((provider, mark))
    return found


def _asked(
    canvas: Canvas, found: list[tuple[_Provider, Box]], search: Box, button: Box
) -> tuple[Asked, ...]:
    rng = canvas.rng
    provider, box = pick(rng, found)
    _, nearest = min(found, key=lambda one: one[0].miles)
    _, best = max(found, key=lambda one: one[0].stars)
    specialty = pick(rng, _SPECIALTIES)
    return (
        Asked(f"Select {provider.name}", click(box)),
        Asked(f"Choose {provider.name} as the provider", click(box)),
        Asked("Select the nearest provider", click(nearest)),
        Asked("Pick the provider with the best rating", click(best)),
        Asked(f"Search providers for {specialty.lower()}", typed(search, specialty.lower())),
        Asked("Search for providers", click(button)),
    )
