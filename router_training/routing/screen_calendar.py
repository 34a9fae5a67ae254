"""Drawn calendars: a month, two months side by side, a week, or a date picker over a form."""

from __future__ import annotations

import calendar
from typing import Final

from router_training.routing.screen_canvas import Asked, Box, Canvas, Drawn, Entry, click, pick

_MONTHS: Final = tuple(calendar.month_name)[1:]
_DAYS: Final = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_ORDINALS: Final = ("first", "second", "third")
_EVENTS: Final = ("Review", "Check-up", "Call", "Team", "Cleaning", "X-ray", "Lunch", "Visit")


def draw_calendar(canvas: Canvas) -> Drawn:
    """Draw one of four kinds of calendar."""
    rng = canvas.rng
    content = canvas.window("Schedule")
    year, month = int(rng.integers(2021, 2028)), int(rng.integers(1, 13))
    kind = float(rng.random())
    if kind < 0.2:
        return _week(canvas, content, year, month)
    if kind < 0.4:
        return _picker(canvas, content, year, month)
    if kind < 0.6 and content.width > 30 * canvas.size:
        half = (content.left + content.right) / 2
        ruled = bool(rng.random() < 0.7)
        after = (year + 1, 1) if month == 12 else (year, month + 1)
        left = _month(canvas, content._replace(right=half - canvas.size), year, month, ruled=ruled)
        right = _month(canvas, content._replace(left=half + canvas.size), *after, ruled=ruled)
        return Drawn(left.asked + right.asked, left.entries)
    ruled = bool(rng.random() < 0.7)
    return _month(canvas, content, year, month, ruled=ruled, events=True)


def _month(
    canvas: Canvas, area: Box, year: int, month: int, *, ruled: bool, events: bool = False
) -> Drawn:
    size, theme, rng = canvas.size, canvas.theme, canvas.rng
    middle = area.top + 1.2 * size
    back = Box(area.left, area.top, area.left + 2.4 * size, area.top + 2.4 * size)
    on = back._replace(left=area.right - 2.4 * size, right=area.right)
    canvas.arrow(back, left=True)
    canvas.arrow(on, left=False)
    title = f"{_MONTHS[month - 1]} {year}"
    canvas.text(((area.left + area.right) / 2, middle), title, scale=1.3, bold=True, anchor="mm")
    top = area.top + 3.2 * size
    step = area.width / 7
    for at, name in enumerate(_DAYS):
        words = name if step > 3 * size else name[0]
        x = area.left + (at + 0.5) * step
        canvas.text((x, top + 0.7 * size), words, colour=theme.faint, anchor="mm")
    grid = Box(area.left, top + 1.6 * size, area.right, area.bottom)
    weeks = calendar.Calendar().monthdayscalendar(year, month)
    row = grid.height / len(weeks)
    today = int(rng.integers(1, 29))
    days: dict[int, Box] = {}
    for r, week in enumerate(weeks):
        for c, day in enumerate(week):
            x, y = grid.left + c * step, grid.top + r * row
            cell = Box(x, y, x + step, y + row)
            if ruled:
                fill = theme.panel if day else theme.ground
                canvas.pen.rectangle(cell, fill=fill, outline=theme.line)
            if day:
                days[day] = cell
                _day(canvas, cell, day, today=day == today, corner=events, event=events)
    return Drawn(_asked(canvas, days, (year, month), on), _entries(days, month))


def _day(canvas: Canvas, cell: Box, day: int, *, today: bool, corner: bool, event: bool) -> None:
    size, theme = canvas.size, canvas.theme
    at = (cell.left + 1.2 * size, cell.top + 1.1 * size) if corner else cell.centre
    if today:
        x, y = at
        by = min(1.0 * size, 0.45 * cell.height)
        canvas.pen.ellipse((x - by, y - by, x + by, y + by), fill=theme.accent)
    canvas.text(at, str(day), colour=theme.on_accent if today else None, anchor="mm")
    roomy = cell.width > 5 * size and cell.height > 3.6 * size
    if event and roomy and canvas.rng.random() < 0.3:
        chip = Box(cell.left + 3, cell.top + 2.1 * size, cell.right - 3, cell.top + 3.5 * size)
        canvas.panel(chip, fill=theme.tint(0.3), radius=2)
        words = pick(canvas.rng, _EVENTS)
        canvas.text((chip.left + 4, chip.centre[1]), words, scale=0.8, within=chip.width - 6)


def _asked(
    canvas: Canvas, days: dict[int, Box], when: tuple[int, int], on: Box
) -> tuple[Asked, ...]:
    rng, (year, month) = canvas.rng, when
    name = _MONTHS[month - 1]
    day, other = int(rng.integers(1, 29)), int(rng.integers(1, 29))
    weekday, nth = int(rng.integers(0, 7)), int(rng.integers(0, 3))
    first = (weekday - calendar.weekday(year, month, 1)) % 7 + 1
    long = tuple(calendar.day_name)[weekday]
    return (
        Asked(f"Click {name} {day} in the calendar", click(days[day])),
        Asked(f"Pick {other} {name} {year} as the date", click(days[other])),
        Asked(
            f"Choose the {_ORDINALS[nth]} {long} of the month",
            click(days[first + 7 * nth]),
        ),
        Asked("Go to the next month", click(on)),
        Asked(f"Open the day view for {name} {other}", click(days[other])),
    )


def _entries(days: dict[int, Box], month: int) -> tuple[Entry, ...]:
    return tuple(Entry(f"{_MONTHS[month - 1]} {day}", box) for day, box in days.items())


def _picker(canvas: Canvas, content: Box, year: int, month: int) -> Drawn:
    """Draw a small calendar that drops from a field of a form."""
    size, theme, rng = canvas.size, canvas.theme, canvas.rng
    names = ("Appointment date", "Starts on", "Visit", "Remind me on")
    for at in range(2):
        y = content.top + (0.6 + 4.0 * at) * size
        canvas.text((content.left, y), pick(rng, names), colour=theme.faint)
        row = Box(content.left, y + size, content.left + 0.6 * content.width, y + 3.0 * size)
        canvas.input(row, f"{year}-{month:02d}-{int(rng.integers(1, 29)):02d}")
    top = content.top + 8.2 * size
    height = min(content.bottom - top, 19 * size)
    left = content.left + float(rng.uniform(0, 0.4)) * content.width
    width = min(max(0.45 * content.width, 21 * size), content.right - left)
    box = Box(left, top, left + width, top + height)
    canvas.panel(box, outline=theme.line)
    return _month(canvas, box.inner(0.7 * size), year, month, ruled=bool(rng.random() < 0.5))


def _week(canvas: Canvas, area: Box, year: int, month: int) -> Drawn:
    """Draw seven days as columns and hours as rows, with events as blocks."""
    size, theme, rng = canvas.size, canvas.theme, canvas.rng
    weeks = [week for week in calendar.Calendar().monthdayscalendar(year, month) if all(week)]
    week = pick(rng, weeks)
    back = Box(area.left, area.top, area.left + 2.4 * size, area.top + 2.4 * size)
    on = Box(back.right + 0.5 * size, area.top, back.right + 2.9 * size, back.bottom)
    canvas.arrow(back, left=True)
    canvas.arrow(on, left=False)
    title = f"{_MONTHS[month - 1]} {week[0]} - {week[-1]}, {year}"
    canvas.text((on.right + size, area.top + 1.2 * size), title, scale=1.2, bold=True)
    grid = Box(area.left + 3.6 * size, area.top + 5.4 * size, area.right, area.bottom)
    step, first_hour, n_hours = grid.width / 7, int(rng.integers(6, 9)), int(rng.integers(7, 11))
    row = grid.height / n_hours
    canvas.pen.rectangle(grid, fill=theme.panel)
    for at in range(n_hours + 1):
        y = grid.top + at * row
        canvas.pen.line((grid.left, y, grid.right, y), fill=theme.line)
        if at < n_hours:
            hour = f"{first_hour + at:02d}:00"
            canvas.text((area.left, y), hour, scale=0.8, colour=theme.faint)
    days: dict[int, Box] = {}
    for at, day in enumerate(week):
        x = grid.left + at * step
        canvas.pen.line((x, grid.top - size, x, grid.bottom), fill=theme.line)
        head = Box(x, grid.top - 2.4 * size, x + step, grid.top)
        canvas.text(head.centre, f"{_DAYS[at]} {day}", bold=True, anchor="mm", within=step - 4)
        days[day] = head
        for _ in range(int(rng.integers(0, 4))):
            start = float(rng.uniform(0, n_hours - 1.2))
            end = start + float(rng.uniform(0.5, 1.2))
            block = Box(x + 2, grid.top + start * row, x + step - 2, grid.top + end * row)
            canvas.panel(block, fill=theme.tint(float(rng.uniform(0.2, 0.6))), radius=3)
            spot = (block.left + 4, block.top + 0.7 * size)
            canvas.text(spot, pick(rng, _EVENTS), scale=0.8, within=step - 10)
    name, day = _MONTHS[month - 1], pick(rng, week)
    asked = (
        Asked(f"Open {name} {day} in the week view", click(days[day])),
        Asked("Show next week in the calendar", click(on)),
        Asked("Go back one week", click(back)),
    )
    return Drawn(asked, _entries(days, month))
