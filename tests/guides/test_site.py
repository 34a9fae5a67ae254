"""The guides build into a site whose links all lead somewhere and which loads nothing."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from guides_parts.command_lines import ROOT

DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(  # noqa: S603 - our own interpreter
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )
    if done.returncode != 0:
        told = [line for line in done.stderr.splitlines() if not line.startswith("INFO")]
        pytest.fail("\n".join(told), pytrace=False)
    return folder


class Addresses(HTMLParser):
    """What a browser fetches to show a page."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(page.read_text())

    def handle_starttag(self, tag, attrs) -> None:
        wanted = {"link": "href", "script": "src", "img": "src", "iframe": "src", "source": "src"}
        self.found += [value for name, value in attrs if name == wanted.get(tag) and value]


def test_every_page_and_link_of_the_guides_has_its_place_in_the_site(site):
    pages = {page.relative_to(DOCS).with_suffix(".html") for page in DOCS.rglob("*.md")}
    assert {page.relative_to(site) for page in site.rglob("*.html")} == pages | {Path("404.html")}


def test_showing_a_page_asks_no_other_host(site):
    pages = sorted(site.rglob("*.html"))
    fetched = {address for page in pages for address in Addresses(page).found}
    assert len(fetched) >= 5
    assert [a for a in fetched if "//" in a and not a.startswith("data:")] == []
    sheets = "".join(sheet.read_text() for sheet in site.rglob("*.css"))
    assert re.findall(r"(?:url\(|@import )[\"']?(?:https?:)?//[^)]*", sheets) == []


def test_the_site_holds_no_program_that_makes_it(site):
    assert list(site.rglob("*.py")) == []
