"""LiteLLM's model_list becomes candidates and models that are called by name."""

from __future__ import annotations

import pytest
import yaml

from router_runtime.config import RuntimeConfig
from router_runtime.errors import ConfigError
from router_runtime.legacy.litellm_config import convert_litellm_config

PROXY = """
model_list:
  - model_name: gpt-4o
    litellm_params:
      model: openai/gpt-4o
      api_key: os.environ/MY_OPENAI_KEY
      rpm: 60
      tpm: 100000
      timeout: 30
      temperature: 0.2
      input_cost_per_token: 0.0000025
      output_cost_per_token: 0.00001
    model_info: {supports_vision: true, supports_function_calling: true, max_input_tokens: 128000}
  - model_name: house-llama
    litellm_params:
      model: hosted_vllm/meta-llama/Llama-3-8B
      api_base: http://127.0.0.1:8000/v1
      stream_timeout: 5
    model_info: {id: x, supports_response_schema: false}
  - model_name: azure-small
    litellm_params:
      model: azure/my-deployment
      api_base: os.environ/AZURE_BASE
      api_version: 2024-10-21
      api_key: sk-written-into-the-file
  - model_name: vectors
    litellm_params: {model: openai/text-embedding-3-small, api_base: "http://127.0.0.1:9000/v1"}
    model_info: {mode: embedding, input_cost_per_token: 2.0e-08}
  - model_name: claude
    litellm_params: {model: anthropic/claude-3}
  - model_name: gpt-4o
    litellm_params: {model: azure/gpt-4o-eu, api_base: "https://eu.example"}
  - model_name: fast
    litellm_params: {model: groq/llama-3}
litellm_settings: {drop_params: true}
general_settings: {master_key: sk-1234}
"""


@pytest.fixture
def convert(tmp_path):
    def converted(text=PROXY, **options):
        path = tmp_path / "proxy.yml"
        path.write_text(text)
        return convert_litellm_config(path, artifact="../a", **options)

    return converted


def by_id(models):
    return {model["id"]: model for model in models}


def test_names_targets_limits_prices_and_capabilities_are_kept(convert):
    models = by_id(convert().config["candidates"])
    assert models["gpt-4o"] == {
        "id": "gpt-4o",
        "modalities": ["text", "image"],
        "context_window": 128000,
        "tools": True,
        "price": {"input_mtok": "2.5", "output_mtok": "10"},
        "target": {
            "kind": "openai",
            "api_key_env": "MY_OPENAI_KEY",
            "requests_per_minute": 60,
            "tokens_per_minute": 100000,
            "timeout_s": 30,
            "parameters": {"temperature": 0.2},
        },
    }
    assert models["house-llama"]["target"] == {
        "kind": "vllm",
        "base_url": "http://127.0.0.1:8000/v1",
        "model": "meta-llama/Llama-3-8B",
    }
    assert models["house-llama"]["json_mode"] is False
    assert models["azure-small"]["target"]["endpoint"] == "${AZURE_BASE}"
    assert models["azure-small"]["target"]["model"] == "my-deployment"
    assert models["fast"]["target"]["api_key_env"] == "GROQ_API_KEY"


def test_embedding_models_are_called_by_name_only(convert):
    direct = by_id(convert().config["direct"])
    assert set(direct) == {"vectors"}
    assert direct["vectors"]["price"] == {"input_mtok": "0.02", "output_mtok": "0"}
    assert direct["vectors"]["target"]["kind"] == "compatible"


def test_models_that_the_artifact_does_not_know_are_called_by_name_only(convert):
    config = convert(model_ids=["gpt-4o"]).config
    assert set(by_id(config["candidates"])) == {"gpt-4o"}
    assert "house-llama" in by_id(config["direct"])


def test_an_artifact_that_knows_none_of_them_leaves_candidates_and_says_what_is_missing(convert):
    converted = convert(model_ids=["weak", "strong"])
    assert {"gpt-4o", "house-llama"} <= set(by_id(converted.config["candidates"]))
    assert set(by_id(converted.config["direct"])) == {"vectors"}
    (missing,) = [line for line in converted.without_counterpart if "'tier'" in line]
    assert "gpt-4o" in missing and "weak, strong" in missing and "vectors" not in missing


def test_a_router_of_litellms_own_is_told_from_a_provider(convert):
    text = PROXY.replace("groq/llama-3", "auto_router/complexity_router")
    (line,) = [line for line in convert(text).without_counterpart if "own router" in line]
    assert line.startswith("model_list.6")


def test_what_has_no_counterpart_is_listed_and_no_key_is_kept(convert):
    converted = convert()
    lost = "\n".join(converted.without_counterpart)
    for key in ("litellm_settings", "general_settings", "model_list.1.litellm_params.stream_tim"):
        assert key in lost
    assert "provider 'anthropic'" in lost
    assert "another deployment of 'gpt-4o'" in lost
    assert "AZURE_SMALL_API_KEY" in lost
    assert "sk-" not in lost + yaml.safe_dump(converted.config)


def test_the_result_is_a_config_that_can_be_read(convert, monkeypatch):
    written = yaml.safe_dump(convert().config).replace("${AZURE_BASE}", "https://eu.example")
    config = RuntimeConfig.model_validate(yaml.safe_load(written))
    assert [model.id for model in config.direct] == ["vectors"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("model_list: []", "model_list"),
        ("models: [a]", "model_list"),
        ("model_list: [a]", "must be a mapping"),
        ("model_list: [{litellm_params: {model: gpt-4o}}]", "no 'model_name'"),
        (
            "model_list: [{model_name: a, litellm_params: {model: a, input_cost_per_token: dear}}]",
            "no number of US dollars",
        ),
    ],
)
def test_what_is_no_proxy_config_is_refused(convert, text, said):
    with pytest.raises(ConfigError, match=said):
        convert(text)
