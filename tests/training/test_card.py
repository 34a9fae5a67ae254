from __future__ import annotations

from pathlib import Path

import yaml

from router_runtime.config import CandidateConfig, RuntimeConfig, validate
from router_training.card import render_card


def card_of(trained) -> str:
    return (trained[0].output / "README.md").read_text()


def test_the_front_matter_is_yaml_with_models_and_figures(trained):
    _, matter, _ = card_of(trained).split("---\n", 2)
    content = yaml.safe_load(matter)
    result = trained[1]
    assert content["models"] == list(result.artifact.model_ids)
    assert content["head"] == "logistic"
    router = result.report.strategy("router").outcome
    assert content["metrics"]["router_accuracy"] == round(router.quality, 4)


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


def test_it_says_where_the_router_fails(trained):
    card = card_of(trained)
    assert "Never scored on a picture: sim-large-text, sim-small-text." in card
    assert "Least predictable model" in card
