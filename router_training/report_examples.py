"""The worst regrets with what was asked: excerpts and thumbnails for the page, within limits.

Everything here comes from data files. Texts stay texts (the template escapes them), pictures are
decoded and encoded anew, so that no byte of an untrusted file reaches the page.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from router_runtime.types import Image
from router_training.evaluate import Regret
from router_training.samples import Sample
from router_training.thumbnails import Thumbnail, thumbnail
from router_training.wording import UNKNOWN, per_1k

MAX_CHARS = 700
"""Characters of a prompt that are shown."""

MAX_SIDE = 240
"""Pixels of a thumbnail's longer side."""

MAX_PICTURES = 4
"""Pictures of one prompt that are shown."""

MAX_PICTURE_BYTES = 1_500_000
"""Of all pictures of a page together; later ones are left out and counted."""


@dataclass(frozen=True)
class Example:
    """One query as the page shows it.

    Parameters
    ----------
    title : str
        The record's id.
    facts : mapping
        What was chosen, what would have been better, and the figures, as text.
    prompt : str
        The prompt, or its beginning.
    pictures : tuple of Thumbnail
    notes : tuple of str
        What is not shown, and why.
    """

    title: str
    facts: Mapping[str, str]
    prompt: str
    pictures: tuple[Thumbnail, ...] = ()
    notes: tuple[str, ...] = ()


def examples_of(
    regrets: Sequence[Regret], samples: Sequence[Sample], *, cost_unit: str = "usd"
) -> tuple[Example, ...]:
    """Return what the page shows of each regret.

    Parameters
    ----------
    regrets : sequence of Regret
        The worst first; ``row`` counts among ``samples``.
    samples : sequence of Sample
        What was evaluated.
    cost_unit : str
        Of the regrets' costs.
    """
    found = []
    room = MAX_PICTURE_BYTES
    for regret in regrets:
        sample = samples[regret.row]
        prompt, left_out = excerpt(sample.prompt)
        pictures, notes = _pictures(sample.query.images, room)
        room -= sum(len(picture.uri) for picture in pictures)
        found.append(
            Example(
                title=f"Record {sample.id}",
                facts=_facts(regret, sample, cost_unit),
                prompt=prompt,
                pictures=pictures,
                notes=tuple(note for note in (*notes, left_out) if note),
            )
        )
    return tuple(found)


def _facts(regret: Regret, sample: Sample, cost_unit: str) -> dict[str, str]:
    unit = "USD per 1,000 calls" if cost_unit == "usd" else "relative cost x 1,000"

    def about(model: str, probability: float, cost: float) -> str:
        told = "" if math.isnan(cost) else f", {per_1k(cost)} {unit}"
        return f"{model} (probability {probability:.2f}{told})"

    facts = {
        "lost": f"{regret.regret:.2f} of a score",
        "chosen": about(regret.chosen, regret.chosen_probability, regret.chosen_cost),
        "better": about(regret.best, regret.best_probability, regret.best_cost),
        "data set": sample.dataset or UNKNOWN,
    }
    if regret.novelty is not None:
        facts["novelty"] = f"{regret.novelty:.2f}"
    return facts


def _pictures(images: Sequence[Image], room: int) -> tuple[tuple[Thumbnail, ...], list[str]]:
    """Return thumbnails that fit into ``room`` bytes, and what is said about the others."""
    found = []
    damaged = no_room = 0
    for image in images[:MAX_PICTURES]:
        picture = thumbnail(image, max_side=MAX_SIDE)
        if picture is None:
            damaged += 1
        elif len(picture.uri) > room:
            no_room += 1
        else:
            found.append(picture)
            room -= len(picture.uri)
    notes = []
    if damaged:
        notes.append(f"Damaged pictures that cannot be shown: {damaged}.")
    if left_out := no_room + max(0, len(images) - MAX_PICTURES):
        notes.append(f"Pictures left out for want of room: {left_out}.")
    return tuple(found), notes


def excerpt(text: str, *, most: int = MAX_CHARS) -> tuple[str, str]:
    """Return the beginning of a text as it is written, and a note on what is left out."""
    if len(text) <= most:
        return text, ""
    return text[:most] + "…", f"{len(text) - most:,} more characters are not shown."
