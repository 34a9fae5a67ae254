"""What the documents promise exists: commands, options, configs, targets, extras, links.

The pages of ``docs/`` are walked, block by block, by ``tests/guides``; here README and pages alike
are asked what their code names, in running text too.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from typing import get_args

import pytest
import yaml
from guides_parts.command_lines import ROOT, command_tree, make_targets, problems_of_commands

from router_runtime.config import PolicyConfig, validate_policy
from router_runtime.prediction.encoders.specs import EncoderSpec
from router_training.fitting import HeadConfig

PAGES = [page for page in sorted((ROOT / "docs").rglob("*.md")) if page.parent.name != "reference"]
DOCUMENTS = ["README.md", "CONTRIBUTING.md", *(str(page.relative_to(ROOT)) for page in PAGES)]
TEXTS = {name: (ROOT / name).read_text() for name in DOCUMENTS}
README = TEXTS["README.md"]
FENCE = re.compile(r"^ *```(\w*)[^\n]*\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)
SPAN = re.compile(r"`([^`]+)`")


def code_of(text) -> str:
    """What stands in blocks, but for shown output, and between backticks, one a line."""
    blocks = [block for language, block in FENCE.findall(text) if language != "text"]
    spans = [" ".join(span.split()) for span in SPAN.findall(FENCE.sub("", text))]
    return "\n".join([*blocks, *spans])


CODE = {name: code_of(text) for name, text in TEXTS.items()}


def test_the_readmes_program_runs():
    program = re.search(r"```python\n(.*?)```", README, re.DOTALL)[1]
    done = subprocess.run(  # noqa: S603 - our own README
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[0] in ("weak", "strong")


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_command_and_option_that_a_document_names_exists(name):
    assert problems_of_commands(CODE[name]) == []


def test_the_documents_name_most_commands():
    code = "\n".join(CODE.values())
    for program in ("model-router", "router-train"):
        commands = [command for command in command_tree(program) if command]
        named = [command for command in commands if f"{program} {command}" in code]
        assert len(named) > len(commands) / 2, set(commands) - set(named)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_make_target_that_a_document_names_exists(name):
    named = re.findall(r"^(?:\$ )?make ((?:[a-z-]+ ?)+)", CODE[name], re.MULTILINE)
    assert {target for line in named for target in line.split()} <= make_targets()


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_file_of_the_repository_that_a_document_names_exists(name):
    paths = r"(?<![\w/.])(?:configs|deploy|docs|notebooks|tests)/[\w./-]*\w\.\w+"
    written = set(re.findall(r'title="([^"]+)"', TEXTS[name]))
    named = set(re.findall(paths, CODE[name])) - written
    assert {path for path in named if not (ROOT / path).exists()} == set()


def test_every_extra_is_in_a_table_of_extras_and_no_document_names_another():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = set(project["optional-dependencies"])
    tables = [text.split("| extra |", 1)[1] for text in TEXTS.values() if "| extra |" in text]
    rows = [table.split("\n\n", 1)[0].split("\n")[2:] for table in tables]
    first = ["".join(row.split("|")[1] for row in of_one) for of_one in rows]
    named = [set(re.findall(r"`([a-z]+)`", cells)) for cells in first]
    assert max(named, key=len) == extras
    named += [
        set(inner.split(","))
        for code in CODE.values()
        for inner in re.findall(r"(?:\.|model-router)\[([a-z,]+)\]", code)
    ]
    assert set().union(*named) <= extras


def test_every_kind_of_encoder_head_and_policy_is_named():
    for annotated in (PolicyConfig, EncoderSpec, HeadConfig):
        for model in get_args(get_args(annotated)[0]):
            kind = model.model_fields["kind"].default
            assert any(f"`{kind}`" in text for text in TEXTS.values()), kind


def test_every_fallback_that_a_document_shows_is_a_policys():
    found = [
        (name, shown)
        for name, code in CODE.items()
        for shown in re.findall(r"fallback:\s*(\{model: [^}]*\})", code)
    ]
    assert found
    for name, shown in found:
        policy = {"kind": "utility", "lambda_per_usd": 1.0, "fallback": yaml.safe_load(shown)}
        assert validate_policy(policy, source=name).fallback.model


def test_every_module_has_its_place_in_the_architecture():
    text = (ROOT / "ARCHITECTURE.md").read_text()
    named = set(re.findall(r"[a-z_]+", " ".join(re.findall(r"`([^`]+)`", text))))
    families = ("cli", "fit_", "plot", "mlp_", "report", "_")
    for package in ("router_runtime", "router_training"):
        for module in (ROOT / package).glob("*.py"):
            name = module.stem
            assert name in named or name.startswith(families), name


@pytest.mark.parametrize("name", [*DOCUMENTS, "ARCHITECTURE.md", "CHANGELOG.md"])
def test_documents_are_wrapped(name):
    lines = FENCE.sub("", (ROOT / name).read_text()).splitlines()
    assert [line for line in lines if len(line) > 100 and not line.lstrip().startswith("|")] == []


def test_benchmarks_that_documents_tell_of_exist_with_their_options():
    told = [
        (script, options)
        for code in CODE.values()
        for script, options in re.findall(
            r"(?:tests/benchmarks/|^)([a-z]+\.py)((?: +[^\s#]+)*)", code, re.MULTILINE
        )
    ]
    scripts = {script for script, _ in told}
    assert {"speed.py", "memory.py", "quality.py"} <= scripts
    for script, options in told:
        text = (ROOT / "tests" / "benchmarks" / script).read_text()
        for option in re.findall(r"--[a-z-]+", options):
            assert f'"{option}"' in text, (script, option)


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_links_of_documents_outside_of_the_site_lead_somewhere(name):
    for target in re.findall(r"\]\(([^)#:]+)[)#]", TEXTS[name]):
        assert (ROOT / target).exists(), target


def test_no_constraint_names_a_host():
    text = (ROOT / "constraints.txt").read_text()
    assert "://" not in text
    assert all(re.fullmatch(r"[\w.\[\]-]+==[\w.+!-]+", line) for line in text.split() if line)
