from __future__ import annotations

from pathlib import Path

import pytest

from router_runtime.config import load_config
from router_runtime.errors import ConfigError
from router_runtime.experts.config import load_experts_config
from router_runtime.prediction.encoders.specs import ClipSpec, EmbeddedSpec
from router_runtime.simulator.config import load_simulator_config
from router_training import recipe
from router_training.config import load_training_config
from router_training.fitting import LogisticConfig
from router_training.labelling.config import load_label_config
from router_training.tiers import load_tiers_config

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def read(tmp_path, text, **overrides):
    path = tmp_path / "train.yml"
    path.write_text(text)
    return load_training_config(path, overrides=overrides)


def test_output_alone_is_enough(tmp_path):
    config = read(tmp_path, "output: made\n")
    assert config.output == (tmp_path / "made").resolve()
    assert config.head == recipe.HEAD
    assert config.features == recipe.FEATURES
    assert config.features.encoders == (EmbeddedSpec(),)
    assert config.tune.goal == {"target_quality": 0.98, "max_cost_per_1k": None}


def test_names_stand_for_their_defaults(tmp_path):
    text = "output: made\nhead: logistic\nfeatures: {encoders: [clip, embedded]}\n"
    config = read(tmp_path, text)
    assert config.head == LogisticConfig()
    assert config.features.encoders == (ClipSpec(), EmbeddedSpec())


def test_values_of_the_command_line_win_and_are_relative_to_the_current_folder(
    tmp_path, monkeypatch
):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    config = read(
        tmp_path, "output: made\nseed: 1\n", **{"data.path": Path("records.jsonl"), "seed": 7}
    )
    assert config.data.path == (tmp_path / "elsewhere" / "records.jsonl").resolve()
    assert config.seed == 7


def test_a_folder_of_figures_is_relative_to_the_config_in_a_stack_too(tmp_path):
    head = "{kind: mlp, tensorboard: ../logs}"
    text = f"output: made\nhead: {{kind: stack, heads: [{{kind: logistic}}, {head}]}}\n"
    expected = (tmp_path / "../logs").resolve()
    assert read(tmp_path, text).head.heads[1].tensorboard == expected
    assert read(tmp_path, f"output: made\nhead: {head}\n").head.tensorboard == expected
    assert read(tmp_path, "output: made\nhead: mlp\n").head.tensorboard is None


def test_a_budget_replaces_the_default_goal(tmp_path):
    config = read(tmp_path, "output: made\ntune: {max_cost_per_1k: 2.5}\n")
    assert config.tune.goal == {"target_quality": None, "max_cost_per_1k": 2.5}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("output: made\nheads: mlp\n", "heads: unknown key"),
        ("output: made\nhead: transformer\n", "head"),
        ("output: made\nhead: {kind: mlp, hidden: 3}\n", "unknown key"),
        ("output: made\nsplit: {train: 0.9}\n", "the shares sum to 1.3"),
        ("output: made\nseed: -1\n", "seed"),
        ("output: made\nseed: 0\nseed: 0\n", "'seed' is repeated"),
        ("output: made\ntune: {target_quality: 1, max_cost_per_1k: 1}\n", "two goals"),
        ("output: made\ncandidates: [{id: a}, {id: a}]\n", "listed twice"),
        ("output: made\ncalibration: {method: magic}\n", "calibration.method"),
        ("seed: 0\n", "output: Field required"),
    ],
)
def test_a_wrong_config_is_refused_in_one_line(tmp_path, text, expected):
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "train.yml" in str(caught.value)


@pytest.mark.parametrize("name", sorted(path.name for path in CONFIGS.glob("*.yml")))
def test_every_shipped_config_is_valid(name):
    loaders = {
        "router.yml": load_config,
        "service.yml": load_config,
        "experts-serve.yml": load_experts_config,
        "experts-service.yml": load_config,
        "label.yml": load_label_config,
        "label-demo.yml": load_label_config,
        "simulator.yml": load_simulator_config,
        "tiers-service.yml": load_config,
        "tiers-tables.yml": load_tiers_config,
    }
    assert loaders.get(name, load_training_config)(CONFIGS / name)


def test_novelty_is_on_and_falls_back_unless_switched_off(tmp_path):
    novelty = read(tmp_path, "output: made\n").novelty
    assert (novelty.components, novelty.neighbours, novelty.shrink_above) == (32, 1, 0.98)
    assert (novelty.fallback.model, novelty.fallback.novelty_above) == (None, 0.99)
    assert read(tmp_path, "output: made\nnovelty: {fallback: off}\n").novelty.fallback == "off"


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("{enabled: false, components: 8}", "without novelty 'components' would change nothing"),
        ("{shrink_above: 2}", "novelty.shrink_above"),
        ("{fallback: {novelty_above: -1}}", "novelty_above"),
        ("{fallback: always}", "novelty.fallback"),
    ],
)
def test_novelty_that_makes_no_sense_is_refused(tmp_path, section, message):
    with pytest.raises(ConfigError, match=message):
        read(tmp_path, f"output: made\nnovelty: {section}\n")
