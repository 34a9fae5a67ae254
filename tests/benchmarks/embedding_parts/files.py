"""Rows of evaluation data with picture files: photographs as JPEG, screenshots as PNG."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageDraw

WIDTH, HEIGHT = 1280, 800
_OCTAVES = ((4, 60), (16, 40), (64, 25), (256, 15), (1280, 8))  # columns, strength


def photograph(seed: int) -> PIL.Image.Image:
    """Noise of all scales with about the spectrum of a sharp photograph."""
    rng = np.random.default_rng(seed)
    pixels = np.full((HEIGHT, WIDTH, 3), 128, np.float32)
    for columns, strength in _OCTAVES:
        coarse = rng.normal(size=(max(2, columns * HEIGHT // WIDTH), columns, 3))
        for channel in range(3):
            plane = PIL.Image.fromarray(coarse[..., channel].astype(np.float32))
            pixels[..., channel] += strength * np.asarray(plane.resize((WIDTH, HEIGHT), 3))
    return PIL.Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def screenshot(seed: int) -> PIL.Image.Image:
    """Text in lines, a bar above and coloured boxes."""
    rng = np.random.default_rng(seed)
    words = "calendar meeting claim provider window invoice total date 1,200.50 settings".split()
    picture = PIL.Image.new("RGB", (WIDTH, HEIGHT), (245, 246, 248))
    draw = PIL.ImageDraw.Draw(picture)
    draw.rectangle((0, 0, WIDTH, 56), fill=(32, 44, 72))
    for y in range(70, HEIGHT, 18):
        line = " ".join(words[i] for i in rng.integers(0, len(words), 22))
        draw.text((20, y), line, fill=tuple(int(v) for v in rng.integers(0, 120, 3)))
    for _ in range(6):
        x, y = int(rng.integers(0, WIDTH - 200)), int(rng.integers(80, HEIGHT - 80))
        colour = tuple(int(v) for v in rng.integers(90, 255, 3))
        draw.rounded_rectangle((x, y, x + 160, y + 60), 8, fill=colour)
    return picture


def write_files(folder: Path, n: int) -> Path:
    """Write ``n`` different pictures and the rows that name them; return the file of rows."""
    folder.mkdir()
    rows = folder / "rows.jsonl"
    with rows.open("w", encoding="utf-8") as file:
        for i in range(n):
            name = f"{i}.jpg" if i % 2 else f"{i}.png"
            picture = photograph(i) if i % 2 else screenshot(i)
            picture.save(folder / name, **({"quality": 85} if i % 2 else {}))
            scores = {"small": float(i % 2), "large": 1.0}
            row = {"prompt": f"What is in picture {i}?", "images": [name], "model_scores": scores}
            file.write(json.dumps(row) + "\n")
    return rows
