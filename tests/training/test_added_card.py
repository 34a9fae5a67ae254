from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import yaml

from router_runtime.artifacts import Artifact
from router_runtime.errors import ArtifactError
from router_runtime.prediction.calibration import Calibrator
from router_runtime.prediction.feature_parts import FeatureParts
from router_runtime.prediction.features import FeatureSpec
from router_runtime.prediction.heads.prior import PriorHead
from router_training.added_card import HEADING, extend_card

FIGURE = {"estimate": 0.75, "low": 0.7, "high": 0.8}
JUDGED = {
    "model": "new",
    "labels": 200,
    "uncertainty": 0.0625,
    "held_out": {
        "labels": 200,
        "auc": FIGURE,
        "brier": FIGURE,
        "brier_gain": FIGURE,
        "ece": {"estimate": 0.05, "low": None, "high": None},
    },
}
CARD = "---\ntags:\n- llm-router\nmodels:\n- old\nhead: prior\n---\n# Router artifact\n\nText.\n"


def artifact(*entries: dict) -> Artifact:
    models = ("old", *(entry["model"] for entry in entries))
    return Artifact(
        model_ids=models,
        parts=FeatureParts(
            FeatureSpec.model_validate({"encoders": [{"kind": "embedded"}]}),
            encoder_fingerprints=(None,),
            encoder_states=(None,),
            head=PriorHead(np.full(len(models), 0.5), n_features=1),
        ),
        calibrator=Calibrator.identity(len(models)),
        recommended_policy={"kind": "utility", "lambda_per_usd": 2.0},
        training={"added": list(entries)},
    )


def test_the_card_gets_a_row_of_figures_and_the_policy():
    card = extend_card(CARD, artifact(JUDGED))
    assert "Text.\n" in card
    interval = "0.750 [0.700, 0.800]"
    assert f"| `new` | 200 | {interval} | {interval} | +0.7500 [+0.7000, +0.8000] | 0.050 " in card
    assert card.endswith("```yaml\nkind: utility\nlambda_per_usd: 2.0\n```\n")


def test_figures_that_nobody_measured_are_no_numbers():
    card = extend_card(CARD, artifact({**JUDGED, "held_out": None}))
    assert "| `new` | 200 | - | - | - | - | 0.062 |" in card


def test_the_front_matter_lists_the_new_model():
    card = extend_card(CARD, artifact(JUDGED, {**JUDGED, "model": "yes"}))
    front = yaml.safe_load(card.split("---\n")[1])
    assert front == {"tags": ["llm-router"], "models": ["old", "new", "yes"], "head": "prior"}


def test_a_second_addition_replaces_the_section():
    once = extend_card(CARD, artifact(JUDGED))
    twice = extend_card(once, artifact(JUDGED, {**JUDGED, "model": "newer"}))
    assert twice.count(HEADING) == 1
    assert twice == extend_card(CARD, artifact(JUDGED, {**JUDGED, "model": "newer"}))


def test_a_name_cannot_leave_its_cell():
    card = extend_card("# Card", artifact({**JUDGED, "model": "a`|\n<b>"}))
    assert "| `a'/ <b>` | 200 |" in card


def test_a_card_without_front_matter_or_text_is_extended_too():
    for card in ("", "---\nnever closed", "---\nhead: x\n---\n# Card"):
        extended = extend_card(card, artifact(JUDGED))
        assert extended.startswith(card)
        assert HEADING in extended


@pytest.mark.parametrize("entry", [{}, {**JUDGED, "held_out": {}}, {**JUDGED, "uncertainty": "x"}])
def test_earlier_entries_that_are_malformed_are_told(entry):
    with pytest.raises(ArtifactError, match=r"training\.added"):
        extend_card(CARD, replace(artifact(), training={"added": [entry]}))
