"""Candidates that stand for a column of another name: own models on a router of tiers."""

from __future__ import annotations

import numpy as np
import pytest

from router_runtime.artifacts import load_artifact
from router_runtime.candidates import names_of
from router_runtime.config import CandidateConfig, RuntimeConfig
from router_runtime.errors import ConfigError
from router_runtime.model_router import ModelRouter
from router_runtime.yaml_config import validate
from router_training.config import TrainingConfig

COLUMNS = ("weak", "strong")
PRICE = {"input_mtok": 1, "output_mtok": 2}
LARGE, SMALL = "sim-large-vl", "sim-small-text"


def config(folder, *candidates, **more):
    content = {"artifact": folder, "candidates": list(candidates), **more}
    return validate(RuntimeConfig, content, source="test")


def mine(name, tier, **more):
    both = ["text", "image"]
    return {"id": name, "tier": tier, "modalities": both, "price": PRICE, **more}


@pytest.fixture
def folder(trained):
    return trained[0].output


def test_a_column_is_called_as_the_candidate_that_has_it_as_its_tier():
    own = CandidateConfig(id="mine", tier="strong", price=PRICE)
    assert names_of([own], columns=COLUMNS) == ("weak", "mine")
    swapped = [CandidateConfig(id=a, tier=b, price=PRICE) for a, b in (COLUMNS, COLUMNS[::-1])]
    assert names_of(swapped, columns=COLUMNS) == ("strong", "weak")


def test_decisions_speak_of_own_models_and_predict_as_the_columns_do(folder):
    plain = ModelRouter(folder)
    tiers = [mine("my-large", LARGE), mine("my-small", SMALL)]
    router = ModelRouter.from_config(config(folder, *tiers, policy="quality"))
    text = "What is 17 + 25?"
    decision, learned = router.decide(text), plain.decide(text)
    assert decision.model_id in ("my-large", "my-small")
    assert decision.probabilities["my-large"] == learned.probabilities[LARGE]
    assert decision.probabilities["my-small"] == learned.probabilities[SMALL]
    assert set(decision.ranking) == {"my-large", "my-small"}
    assert set(decision.ineligible.values()) == {"not_configured"}
    assert np.isfinite(decision.expected_cost["my-small"])
    assert router.artifact.artifact_id == plain.artifact.artifact_id


def test_policies_name_own_models(folder):
    policies = {
        "sure": {"kind": "cheapest_qualified", "thresholds": {"my-small": 0.5}},
        "one": {"kind": "fixed", "model": "my-large"},
    }
    tiers = [mine("my-large", LARGE), mine("my-small", SMALL)]
    settled = config(folder, *tiers, policies=policies, policy="one")
    router = ModelRouter.from_config(settled)
    assert router.route("What is 17 + 25?") == "my-large"
    assert router.policy_config("sure").thresholds == {"my-small": 0.5}
    with pytest.raises(ConfigError, match=SMALL):
        wrong = {"sure": {"kind": "cheapest_qualified", "thresholds": {SMALL: 0.5}}}
        ModelRouter.from_config(config(folder, *tiers, policies=wrong))


def test_the_recommended_policy_falls_back_to_the_own_model(folder):
    artifact = load_artifact(folder)
    fallback = artifact.recommended_policy["fallback"]["model"]
    names = tuple("mine" if m == fallback else m for m in artifact.model_ids)
    renamed = artifact.renamed(names)
    assert renamed.recommended_policy["fallback"]["model"] == "mine"
    assert renamed.scored_modalities["mine"] == artifact.scored_modalities[fallback]
    assert renamed.cost_model.model_ids == names
    thresholds = {"kind": "cheapest_qualified", "thresholds": {fallback: 0.5}, "fallback": None}
    changed = artifact.__class__(**{**vars(artifact), "recommended_policy": thresholds})
    assert changed.renamed(names).recommended_policy["thresholds"] == {"mine": 0.5}


def test_an_own_model_beside_one_that_the_artifact_knows(folder):
    known = {"id": LARGE, "modalities": ["text", "image"], "price": PRICE}
    router = ModelRouter.from_config(config(folder, known, mine("my-small", SMALL)))
    assert set(router.decide("What is 17 + 25?").ranking) == {LARGE, "my-small"}


@pytest.mark.parametrize(
    ("candidates", "message"),
    [
        ([mine("a", "huge")], "tier 'huge', which the artifact does not have"),
        ([{"id": "a", "price": PRICE}], "Say with 'tier' which of these it is like"),
        ([mine("a", LARGE), mine("b", LARGE)], "'a' and 'b' are both 'sim-large-vl'"),
        ([mine("a", LARGE), {"id": LARGE, "price": PRICE}], "are both 'sim-large-vl'"),
        ([mine(LARGE, SMALL)], "the name of another column"),
        ([{"id": "a", "tier": LARGE}], "no cost of its own"),
    ],
)
def test_a_tier_that_means_nothing_is_refused(folder, candidates, message):
    with pytest.raises(ConfigError, match=message):
        ModelRouter.from_config(config(folder, *candidates))


def test_relative_costs_count_as_costs_of_their_own(folder):
    tiers = [{"id": "a", "tier": LARGE, "cost": 1}, {"id": "b", "tier": SMALL}]
    with pytest.raises(ConfigError, match="'b' has a 'tier' and no cost"):
        config(folder, *tiers)
    bare = [{k: v for k, v in tier.items() if k != "cost"} for tier in tiers]
    router = ModelRouter.from_config(config(folder, *bare, model_costs={"a": 1, "b": 0.1}))
    assert router.cost_unit == "relative"


def test_a_direct_model_and_training_have_no_tiers(folder):
    with pytest.raises(ConfigError, match="never routed to"):
        config(folder, direct=[mine("a", LARGE)])
    content = {"output": "somewhere", "candidates": [mine("a", LARGE)]}
    with pytest.raises(ConfigError, match="counts only where an artifact serves"):
        validate(TrainingConfig, content, source="test")
