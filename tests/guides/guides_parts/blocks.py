"""The fenced blocks of a Markdown page, with what the page says about checking them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import yaml

_FENCE: Final = re.compile(r"^(?P<indent> *)(?P<fence>`{3,}|~{3,})(?P<info>[^`]*)$")
_INFO: Final = re.compile(r'^(?P<language>[\w+-]+)(?: +title="(?P<title>[^"]+)")?$')
_CHECK: Final = re.compile(r"<!--\s*check:\s*(.*?)\s*-->", re.DOTALL)
_FRONT: Final = re.compile(r"\A---\n(.*?)^---$", re.DOTALL | re.MULTILINE)


class FaultyPageError(Exception):
    """What is wrong with a page, as ``page:line: what``."""


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Parameters
    ----------
    line : int
        Of its first line of text, counted from 1 in the page.
    language, title : str
        As its fence says; ``title`` is empty where there is none.
    check : str
        What the comment before the fence says; empty where there is none.
    text : str
        Without the indentation of the fence.
    """

    line: int
    language: str
    title: str
    check: str
    text: str


def front_matter(page: Path) -> dict[str, object]:
    """Return what the page says about itself; empty where it says nothing."""
    found = _FRONT.match(page.read_text())
    return yaml.safe_load(found[1]) if found else {}


def blocks_of(page: Path) -> list[Block]:
    """Return a page's blocks in order, refusing fences that no test could read."""
    lines = page.read_text().splitlines()
    found: list[Block] = []
    at = after = 0  # where this fence may begin, where the last one ended
    while at < len(lines):
        opening = _FENCE.match(lines[at])
        if opening is None:
            at += 1
            continue
        place = f"{page.name}:{at + 1}"
        info = _INFO.match(opening["info"].strip())
        if info is None:
            raise FaultyPageError(f'{place}: begin a block with ```LANGUAGE [title="FILE"]')
        first = end = at + 1
        closing = re.compile(rf"^ *{opening['fence'][0]}{{{len(opening['fence'])},}} *$")
        while end < len(lines) and not closing.match(lines[end]):
            end += 1
        if end == len(lines):
            raise FaultyPageError(f"{place}: the block has no end")
        indent = len(opening["indent"])
        inner = [line[indent:] if not line[:indent].strip() else line for line in lines[first:end]]
        found.append(
            Block(
                line=first + 1,
                language=info["language"],
                title=info["title"] or "",
                check=_check_before("\n".join(lines[after:at])),
                text="".join(f"{line}\n" for line in inner),
            )
        )
        at = after = end + 1
    return found


def _check_before(text: str) -> str:
    """Return what the last comment says if nothing but blank lines follows it."""
    checks = list(_CHECK.finditer(text))
    if not checks or text[checks[-1].end() :].strip():
        return ""
    return " ".join(checks[-1][1].split())
