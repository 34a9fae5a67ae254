"""Drawn claim windows: a form of labelled fields, service lines below it, buttons at its foot."""

from __future__ import annotations

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

_STATUSES: Final = ("Pending", "Open", "Denied", "Paid", "In review")
_HEADS: Final = ("Line", "Code", "Units", "Charge", "Paid")
_WORDS: Final[dict[str, tuple[str, ...]]] = {
    "Claim status": _STATUSES,
    "Place of service": ("Office", "Home", "Hospital", "Telehealth"),
    "Claim type": ("Professional", "Institutional", "Dental"),
    "Payer": ("Plan North", "Plan South", "Plan East", "Plan West"),
    "Relationship": ("Self", "Spouse", "Child"),
}
_CODES: Final[dict[str, str]] = {
    "Member ID": "M-####-##",
    "Group number": "G####",
    "Date of service": "202#-0%-1#",
    "Diagnosis code": "Z##.#",
    "Procedure code": "9####",
    "Billed amount": "%##.##",
    "Allowed amount": "%#.##",
    "Copay": "%#.00",
    "Prior authorisation": "PA####",
}


def draw_claim(canvas: Canvas) -> Drawn:
    """Draw a claim being edited, in the whole window or in a dialog over it."""
    rng, size, theme = canvas.rng, canvas.size, canvas.theme
    content = canvas.window("Claims")
    if rng.random() < 0.35:
        content = content.inner(float(rng.uniform(0.8, 2.2)) * size)
        canvas.panel(content, outline=theme.line)
        content = content.inner(size)
    number = _code(rng, "CL-#####")
    canvas.text((content.left, content.top + size), f"Claim {number}", scale=1.4, bold=True)
    if rng.random() < 0.6:
        _badge(canvas, content.right, content.top + size, pick(rng, _STATUSES))
    top = content.top + 3.0 * size
    if rng.random() < 0.5:
        top = _tabs(canvas, content, top)
    foot = content.bottom - 2.6 * size
    lined = rng.random() < 0.65
    split = top + (foot - top) * (0.55 if lined else 1.0)
    fields = _fields(canvas, content._replace(top=top, bottom=split))
    if lined:
        _lines(canvas, content._replace(top=split + 0.4 * size, bottom=foot))
    buttons = _buttons(canvas, content, foot + 1.4 * size)
    return Drawn(
        _asked(canvas, fields, buttons),
        tuple(Entry(name, box) for name, (box, _) in fields.items()),
    )


def _code(rng: np.random.Generator, pattern: str) -> str:
    digits = "".join(str(rng.integers(0, 10)) if c == "#" else c for c in pattern)
    return digits.replace("%", str(rng.integers(1, 10)))


def _value(rng: np.random.Generator, name: str) -> str:
    return pick(rng, _WORDS[name]) if name in _WORDS else _code(rng, _CODES[name])


def _badge(canvas: Canvas, right: float, middle: float, words: str) -> None:
    width = canvas.font().getlength(words) + 1.6 * canvas.size
    by = 0.85 * canvas.size
    box = Box(right - width, middle - by, right, middle + by)
    canvas.panel(box, fill=canvas.theme.tint(0.35), radius=by)
    canvas.text(box.centre, words, anchor="mm")


def _tabs(canvas: Canvas, content: Box, top: float) -> float:
    x, size = content.left, canvas.size
    for at, word in enumerate(("Details", "Services", "Notes", "History")):
        width = canvas.font().getlength(word)
        if x + width > content.right:
            break
        colour = canvas.theme.accent if at == 0 else canvas.theme.faint
        canvas.text((x, top + 0.6 * size), word, colour=colour, bold=at == 0)
        if at == 0:
            under = top + 1.5 * size
            canvas.pen.line((x, under, x + width, under), fill=colour, width=2)
        x += width + 1.8 * size
    canvas.pen.line(
        (content.left, top + 1.6 * size, content.right, top + 1.6 * size), fill=(canvas.theme.line)
    )
    return top + 2.4 * size


def _fields(canvas: Canvas, area: Box) -> dict[str, tuple[Box, str]]:
    """Draw labelled fields in two or three columns; each name's field and value."""
    rng, size = canvas.rng, canvas.size
    beside = rng.random() < 0.3
    columns = 2 if beside or area.width < 46 * size else int(rng.integers(2, 4))
    row_height = (2.8 if beside else 4.2) * size
    rows = max(2, min(6, int(area.height / row_height)))
    names = sample(rng, (*_WORDS, *_CODES), min(rows * columns, len(_WORDS) + len(_CODES)))
    step = area.width / columns
    found: dict[str, tuple[Box, str]] = {}
    for at, name in enumerate(names):
        x = area.left + at % columns * step
        y = area.top + at // columns * row_height
        if beside:
            canvas.text((x, y + size), name, colour=canvas.theme.faint, within=0.42 * step)
            box = Box(x + 0.44 * step, y, x + step - size, y + 2.1 * size)
        else:
            canvas.text((x, y + 0.5 * size), name, scale=0.9, colour=canvas.theme.faint)
            box = Box(x, y + 1.3 * size, x + step - size, y + 3.4 * size)
        value = _value(rng, name)
        canvas.input(box, value)
        if name in _WORDS:
            right, middle = box.right - 0.9 * size, (box.top + box.bottom) / 2
            by = 0.3 * size
            canvas.pen.polygon(
                [(right - by, middle - by), (right + by, middle - by), (right, middle + by)],
                fill=canvas.theme.faint,
            )
        found[name] = (box, value)
    return found


def _lines(canvas: Canvas, area: Box) -> None:
    """Draw service lines as a table."""
    rng, size, theme = canvas.rng, canvas.size, canvas.theme
    step = area.width / len(_HEADS)
    row = 2.0 * size
    rows = max(1, min(5, int(area.height / row) - 1))
    head = Box(area.left, area.top, area.right, area.top + row)
    canvas.pen.rectangle(head, fill=theme.tint(0.12), outline=theme.line)
    for r in range(rows + 1):
        y = area.top + (r + 0.5) * row
        cells = (
            str(r),
            _code(rng, "9####"),
            str(rng.integers(1, 5)),
            _code(rng, "%##.##"),
            _code(rng, "%#.##"),
        )
        for c, words in enumerate(_HEADS if r == 0 else cells):
            canvas.text((area.left + c * step + 6, y), words, bold=r == 0, within=step - 8)
        under = area.top + (r + 1) * row
        canvas.pen.line((area.left, under, area.right, under), fill=theme.line)


def _buttons(canvas: Canvas, content: Box, middle: float) -> dict[str, Box]:
    found: dict[str, Box] = {}
    x = content.left if canvas.rng.random() < 0.5 else content.left + 0.45 * content.width
    for at, word in enumerate(("Submit", "Save", "Cancel")):
        found[word] = canvas.button(x, middle, word, main=at == 0)
        x = found[word].right + 0.8 * canvas.size
    return found


def _asked(
    canvas: Canvas, fields: dict[str, tuple[Box, str]], buttons: dict[str, Box]
) -> tuple[Asked, ...]:
    rng = canvas.rng
    name, other = sample(rng, tuple(fields), 2)
    new = _value(rng, name)
    box, value = fields[other]
    word = pick(rng, tuple(buttons))
    return (
        Asked(f"Set the {name.lower()} to {new}", typed(fields[name][0], new)),
        Asked(f"What is the {other.lower()} of this claim?", value),
        Asked(f"Clear the {other.lower()} field", typed(box, "")),
        Asked(f"{word} the claim", click(buttons[word])),
        Asked(f"In the claim window, change {name.lower()} to {new}", typed(fields[name][0], new)),
    )
