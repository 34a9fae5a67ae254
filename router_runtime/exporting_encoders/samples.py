"""Texts and pictures on which encoders are compared: a user's file, or made-up ones.

A file has one JSON value per line: a text, ``{"messages": [...]}`` as in OpenAI's chat requests, or
``{"text": ..., "images": [...]}``, whose pictures are paths relative to the file or data URIs.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageDraw

from router_runtime.errors import DataError, QueryError
from router_runtime.images import load_image
from router_runtime.messages import TextRule, query_from_messages, query_from_prompt
from router_runtime.types import Image, Query

_KEYS = {"text", "images", "messages"}


@dataclass(frozen=True)
class Probes:
    """Inputs of both halves."""

    texts: tuple[str, ...]
    images: tuple[Image, ...]

    def or_else(self, other: Probes) -> Probes:
        """Return them, with texts or pictures of ``other`` where there are none."""
        return Probes(self.texts or other.texts, self.images or other.images)


def read_samples(path: Path, *, rule: TextRule = TextRule()) -> list[Query]:
    """Return the queries of a file.

    Parameters
    ----------
    path : Path
        JSON lines, as the module says.
    rule : TextRule
        Which part of a conversation is routed on.

    Raises
    ------
    DataError
        The file cannot be read, is empty, or a line is none of the three forms.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"samples '{path}' cannot be read: {error}. Give a file of JSON lines."
        ) from error
    queries = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            queries.append(_query(json.loads(line), path.parent, rule))
        except (ValueError, QueryError) as error:
            raise DataError(f"samples '{path}', line {number}: {error}") from error
    if not queries:
        raise DataError(f"samples '{path}' hold no sample. Write one JSON value per line.")
    return queries


def _query(value: Any, folder: Path, rule: TextRule) -> Query:
    load = partial(load_image, allow_paths=True, base_dir=folder)
    if isinstance(value, str):
        return query_from_prompt(value, rule=rule)
    if not isinstance(value, Mapping) or not {"text", "messages", "images"} & set(value):
        raise ValueError('write a text, {"messages": [...]} or {"text": ..., "images": [...]}')
    if unknown := sorted(set(value) - _KEYS):
        raise ValueError(f"unknown key '{unknown[0]}' (known: {', '.join(sorted(_KEYS))})")
    images = value.get("images", ())
    if "messages" in value:
        return query_from_messages(value["messages"], images=images, rule=rule, load=load)
    return query_from_prompt(value.get("text", ""), images, rule=rule, load=load)


def probes_of(queries: Sequence[Query]) -> Probes:
    """Return the distinct texts and pictures of queries."""
    pictures = {image.sha256: image for query in queries for image in query.images}
    texts = dict.fromkeys(query.text for query in queries if query.text)
    return Probes(tuple(texts), tuple(pictures.values()))


def made_up(seed: int = 0) -> Probes:
    """Return sentences of several kinds and lengths, and pictures of several kinds and sizes.

    Good enough to see whether an export is right and where rounding hurts; what rounding costs on
    a user's own data ``check-encoder`` measures.
    """
    rng = np.random.default_rng(seed)
    texts = [_sentence(rng) for _ in range(40)]
    texts += [" ".join(_sentence(rng) for _ in range(n)) for n in (3, 5, 8, 12)]
    texts += ["a", "naïve \N{GRINNING FACE} 日本語", "x = [i**2 for i in range(10)]"]
    sizes = ((224, 224), (640, 480), (480, 640), (1280, 800))
    images = [
        load_image(_picture(rng, size, kind, drawn=drawn))
        for size in sizes
        for kind in ("PNG", "JPEG")
        for drawn in (True, False)
    ]
    return Probes(tuple(texts), tuple(images))


_WORDS = (
    "explain compare draw count translate summarise the a an of in with from what why how chart "
    "table picture number city code function error river history cell energy market law poem dog "
    "screen button price 17 25 3.5 2026 please short long exact twice every between because"
).split()


def _sentence(rng: np.random.Generator) -> str:
    words = rng.choice(_WORDS, size=int(rng.integers(3, 30)))
    return " ".join(words).capitalize() + str(rng.choice([".", "?", ""]))


def _picture(rng: np.random.Generator, size: tuple[int, int], kind: str, *, drawn: bool) -> bytes:
    """Return a screen-like drawing, or smooth noise as a photograph has."""
    if drawn:
        picture = PIL.Image.new("RGB", size, tuple(int(c) for c in rng.integers(150, 256, 3)))
        pen = PIL.ImageDraw.Draw(picture)
        for _ in range(30):
            (x, y), (w, h) = rng.random(2) * size, rng.random(2) * size * np.array([0.4, 0.2])
            color = tuple(int(c) for c in rng.integers(0, 256, 3))
            pen.rectangle((x, y, x + w, y + h), fill=color)
            pen.text((x + 3, y + 3), _sentence(rng), fill=(0, 0, 0))
    else:
        coarse = rng.integers(0, 256, (size[1] // 16, size[0] // 16, 3), dtype=np.uint8)
        picture = PIL.Image.fromarray(coarse).resize(size, PIL.Image.Resampling.BICUBIC)
    out = io.BytesIO()
    picture.save(out, kind)
    return out.getvalue()
