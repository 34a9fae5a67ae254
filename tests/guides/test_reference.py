"""The pages of commands and keys are those of the code, and leave nothing undescribed."""

from __future__ import annotations

import sys

import pytest
import yaml
from guides_parts.command_lines import PROGRAMS, ROOT, command_tree

sys.path.insert(0, str(ROOT / "docs"))

import make_reference

PAGES = ROOT / "docs" / "reference"
CONFIGS = sorted(path.name for path in (ROOT / "configs").glob("*.y*ml"))


@pytest.fixture(scope="module")
def made() -> tuple[dict[str, str], list[str]]:
    return make_reference.pages()


def test_every_key_command_and_option_is_described(made):
    _, undescribed = made
    assert undescribed == []


@pytest.mark.parametrize("name", ["commands.md", "configuration.md"])
def test_the_pages_are_current(made, name):
    pages, _ = made
    assert (PAGES / name).read_text() == pages[name], "run `make reference`"


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_command_and_option_is_on_the_page(program):
    sections = (PAGES / "commands.md").read_text().split("\n### ")
    by_title = {section.partition("\n")[0]: section for section in sections}
    for command, options in command_tree(program).items():
        if not command or any(other.startswith(f"{command} ") for other in command_tree(program)):
            continue  # the program itself, or a group of commands
        section = by_title[f"{program} {command}"]
        assert {o for o in options - {"--help"} if f"`{o}`" not in section} == set(), command


@pytest.mark.parametrize("name", CONFIGS)
def test_every_key_of_the_examples_is_on_the_page(name):
    text = (PAGES / "configuration.md").read_text()
    (file,) = [
        file
        for file in make_reference.FILES
        if set(yaml.safe_load((ROOT / "configs" / name).read_text())) <= set(file.root.model_fields)
    ][:1]
    top = text.split(f"\n## {file.name.capitalize()}\n")[1].split("\n##")[0]
    assert f"`configs/{file.example}`" in top
    for key in yaml.safe_load((ROOT / "configs" / name).read_text()):
        assert f"| `{key}` |" in top, key


@pytest.mark.parametrize("file", make_reference.FILES, ids=lambda file: file.name)
def test_every_example_named_on_the_page_is_such_a_file(file):
    content = yaml.safe_load((ROOT / "configs" / file.example).read_text())
    assert set(content) <= set(file.root.model_fields)
