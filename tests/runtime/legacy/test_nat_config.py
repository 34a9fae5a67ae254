import pytest

from router_runtime.config import RuntimeConfig
from router_runtime.errors import ConfigError
from router_runtime.legacy.nat_config import convert_nat_config

SERVICE = """
general:
  front_end:
    _type: fastapi
    endpoints:
      - path: /health
functions:
  healthcheck_fn:
    _type: healthcheck
  nn_objective_fn:
    _type: nn_objective_fn
    model_thresholds:
      'gpt-5-chat': 0.70
      'nvidia/nemotron-nano-12b-v2-vl': 0.55
    model_costs:
      'gpt-5-chat': 1.0
      'nvidia/nemotron-nano-12b-v2-vl': 0.3
    cost_aware: true
  sfc_router_fn:
    _type: sfc_router
    objective_fn: nn_objective_fn
workflow:
  _type: sfc_router
  objective_fn: hf_intent_objective_fn
"""


def written(tmp_path, text):
    path = tmp_path / "config.yml"
    path.write_text(text)
    return path


def test_thresholds_and_costs_keep_their_values(tmp_path):
    converted = convert_nat_config(written(tmp_path, SERVICE), artifact="../router_artifacts/x")
    assert converted.config == {
        "artifact": "../router_artifacts/x",
        "model_thresholds": {"gpt-5-chat": 0.70, "nvidia/nemotron-nano-12b-v2-vl": 0.55},
        "model_costs": {"gpt-5-chat": 1.0, "nvidia/nemotron-nano-12b-v2-vl": 0.3},
    }
    RuntimeConfig.model_validate(converted.config)


def test_every_key_without_a_counterpart_is_reported(tmp_path):
    converted = convert_nat_config(written(tmp_path, SERVICE))
    assert converted.without_counterpart == (
        "general.front_end._type",
        "general.front_end.endpoints",
        "functions.healthcheck_fn._type",
        "functions.nn_objective_fn.cost_aware",
        "workflow._type",
        "workflow.objective_fn",
    )


def test_the_block_of_the_manual_converts_without_a_loss(tmp_path):
    text = SERVICE[SERVICE.index("functions:") : SERVICE.index("workflow:")]
    text = text.replace("    cost_aware: true\n", "").replace(
        "  healthcheck_fn:\n    _type: healthcheck\n", ""
    )
    assert convert_nat_config(written(tmp_path, text)).without_counterpart == ()


def test_a_repeated_model_is_refused(tmp_path):
    text = SERVICE.replace("'nvidia/nemotron-nano-12b-v2-vl': 0.55", "'gpt-5-chat': 0.55")
    with pytest.raises(ConfigError, match=r"line 14: key 'gpt-5-chat' is repeated"):
        convert_nat_config(written(tmp_path, text))


@pytest.mark.parametrize("threshold", ["1.5", "high", "-0.1"])
def test_a_threshold_that_is_no_probability_is_refused(tmp_path, threshold):
    text = SERVICE.replace("0.70", threshold)
    with pytest.raises(ConfigError, match=r"model_thresholds\.gpt-5-chat"):
        convert_nat_config(written(tmp_path, text))


@pytest.mark.parametrize(
    "text",
    [
        "functions: {a: {_type: hf_intent_objective_fn}}",
        "functions: [nn_objective_fn]",
        "workflow: {}",
        "functions: {a: {_type: nn_objective_fn}, b: {_type: nn_objective_fn}}",
    ],
)
def test_a_file_without_exactly_one_block_is_refused(tmp_path, text):
    with pytest.raises(ConfigError, match="expected one block"):
        convert_nat_config(written(tmp_path, text))


def test_a_block_of_another_name_is_found_by_its_type(tmp_path):
    text = SERVICE.replace("nn_objective_fn:", "mine:").replace(
        "objective_fn: nn_objective_fn", "objective_fn: mine"
    )
    converted = convert_nat_config(written(tmp_path, text))
    assert converted.config["model_costs"]["gpt-5-chat"] == 1.0
    assert "functions.sfc_router_fn.objective_fn" not in converted.without_counterpart


def test_a_block_without_thresholds_converts_to_none(tmp_path):
    text = "functions: {nn: {_type: nn_objective_fn, model_thresholds: null}}"
    assert "model_thresholds" not in convert_nat_config(written(tmp_path, text)).config


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.yml"):
        convert_nat_config(tmp_path / "none.yml")
