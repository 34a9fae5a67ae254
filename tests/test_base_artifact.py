"""The router that is there before training: it routes, fits in a clone, and holds no text."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import tomllib
from pathlib import Path

import PIL.Image
import PIL.ImageDraw
import pytest

from router_runtime.artifacts import load_artifact, read_manifest
from router_runtime.base_artifact import TIERS, base_artifact, default_artifact
from router_runtime.config import RuntimeConfig, load_config
from router_runtime.model_router import ModelRouter
from router_runtime.types import Reason
from router_training.stored_report import stored_report

ROOT = Path(__file__).resolve().parents[1]
BASE = ROOT / "router_artifacts" / "base"
TABLES = ("routellm_mmlu_gpt4_mixtral", "routerbench_0shot_arc_mbpp_winogrande", "blindtest_4vlm")
KNOWN = (
    "A firm under perfect competition maximises\nA. revenue\nB. profit\nC. output\nD. cost\nAnswer:"
)
WINDOW = 28  # shorter ones are phrases that a card may share with a prompt


def circles():
    picture = PIL.Image.new("RGB", (224, 224), "white")
    for left, colour in ((68, "blue"), (95, "magenta")):
        PIL.ImageDraw.Draw(picture).ellipse((left, 90, left + 44, 134), fill=colour)
    return picture


@pytest.fixture(scope="module")
def router():
    return ModelRouter()


def test_it_is_two_tiers_and_needs_no_weights_of_others(router):
    assert base_artifact() == BASE
    assert set(router.model_ids) == set(TIERS)
    assert router.artifact.parts.encoders == ("embedded",)
    assert router.default_policy == "recommended"
    assert router.cost_unit == "usd"
    assert router.artifact.tells_novelty


def test_it_is_small_enough_for_a_clone():
    assert sum(file.stat().st_size for file in BASE.iterdir()) < 800_000


def test_it_routes_text_and_pictures(router):
    text = router.decide(KNOWN)
    picture = router.decide("Do the two circles overlap? Answer with Yes/No.", [circles()])
    for decision in (text, picture):
        assert decision.model_id == "weak"
        assert decision.probabilities["strong"] > decision.probabilities["weak"] > 0.6
        assert decision.expected_cost["strong"] > 5 * decision.expected_cost["weak"]


def test_what_is_unlike_its_tables_goes_to_the_strong_tier(router):
    decision = router.decide("guten Morgen, wie geht es Ihnen?")
    assert (decision.model_id, decision.reason) == ("strong", Reason.NOVEL_QUERY)


def test_it_loads_no_torch():
    program = (
        "import sys; from router_runtime import ModelRouter; ModelRouter().route('What is 2 + 3?');"
        "print(sorted({'torch', 'sklearn', 'xgboost', 'scipy'} & set(sys.modules)))"
    )
    done = subprocess.run(  # noqa: S603 - our own interpreter on our own code
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.strip() == "[]"


def test_no_piece_of_a_prompt_is_in_it(shared_data):
    held = {
        blob[at : at + WINDOW]
        for blob in (file.read_bytes() for file in BASE.iterdir())
        for at in range(len(blob) - WINDOW + 1)
    }
    for table in TABLES:
        with gzip.open(shared_data / f"{table}.jsonl.gz", "rt", encoding="utf-8") as lines:
            prompts = {json.loads(line)["prompt"].encode() for line in lines}
        assert len(prompts) > 5
        for prompt in prompts:
            for at in range(0, len(prompt) - WINDOW + 1, 4):
                assert prompt[at : at + WINDOW] not in held, prompt[at : at + WINDOW]


def test_its_card_tells_data_licences_figures_and_failures():
    card = (BASE / "README.md").read_text()
    for table in load_artifact(BASE).training["tables"]["tables"]:
        assert table["licence"].split(";")[0] in card
        assert table["models"]["weak"] in card
    for heading in ("Tables", "Held-out figures", "Slices", "Where it fails", "Limits"):
        assert f"## {heading}\n" in card
    report = stored_report(read_manifest(BASE), name="base")
    assert f"{report.strategy('router').outcome.quality:.4f}" in card


def test_the_config_for_own_models_maps_both_tiers():
    settled = load_config(ROOT / "configs" / "tiers-service.yml")
    assert settled.artifact == BASE
    assert {candidate.tier for candidate in settled.candidates} == set(TIERS)
    router = ModelRouter.from_config(settled)
    assert set(router.decide(KNOWN).ranking) == {c.id for c in settled.candidates}
    strong = next(c.id for c in settled.candidates if c.tier == "strong")
    assert router.route("guten Morgen, wie geht es Ihnen?") == strong


def test_a_config_that_names_no_artifact_has_this_one():
    assert RuntimeConfig().artifact == BASE


def test_where_none_is_named_an_artifact_of_the_current_folder_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert default_artifact() == BASE
    (tmp_path / "router_artifacts").mkdir()
    assert default_artifact() == BASE
    (tmp_path / "router_artifacts" / "manifest.json").write_text("{}")
    assert default_artifact() == Path("router_artifacts")


def test_a_wheel_brings_it():
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert {"router_artifacts", "router_artifacts.base"} <= set(tool["packages"]["find"]["include"])
    assert tool["package-data"]["router_artifacts.base"] == ["*"]
