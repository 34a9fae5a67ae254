"""A sample of answers for a person to look at and mark: a table and a page.

It is balanced over the kinds of labels (candidate and verdict), because most answers are of few
kinds; ``trust`` weighs the marks accordingly. Which answers are drawn depends on the seed and on
their names alone, so that answers that come later take the place of few. The page stands alone: its
content security policy allows its own style and script by digest, pictures from data URIs, and
nothing else.
"""

from __future__ import annotations

import base64
import hashlib
import heapq
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Final

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from router_runtime.errors import DataError
from router_runtime.types import Image
from router_training.labelling.answer_store import AnswerStore
from router_training.labelling.cells import Cell, CellReader, SampleCells, Stratum, cell_reader
from router_training.labelling.config import LabelConfig
from router_training.labelling.judge import Vote, conversation
from router_training.labelling.marks import write_csv
from router_training.labelling.samples import LabelSample
from router_training.labelling.samples_stage import iter_samples
from router_training.store import write_whole
from router_training.thumbnails import Thumbnail, thumbnail

CSV: Final = "audit.csv"
HTML: Final = "audit.html"

MAX_SIDE: Final = 768
"""Pixels of a picture's longer side on the page."""

MAX_PICTURE_BYTES: Final = 48_000_000
"""Of all pictures of a page together; later ones are left out and counted."""

MAX_CHARS: Final = 20_000
"""Characters of one text that are shown; a spreadsheet's cell holds 32,767."""

_HEADER: Final = (
    *("id", "model", "human", "dataset", "prompt", "pictures", "reference", "answer"),
    *("score", "decided_by", "verdicts", "explanation", "unscored"),
)


@dataclass(frozen=True)
class Audit:
    """What was written.

    Parameters
    ----------
    csv, html : Path
    answers : int
        In the sample.
    of_stratum : mapping
        How many of them are of each candidate and verdict.
    """

    csv: Path
    html: Path
    answers: int
    of_stratum: Mapping[Stratum, int]


@dataclass(frozen=True)
class Entry:
    """One answer as table and page show it.

    Parameters
    ----------
    sample_id, model_id : str
    dataset : str
        Empty where none is known.
    prompt : str
    reference : str or None
    answer : str
    images : tuple of Image
    verdict : mapping
        The score, who decided, and single verdicts, as text.
    explanation : str
        The judge's.
    """

    sample_id: str
    model_id: str
    dataset: str
    prompt: str
    reference: str | None
    answer: str
    images: tuple[Image, ...]
    verdict: Mapping[str, str]
    explanation: str


@dataclass(frozen=True)
class _Shown:
    """An entry as the template wants it."""

    sample_id: str
    model_id: str
    dataset: str
    prompt: str
    reference: str | None
    answer: str
    pictures: tuple[Thumbnail, ...]
    notes: tuple[str, ...]
    verdict: Mapping[str, str]
    explanation: str


def export(
    config: LabelConfig,
    samples: Path,
    store: AnswerStore,
    folder: Path,
    *,
    rows: int = 200,
    seed: int | None = None,
    pictures: bool = True,
) -> Audit:
    """Draw answers and write ``audit.csv`` and ``audit.html``.

    Parameters
    ----------
    config : LabelConfig
    samples : Path
        The folder that ``samples_stage`` made.
    store : AnswerStore
        Only read.
    folder : Path
        Made when absent.
    rows : int
        Answers at most.
    seed : int, optional
        Of the draw; by default the config's.
    pictures : bool
        Whether the page shows pictures.

    Raises
    ------
    DataError
        No answer is kept yet.
    RouterError
        The folder cannot be written.
    """
    seed = config.seed if seed is None else seed
    reader = cell_reader(config, store)
    chosen = draw(reader.read(iter_samples(samples)), rows=rows, seed=seed)
    if not chosen:
        raise DataError("There is no answer to look at yet; collect some first.")
    found = list(_found(reader, iter_samples(samples), chosen))
    entries = [entry_of(row, cell) for row, cell in found]
    csv_path, html_path = folder / CSV, folder / HTML
    write_whole(csv_path, table(entries))
    write_whole(html_path, render_page(entries, pictures=pictures).encode(errors="replace"))
    counts: dict[Stratum, int] = {}
    for _, cell in found:
        counts[cell.stratum] = counts.get(cell.stratum, 0) + 1
    return Audit(csv_path, html_path, len(entries), dict(sorted(counts.items())))


# --------------------------------------------------------------------------- the draw


def draw(cells: Iterable[SampleCells], *, rows: int, seed: int) -> dict[int, set[str]]:
    """Return which answers are looked at: candidates by the sample's place.

    The kinds take turns, each giving its answers in the order of a keyed digest of their names,
    until there are enough. Memory does not grow with the number of samples.
    """
    kept: dict[Stratum, list[tuple[int, int, str]]] = {}  # heaps, the greatest digest first
    for place, row in enumerate(cells):
        for cell in row.cells:
            if cell.answer is None:
                continue
            heap = kept.setdefault(cell.stratum, [])
            entry = (-_lot(seed, row.labelled.sample.id, cell.model_id), place, cell.model_id)
            if len(heap) < rows:
                heapq.heappush(heap, entry)
            else:
                heapq.heappushpop(heap, entry)
    ranked = sorted(
        (rank, -lot, place, model_id)
        for heap in kept.values()
        for rank, (lot, place, model_id) in enumerate(sorted(heap, reverse=True))
    )
    chosen: dict[int, set[str]] = {}
    for _, _, place, model_id in ranked[:rows]:
        chosen.setdefault(place, set()).add(model_id)
    return chosen


def _lot(seed: int, sample_id: str, model_id: str) -> int:
    name = f"{seed}\0{sample_id}\0{model_id}".encode(errors="surrogatepass")
    return int.from_bytes(hashlib.sha256(name).digest()[:8])


def _found(
    reader: CellReader, samples: Iterable[LabelSample], chosen: Mapping[int, set[str]]
) -> Iterator[tuple[SampleCells, Cell]]:
    wanted = [models for _, models in sorted(chosen.items())]
    drawn = (sample for place, sample in enumerate(samples) if place in chosen)
    for row, models in zip(reader.read(drawn), wanted, strict=True):
        for cell in row.cells:
            if cell.model_id in models:
                yield row, cell


# --------------------------------------------------------------------------- what is shown


def entry_of(row: SampleCells, cell: Cell) -> Entry:
    """Return what is shown of one answer."""
    sample = row.labelled.sample
    verdict = {"score": "none" if cell.score is None else f"{cell.score:.4g}"}
    if cell.scored is not None and cell.scored.by:
        verdict["decided by"] = cell.scored.by
    if cell.unscored:
        verdict["unscored"] = cell.unscored
    if cell.judged is not None:
        if cell.judged.votes:
            verdict["verdicts"] = "; ".join(map(_said, cell.judged.votes))
        if cell.judged.patterns:
            verdict["suspicious"] = ", ".join(cell.judged.patterns)
    return Entry(
        sample_id=sample.id,
        model_id=cell.model_id,
        dataset=sample.dataset or "",
        prompt=conversation(sample),
        reference=sample.reference,
        answer=cell.answer or "",
        images=sample.query.images,
        verdict=verdict,
        explanation="" if cell.judged is None else cell.judged.explanation,
    )


def _said(vote: Vote) -> str:
    said = vote.verdict if vote.verdict is not None else f"none ({vote.reason})"
    return f"{vote.model_id}{f' ({vote.order})' if vote.order else ''}: {said}"


def table(entries: Iterable[Entry]) -> bytes:
    """Return the CSV, with an empty column ``human`` to fill in."""
    rows = (
        (
            *(entry.sample_id, entry.model_id, "", entry.dataset, _cut(entry.prompt)),
            *(str(len(entry.images)), _cut(entry.reference or ""), _cut(entry.answer)),
            *(entry.verdict.get(name, "") for name in ("score", "decided by", "verdicts")),
            *(_cut(entry.explanation), entry.verdict.get("unscored", "")),
        )
        for entry in entries
    )
    return write_csv(_HEADER, rows)


def _cut(text: str) -> str:
    return text if len(text) <= MAX_CHARS else f"{text[:MAX_CHARS]}… ({len(text):,} characters)"


def render_page(entries: Iterable[Entry], *, pictures: bool = True) -> str:
    """Return the page; equal arguments give equal pages."""
    shown = list(_with_pictures(entries, pictures))
    names = repr([(entry.sample_id, entry.model_id, entry.answer) for entry in shown])
    template = _environment().from_string(_resource("labelling/audit.html.jinja"))
    page = {
        "title": "Audit of labels",
        "facts": {
            "answers": f"{len(shown):,}",
            "candidates": ", ".join(sorted({entry.model_id for entry in shown})),
        },
        "entries": shown,
        "shows_pictures": any(entry.pictures for entry in shown),
        "digest": hashlib.sha256(names.encode(errors="replace")).hexdigest()[:16],
    }
    base = _resource("report.css")
    blank = {"page": {**page, "entries": []}, "policy": "", "base_style": Markup("")}
    parts = template.make_module(blank)
    style, script = base + str(parts.style), str(parts.script)  # type: ignore[attr-defined]
    policy = (
        f"default-src 'none'; style-src 'sha256-{_digest(style)}'; "
        f"script-src 'sha256-{_digest(script)}'; img-src data:; base-uri 'none'; form-action 'none'"
    )
    return template.render(page=page, policy=policy, base_style=Markup(base))  # noqa: S704 - our own file


def _with_pictures(entries: Iterable[Entry], pictures: bool) -> Iterator[_Shown]:
    room = MAX_PICTURE_BYTES if pictures else 0
    for entry in entries:
        found: list[Thumbnail] = []
        for image in entry.images if pictures else ():
            small = thumbnail(image, max_side=MAX_SIDE)
            if small is not None and len(small.uri) <= room:
                found.append(small)
                room -= len(small.uri)
        lacking = len(entry.images) - len(found)
        yield _Shown(
            sample_id=entry.sample_id,
            model_id=entry.model_id,
            dataset=entry.dataset,
            prompt=_cut(entry.prompt),
            reference=None if entry.reference is None else _cut(entry.reference),
            answer=_cut(entry.answer),
            pictures=tuple(found),
            notes=(f"Pictures that are not shown: {lacking}.",) if lacking else (),
            verdict=entry.verdict,
            explanation=_cut(entry.explanation),
        )


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


@cache
def _environment() -> Environment:
    return Environment(autoescape=True, undefined=StrictUndefined, keep_trailing_newline=True)


@cache
def _resource(name: str) -> str:
    return files("router_training").joinpath(name).read_text(encoding="utf-8")
