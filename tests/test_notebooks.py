"""The notebooks run from clean, say nothing of where they were run, and define next to nothing."""

from __future__ import annotations

import ast
import json
import re
import sys
from copy import deepcopy
from importlib.util import find_spec
from pathlib import Path

import pytest

for package in ("nbclient", "ipykernel", "matplotlib", "openai", "starlette", "torch", "peft"):
    if find_spec(package) is None:  # looked for and not imported, which takes long
        pytest.skip(f"{package} is not installed", allow_module_level=True)

import nbformat  # noqa: E402

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
MOST_LINES = 3
MOST_BYTES = 600_000
PLACES = re.compile(r"(?<![\w.:/])/(?:home|root|work|tmp|usr|var|opt|mnt|Users)/|[A-Z]:\\\\")

sys.path.insert(0, str(FOLDER))
import refresh  # noqa: E402

each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def cells(path, kind="code"):
    notebook = nbformat.read(path, as_version=4)
    return [cell for cell in notebook.cells if cell.cell_type == kind]


def trees(path):
    """Parse every code cell, its magics as empty lines."""
    for cell in cells(path):
        lines = cell.source.splitlines()
        yield ast.parse("\n".join("" if line[:1] in "%!" else line for line in lines))


def nodes(path, *kinds):
    return [node for tree in trees(path) for node in ast.walk(tree) if isinstance(node, kinds)]


@each
def test_it_runs_from_clean_anywhere_and_leaves_nothing_behind(path, tmp_path):
    done = refresh.executed(path, tmp_path)
    assert list(tmp_path.iterdir()) == []
    for cell in done.cells:
        if refresh.KEEP in cell.metadata.get("tags", []):
            assert [set(out.data) >= {"image/png"} for out in cell.outputs] == [True], cell.id


@each
def test_it_is_kept_stripped(path):
    kept = nbformat.read(path, as_version=4)
    assert refresh.stripped(deepcopy(kept)) == kept
    for cell in cells(path):
        pictures = 1 if refresh.KEEP in cell.metadata.get("tags", []) else 0
        assert len(cell.outputs) == pictures, cell.id
        assert cell.execution_count is None


def test_the_chosen_pictures_are_few_and_small():
    kept = [cell.id for path in NOTEBOOKS for cell in cells(path) if cell.outputs]
    assert 3 <= len(kept) <= 5, kept
    assert sum(path.stat().st_size for path in NOTEBOOKS) < MOST_BYTES


@each
def test_nothing_tells_on_which_machine_it_was_made(path):
    content = json.loads(path.read_text())
    for cell in content["cells"]:
        cell.pop("outputs", None)  # pictures alone, see above
    assert PLACES.findall(json.dumps(content)) == []
    assert content["metadata"] == {"language_info": {"name": "python"}}


@each
def test_no_definition_is_longer_than_three_lines(path):
    found = nodes(path, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
    lengths = {ast.unparse(node)[:40]: node.end_lineno - node.lineno + 1 for node in found}
    assert {name: n for name, n in lengths.items() if n > MOST_LINES} == {}


@each
def test_only_public_names_are_used(path):
    imported = nodes(path, ast.ImportFrom)
    names = [part for node in imported for part in (node.module or "").split(".")]
    names += [alias.name for node in imported for alias in node.names]
    names += [node.attr for node in nodes(path, ast.Attribute)]
    assert len(names) > 20
    assert [name for name in names if name.startswith("_") and name != "__file__"] == []


@each
def test_every_step_is_explained(path):
    told = nbformat.read(path, as_version=4).cells
    assert told[0].cell_type == "markdown" and told[0].source.startswith("# ")
    before = [a.cell_type for a in told[:-2]]
    runs = "".join("c" if kind == "code" else "m" for kind in before)
    assert "ccc" not in runs
    lines = [line for cell in cells(path, "markdown") for line in cell.source.splitlines()]
    assert [line for line in lines if len(line) > 100 and not line.startswith("|")] == []


def test_the_notebooks_of_the_index_are_those_that_are_there():
    text = (FOLDER / "README.md").read_text()
    assert set(re.findall(r"\((\d_\w+\.ipynb)\)", text)) == {path.name for path in NOTEBOOKS}
    named = {name for path in NOTEBOOKS for name in re.findall(r"\d_\w+\.ipynb", path.read_text())}
    assert named <= {path.name for path in NOTEBOOKS}
