from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import yaml

from router_runtime.config import CandidateConfig, RuntimeConfig, validate
from router_runtime.model_router import ModelRouter
from router_training.card import escaped, render_card


def card_of(trained) -> str:
    return (trained[0].output / "README.md").read_text()


def served(folder, lines):
    """The card's config beside the artifact, as a user would put it."""
    (folder.parent / "from-card.yml").write_text(
        lines.replace("artifact: .", f"artifact: {folder.name}")
    )
    return folder.parent / "from-card.yml"


def tables_of(card):
    """Rows of all tables, each split at the bars that are not escaped."""
    lines = [line for line in card.splitlines() if line.startswith("| ")]
    return [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines]


def test_the_front_matter_is_yaml_with_models_and_figures(trained):
    _, matter, _ = card_of(trained).split("---\n", 2)
    content = yaml.safe_load(matter)
    result = trained[1]
    assert content["models"] == list(result.artifact.model_ids)
    assert content["head"] == "logistic"
    (entry,) = content["model-index"]
    (found,) = entry["results"]
    assert set(found) == {"task", "dataset", "metrics"}
    metrics = {metric["type"]: metric["value"] for metric in found["metrics"]}
    router = result.report.strategy("router").outcome
    assert metrics["router_accuracy"] == round(router.quality, 4)


def test_every_strategy_and_model_has_its_line(trained):
    card = card_of(trained)
    for entry in trained[1].report.strategies:
        assert f"| {entry.name} | {entry.outcome.quality:.4f} |" in card
    assert "95 % interval" in card


def test_the_recommended_lines_are_a_valid_config(trained):
    card = card_of(trained)
    lines = card.split("```yaml\n", 1)[1].split("```", 1)[0]
    config = validate(RuntimeConfig, yaml.safe_load(lines), source="card")
    recommended = trained[1].artifact.recommended_policy
    assert ModelRouter.from_config(served(trained[0].output, lines)).decide("What is 2 + 2?")
    assert config.policies["recommended"].model_dump(mode="json") == recommended
    assert config.artifact == Path(".")


def test_the_prices_that_were_tuned_with_are_told(trained):
    price = {"input_mtok": 1.5, "output_mtok": 2, "image": 0.0009}
    candidates = [
        CandidateConfig(id="sim-large-vl", modalities=["text", "image"], price=price),
        CandidateConfig(id="sim-small-text", price=price, context_window=8000),
    ]
    card = render_card(trained[1].artifact, trained[1].report, candidates=candidates)
    lines = card.split("```yaml\n", 1)[1].split("```", 1)[0]
    config = validate(RuntimeConfig, yaml.safe_load(lines), source="card")
    assert config.candidates == tuple(candidates)


def test_figures_have_intervals_and_honest_points_stand_apart(trained):
    card = card_of(trained)
    honest = card.split("## What to expect\n")[1].split("\n## ")[0]
    assert "98 % of best" in honest
    assert "AIQ" not in honest
    assert re.search(r"\| router \| [\d.]+ \| [+-][\d.]+ \\?\[[+-]", card)
    assert "AIQ, zero router" in card.split("## Read off the test curves\n")[1]


def test_slices_and_novelty_are_told(trained):
    card = card_of(trained)
    assert "modality: " in card.split("## Slices\n")[1].split("\n## ")[0]
    novelty = card.split("## Unlike the training data\n")[1].split("\n## ")[0]
    assert "decision.novelty" in novelty
    assert "takes sim-large-vl" in novelty
    older = render_card(replace(trained[1].artifact, novelty=None), trained[1].report)
    assert "does not measure how far" in older


def test_names_from_data_cannot_break_the_card(trained):
    report = trained[1].report
    first, *others = report.strategies
    model, *models = report.models
    part, *parts = report.slices
    hostile = "a|b\n# head `c` <img src=x> [d](e) *f*"
    broken = replace(
        report,
        strategies=(replace(first, name=hostile), *others),
        models=(replace(model, model_id=hostile), *models),
        slices=(replace(part, value=hostile), *parts),
        best_single=hostile,
    )
    card = render_card(trained[1].artifact, broken)
    plain = render_card(trained[1].artifact, report)
    assert [len(row) for row in tables_of(card)] == [len(row) for row in tables_of(plain)]
    assert not re.search(r"(?<!\\)<img", card)
    assert not re.search(r"(?<!\\)\]\(e\)", card)
    assert "\n# head" not in card


def test_a_name_cannot_end_the_code_block_of_the_config(trained):
    name = "a\n```\n<img src=x>"
    candidates = [CandidateConfig(id=name, modalities=["text"])]
    card = render_card(trained[1].artifact, trained[1].report, candidates=candidates)
    lines = card.split("```yaml\n", 1)[1].split("\n```\n", 1)[0]
    assert yaml.safe_load(lines)["candidates"][0]["id"] == name


def test_escaped_text_is_one_line():
    assert escaped("a\n|b\\_") == "a \\|b\\\\\\_"
    assert escaped("best_single _x_") == "best_single \\_x\\_"


def test_it_says_where_the_router_fails(trained):
    card = card_of(trained)
    assert "Never scored on a picture: sim-large-text, sim-small-text." in card
    assert "Least predictable model" in card
