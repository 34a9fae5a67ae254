from __future__ import annotations

from pathlib import Path

import pytest

from router_runtime.errors import ConfigError
from router_runtime.pricing import price_from_mapping
from router_runtime.simulator.config import load_simulator_config
from router_training.simulated import (
    SIMULATED_MODALITIES,
    SIMULATED_MODELS,
    SIMULATED_PRICES,
)

ROOT = Path(__file__).resolve().parents[3]


def written(folder, text):
    (folder / "simulator.yml").write_text(text)
    return folder / "simulator.yml"


def test_answers_are_relative_to_the_config_file(tmp_path):
    config = load_simulator_config(written(tmp_path, "answers: a.jsonl\nmodels: {m: {}}\n"))
    assert config.answers == tmp_path / "a.jsonl"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("models: {}", "models"),
        ("models: {m: {errors: {rate: 0.1, kinds: [gremlins]}}}", "gremlins"),
        ("models: {m: {errors: {rate: 0.1, kinds: []}}}", "at least one"),
        ("models: {m: {skills: {code: [0.5, 1.5]}}}", "skills"),
        ("models: {m: {judge: {accuracy: 1}}}", "role 'judge'"),
        ("models: {m: {dimensions: 3}}", "role 'embedding'"),
        ("models: {m: {role: judge, skills: {}}}", "role 'candidate'"),
        ("models: {m: {}}\ntopics: {code: {match: '('}}", "regular expression"),
        ("models: {m: {temper: 1}}", "temper"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(tmp_path, text, said):
    with pytest.raises(ConfigError, match=said):
        load_simulator_config(written(tmp_path, text))


def test_the_shipped_config_has_the_simulated_models_of_the_workload():
    config = load_simulator_config(ROOT / "configs" / "simulator.yml")
    candidates = {name: m for name, m in config.models.items() if m.role == "candidate"}
    assert list(candidates) == list(SIMULATED_MODELS)
    for name, model in candidates.items():
        assert model.skills == SIMULATED_MODELS[name].skills
        assert model.modalities == SIMULATED_MODALITIES[name]
        assert model.usage.verbosity == SIMULATED_MODELS[name].verbosity
        price = price_from_mapping(model.price.model_dump())
        assert price == SIMULATED_PRICES[name]
    assert {m.role for m in config.models.values()} == {"candidate", "judge", "embedding"}
