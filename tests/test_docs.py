"""What the documents promise exists."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from router_runtime.config import PolicyConfig
from router_runtime.prediction.encoders.specs import EncoderSpec
from router_training.fitting import HeadConfig

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def test_the_readmes_program_runs(trained, workload, tmp_path):
    program = re.search(r"```python\n(.*?)```", README, re.DOTALL).group(1)
    program = program.replace("router_artifacts/quickstart", str(trained[0].output))
    program = program.replace("picture.png", str(workload / "example.png"))
    done = subprocess.run(  # noqa: S603 - our own README
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 5
    assert done.stdout.splitlines()[0] in trained[1].artifact.model_ids


@pytest.mark.parametrize("program", ["router-train", "model-router"])
def test_every_command_of_the_readme_exists(program):
    module = {"router-train": "router_training", "model-router": "router_runtime.cli"}[program]
    shown = subprocess.run(  # noqa: S603 - our own interpreter on our own code
        [sys.executable, "-m", module, "--help"], capture_output=True, text=True, check=True
    ).stdout
    for command in set(re.findall(rf"{program} ([a-z][a-z-]+)", README)):
        assert re.search(rf"│ {command} ", shown), command


def test_every_make_target_and_config_of_the_readme_exists():
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"`?make ([a-z]+)`?", README)):
        if target != "are":
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    for path in set(re.findall(r"configs/[a-z]+\.yml", README)):
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


def test_links_of_the_readme_lead_somewhere():
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target


def test_no_constraint_names_a_host():
    text = (ROOT / "constraints.txt").read_text()
    assert "://" not in text
    assert all(re.fullmatch(r"[\w.\[\]-]+==[\w.+!-]+", line) for line in text.split() if line)
