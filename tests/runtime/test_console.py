from __future__ import annotations

import io

from rich.table import Table
from rich.text import Text

from router_runtime.console import SafeConsole

NAME = "a\x1b[2J\x1b]0;title\x07\x9b31mb\x00\u202ec\u2066\td é 名"


def printed(*what, **options):
    stream = io.StringIO()
    SafeConsole(file=stream, width=60, highlight=False, markup=False, **options).print(*what)
    return stream.getvalue()


def test_names_from_data_cannot_steer_the_terminal():
    table = Table("model")
    table.add_row(Text(NAME))
    for text in (printed(NAME), printed(Text(NAME)), printed(table)):
        assert "a[2J]0;title31mbc" in text
        assert "é 名" in text
        assert not set(text) & set("\x1b\x07\x9b\x00\u202e\u2066")


def test_columns_stay_in_line():
    table = Table("model")
    table.add_row(Text(NAME))
    assert len({len(line.replace("名", "  ")) for line in printed(table).splitlines()}) == 1


def test_the_consoles_own_styles_stay():
    assert "\x1b[31m" in printed(Text("red", style="red"), force_terminal=True)
