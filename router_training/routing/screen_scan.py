"""Drawn scanned pages: letters, columns and receipts, turned a little, some of them on a desk."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeAlias

import numpy as np
from PIL import Image, ImageFilter

from router_training.routing.screen_canvas import Asked, Box, Canvas, Drawn, Entry, pick, sample

_Writer: TypeAlias = Callable[[Canvas, Box], list[Entry]]

_WORDS: Final = tuple(
    "the report of last spring shows that water in the valley rose above its usual mark and "
    "several roads were closed for a week while crews cleared stones and timber from the bridge "
    "near the old mill a second survey is planned for autumn when levels are low members agreed "
    "to share the cost of new gauges and to publish every reading on the notice board".split()
)
_HEADINGS: Final = ("Minutes", "Notice", "Letter", "Annual report", "Receipt", "Summary")
_ITEMS: Final = ("Paper", "Timber", "Paint", "Cable", "Glass", "Sand", "Rope", "Bolts")


def draw_scan(canvas: Canvas) -> Drawn:
    """Write a page, age it, and turn it; ``canvas.image`` becomes the scan."""
    rng = canvas.rng
    width, height = canvas.image.size
    margin = float(rng.uniform(0.07, 0.13)) * width
    area = Box(0, 0, width, height).inner(margin)
    heading = pick(rng, _HEADINGS)
    centred = rng.random() < 0.5
    x = width / 2 if centred else area.left
    anchor = "mm" if centred else "lm"
    canvas.text((x, area.top), heading, scale=1.7, bold=True, anchor=anchor)
    area = area._replace(top=area.top + 2.8 * canvas.size)
    write: _Writer = pick(rng, (_paragraphs, _paragraphs, _receipt, _columns))
    entries = write(canvas, area)
    angle = float(rng.uniform(-4, 4))
    canvas.image = _scanned(rng, canvas.image, canvas.theme.ground, angle)
    at = int(rng.integers(min(3, len(entries))))
    nth = ("first", "second", "third")[at]
    full = "\n".join(entry.label for entry in entries)
    asked = (
        Asked("Transcribe the scanned page", f"{heading}\n{full}"),
        Asked("Read the text of this document", f"{heading}\n{full}"),
        Asked(f"Extract the {nth} paragraph of the scan as text", entries[at].label),
        Asked("What is the heading of the scanned document?", heading),
        Asked("Convert this page to Markdown", f"# {heading}\n\n{full}"),
    )
    return Drawn(asked, tuple(entries))


def _sentence(rng: np.random.Generator, n: int) -> list[str]:
    start = int(rng.integers(len(_WORDS)))
    words = [_WORDS[(start + at) % len(_WORDS)] for at in range(n)]
    return [words[0].capitalize(), *words[1:-1], words[-1] + "."]


def _paragraphs(canvas: Canvas, area: Box) -> list[Entry]:
    entries: list[Entry] = []
    y = area.top
    for _ in range(int(canvas.rng.integers(4, 8))):
        words: list[str] = []
        for _ in range(int(canvas.rng.integers(2, 5))):
            words += _sentence(canvas.rng, int(canvas.rng.integers(8, 18)))
        box = _wrapped(canvas, words, area._replace(top=y))
        if box is None:
            break
        entries.append(Entry(" ".join(words), box))
        y = box.bottom + canvas.size
    return entries


def _wrapped(canvas: Canvas, words: list[str], area: Box) -> Box | None:
    """Write a paragraph and return where it is; None where the page has no room for it."""
    font, step = canvas.font(), 1.45 * canvas.size
    lines, line = [], ""
    for word in words:
        longer = f"{line} {word}".strip()
        if font.getlength(longer) > area.width:
            lines.append(line)
            longer = word
        line = longer
    lines.append(line)
    if area.top + len(lines) * step > area.bottom:
        return None
    for at, line in enumerate(lines):
        canvas.text((area.left, area.top + (at + 0.5) * step), line)
    return area._replace(bottom=area.top + len(lines) * step)


def _columns(canvas: Canvas, area: Box) -> list[Entry]:
    half = area.left + area.width / 2
    gap = 0.9 * canvas.size
    left = _paragraphs(canvas, area._replace(right=half - gap))
    return left + _paragraphs(canvas, area._replace(left=half + gap))


def _receipt(canvas: Canvas, area: Box) -> list[Entry]:
    """Write an introduction, items with amounts, and a total."""
    rng, size = canvas.rng, canvas.size
    words = _sentence(rng, 22)
    intro = _wrapped(canvas, words, area)
    entries = [] if intro is None else [Entry(" ".join(words), intro)]
    y, total = area.top + 7 * size, 0.0
    for item in sample(rng, _ITEMS, int(rng.integers(4, 8))):
        cents = int(rng.integers(200, 9000))
        amount, total = f"{cents / 100:.2f}", total + cents / 100
        box = Box(area.left, y, area.right, y + 1.8 * size)
        canvas.text((area.left, y + 0.9 * size), item)
        canvas.text((area.right, y + 0.9 * size), amount, anchor="rm")
        canvas.pen.line((box.left, box.bottom, box.right, box.bottom), fill=canvas.theme.line)
        entries.append(Entry(f"{item} {amount}", box))
        y = box.bottom + 0.5 * size
    canvas.text((area.right, y + size), f"Total due {total:.2f}", bold=True, anchor="rm")
    return entries


def _scanned(
    rng: np.random.Generator, page: Image.Image, ground: tuple[int, int, int], angle: float
) -> Image.Image:
    """Turn the page, shade one side, blur, add specks; half of them lie on a desk."""
    width, height = page.size
    around = ground
    if rng.random() < 0.5:
        shade = int(rng.integers(24, 235))
        around = (shade, shade, shade)
        wide = round(max(width, height) * float(rng.uniform(1.0, 1.35)))
        desk = Image.new("RGB", (wide, round(height * 1.06)), around)
        turned = page.convert("RGBA").rotate(angle, Image.Resampling.BICUBIC, expand=True)
        desk.paste(turned, ((wide - turned.width) // 2, (desk.height - turned.height) // 2), turned)
        page = desk.resize((min(wide, 1280), round(desk.height * min(wide, 1280) / wide)))
    else:
        page = page.rotate(angle, Image.Resampling.BICUBIC, fillcolor=around)
    if rng.random() < 0.5:
        page = page.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.3, 0.9))))
    pixels = np.asarray(page, dtype=np.float32)
    ramp = np.linspace(1.0, float(rng.uniform(0.8, 1.0)), pixels.shape[1], dtype=np.float32)
    if rng.random() < 0.5:
        ramp = ramp[::-1]
    pixels = pixels * ramp[None, :, None]
    specks = rng.random(pixels.shape[:2]) < float(rng.uniform(0, 0.002))
    pixels[specks] = 40
    aged = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    return aged.convert("L").convert("RGB") if rng.random() < 0.5 else aged
