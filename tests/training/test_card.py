from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import yaml

from router_runtime.config import CandidateConfig, RuntimeConfig
from router_runtime.model_router import ModelRouter
from router_runtime.yaml_config import validate
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


def labels_json(**changes):
    from router_training.labelled_by import AskedModel, JudgedBy, LabelledBy, LabelledCells
    from router_training.trust_report import CandidateTrust, JudgeTrust, Share, TrustReport

    judge = AskedModel("big|judge", "openai", "big", "0" * 64)
    trust = TrustReport(
        samples=10,
        answered=20,
        scored=18,
        decided={"judge": 12, "match": 6},
        no_verdict=Share(14, 1 / 7, 0.05, 0.4),
        judges=(
            JudgeTrust(
                "big|judge",
                Share(14, 1 / 7, 0.05, 0.4),
                Share(14, 1 / 7, 0.05, 0.4),
                {"no": 4, "yes": 8},
                repeats=Share(6, 0.9, 0.6, 0.98),
            ),
        ),
        candidates=(CandidateTrust("a", 20, 18, 0.5, 2, 1.0),),
    )
    found = LabelledBy(
        rows=10,
        records_sha256="1" * 64,
        candidates=(AskedModel("a", "openai", "a", "0" * 64),),
        judge=JudgedBy((judge,), "correctness", 1, "2" * 64, 2, "majority", None, ()),
        scorers={"match": "exact"},
        scoring_sha256="3" * 64,
        cells={"a": LabelledCells(18, {"no verdict": 2}, 0.5)},
        trust=trust,
    )
    return replace(found, **changes).to_json()


def labels_of(trained, content) -> str:
    artifact = trained[1].artifact
    artifact = replace(artifact, training={**artifact.training, "labels": content})
    card = render_card(artifact, trained[1].report)
    return card.split("## Labels\n")[1].split("\n## ")[0]


def test_it_says_who_judged_and_how_far_that_can_be_trusted(trained):
    text = labels_of(trained, labels_json())
    assert "decided by: judge 12, match 6." in text
    assert "10.0% of the answers that could have a score have none." in text
    assert "The judge was big\\|judge, by the rubric correctness 1." in text
    assert "90.0% [60.0%, 98.0%]" in text
    assert "2 answers read like instructions to the judge." in text
    assert "No human has checked" in text
    assert "favour" not in text
    assert "## Labels" not in card_of(trained)


def test_it_warns_where_a_candidate_judged(trained):
    from router_training.labelled_by import LabelledBy

    found = LabelledBy.from_json(labels_json())
    own = replace(found.judge, candidates=("a",))
    text = labels_of(trained, replace(found, judge=own).to_json())
    assert "**Of the candidates, a judged, which may favour its own answers.**" in text


def test_durations_have_a_column_where_some_are_known(trained):
    report = trained[1].report
    first, *others = report.models
    timed = replace(report, models=(replace(first, median_seconds=1.25), *others))
    rows = tables_of(render_card(trained[1].artifact, timed))
    row = next(row for row in rows if row[0].strip() == first.model_id and len(row) == 10)
    assert row[-1].strip() == "1.250"
    assert "median s" not in card_of(trained)
