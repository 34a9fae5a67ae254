"""What the documents promise exists."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import yaml

from router_runtime.config import PolicyConfig, validate_policy
from router_runtime.prediction.encoders.specs import EncoderSpec
from router_training.fitting import HeadConfig

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def test_the_readmes_program_runs(workload, tmp_path):
    program = re.search(r"```python\n(.*?)```", README, re.DOTALL).group(1)
    program = program.replace("picture.png", str(workload / "example.png"))
    done = subprocess.run(  # noqa: S603 - our own README
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 5
    assert done.stdout.splitlines()[0] in ("weak", "strong")


@pytest.mark.parametrize("program", ["router-train", "model-router"])
def test_every_command_of_the_readme_exists(program):
    shown = shown_help(program)
    for command in set(re.findall(rf"{program} ([a-z][a-z-]+)", README)):
        assert re.search(rf"│ {command} ", shown), command


def test_every_make_target_and_config_of_the_readme_exists():
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"`?make ([a-z-]+)`?", README)):
        if target != "are":
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    for path in set(re.findall(r"configs/[a-z-]+\.yml", README)):
        assert (ROOT / path).exists(), path


def test_every_extra_of_the_readme_exists():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = set(project["optional-dependencies"])
    table = README.split("| extra |", 1)[1].split("\n\n", 1)[0]
    named = set(
        re.findall(r"`([a-z]+)`", "".join(row.split("|")[1] for row in table.split("\n")[2:]))
    )
    assert named == extras


def test_every_kind_of_encoder_head_and_policy_is_named():
    for annotated in (PolicyConfig, EncoderSpec, HeadConfig):
        for model in get_args(get_args(annotated)[0]):
            kind = model.model_fields["kind"].default
            assert f"`{kind}`" in README, kind


def shown_help(program, *command):
    module = {"router-train": "router_training", "model-router": "router_runtime.cli"}[program]
    return subprocess.run(  # noqa: S603 - our own interpreter on our own code
        [sys.executable, "-m", module, *command, "--help"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "COLUMNS": "200"},
    ).stdout


def test_every_option_of_a_command_line_in_the_readme_exists():
    lines = README.replace("\\\n", " ")
    group = "(?:keys |db |experts )?"
    pattern = rf"(router-train|model-router) ({group}[a-z][a-z-]+)((?: +[^\s`|#]+)*)"
    found = re.findall(pattern, lines)
    options = {(p, c, o) for p, c, rest in found for o in re.findall(r"--[a-z][a-z0-9-]+", rest)}
    named = {("router-train", "run", "--no-examples"), ("router-train", "evaluate", "--all-rows")}
    named |= {("router-train", c, o) for c in ("report", "evaluate") for o in ("--html", "--plots")}
    assert all(option in README for _, _, option in named)
    helps = {(p, c): shown_help(p, *c.split()) for p, c, _ in options | named}
    for program, command, option in options | named:
        assert re.search(rf"{option}\b", helps[program, command]), (program, command, option)
    assert len(options) >= 8


def test_the_fallback_of_the_readme_is_a_policy():
    text = re.search(r"`fallback:\s*(\{model: ID, [^}]*\})", README)[1]
    policy = {"kind": "utility", "lambda_per_usd": 1.0, "fallback": yaml.safe_load(text)}
    assert validate_policy(policy, source="README").fallback.model == "ID"


def test_every_module_has_its_place_in_the_architecture():
    text = (ROOT / "ARCHITECTURE.md").read_text()
    named = set(re.findall(r"[a-z_]+", " ".join(re.findall(r"`([^`]+)`", text))))
    families = ("cli", "fit_", "plot", "mlp_", "report", "_")
    for package in ("router_runtime", "router_training"):
        for module in (ROOT / package).glob("*.py"):
            name = module.stem
            assert name in named or name.startswith(families), name


@pytest.mark.parametrize("document", ["ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_documents_are_wrapped(document):
    lines = (ROOT / document).read_text().splitlines()
    assert [line for line in lines if len(line) > 100 and not line.startswith("|")] == []


def test_benchmarks_that_contributors_are_told_of_exist():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    scripts = set(re.findall(r"[a-z_]+\.py", text)) & {"speed.py", "memory.py", "quality.py"}
    assert scripts == {"speed.py", "memory.py", "quality.py"}
    quality = (ROOT / "tests" / "benchmarks" / "quality.py").read_text()
    for option in re.findall(r"--[a-z-]+", re.search(r"`quality\.py ([^`]*)`", text)[1]):
        assert f'"{option}"' in quality, option


def test_links_of_the_readme_lead_somewhere():
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target


def test_no_constraint_names_a_host():
    text = (ROOT / "constraints.txt").read_text()
    assert "://" not in text
    assert all(re.fullmatch(r"[\w.\[\]-]+==[\w.+!-]+", line) for line in text.split() if line)
