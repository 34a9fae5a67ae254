"""Every page of the guides does what it says: its blocks are run or checked, in order."""

from __future__ import annotations

import pytest
from guides_parts.blocks import FaultyPageError
from guides_parts.command_lines import ROOT
from guides_parts.walking import Walk, reader_folder

DOCS = ROOT / "docs"
PAGES = sorted(page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md"))


@pytest.mark.parametrize("name", PAGES)
def test_a_reader_can_follow(name, tmp_path, programs, request):
    if trouble := trouble_on(DOCS / name, tmp_path, programs, request):
        pytest.fail(trouble, pytrace=False)


def trouble_on(page, folder, programs, request) -> str | None:
    (folder / "scratch").mkdir()
    try:
        reader = reader_folder(page, folder / "reader", request.getfixturevalue)
        Walk(page, reader, folder / "scratch", programs).go()
    except FaultyPageError as error:
        return str(error)
    return None
