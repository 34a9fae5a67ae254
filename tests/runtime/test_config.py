from __future__ import annotations

from pathlib import Path

import pytest

from router_runtime.config import (
    CheapestQualifiedConfig,
    RuntimeConfig,
    UtilityConfig,
    load_config,
    validate_policy,
)
from router_runtime.errors import ConfigError
from router_runtime.yaml_config import read_yaml, validate


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "router.yml"
    path.write_text(text)
    return path


def refusal(tmp_path: Path, text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(written(tmp_path, text))
    message = str(caught.value)
    assert "\n" not in message
    assert "router.yml" in message
    return message


def test_a_full_config_is_read_and_the_artifact_is_relative_to_the_file(tmp_path):
    config = load_config(
        written(
            tmp_path,
            """
artifact: made/artifact
candidates:
  - {id: a, modalities: [text, image], context_window: 8000, price: {input_mtok: 1, output_mtok: 2}}
  - {id: b, price: {input_mtok: 0.1, output_mtok: 0.2, cached_input_mtok: 0.01, image: 0.001}}
policies:
  saver: {kind: utility, lambda_per_usd: 50}
  sure: {kind: cheapest_qualified, thresholds: {a: 0.7}, default_threshold: 0.2}
policy: saver
""",
        )
    )
    assert config.artifact == (tmp_path / "made/artifact").resolve()
    assert config.policies["saver"] == UtilityConfig(lambda_per_usd=50)
    assert config.policies["sure"] == CheapestQualifiedConfig(
        thresholds={"a": 0.7}, default_threshold=0.2
    )
    assert str(config.candidates[1].price.image) == "0.001"


def test_thresholds_and_costs_are_accepted(tmp_path):
    text = "artifact: x\nmodel_thresholds: {gpt-5-chat: 0.7}\nmodel_costs: {gpt-5-chat: 1.0}\n"
    config = load_config(written(tmp_path, text))
    assert config.model_thresholds == {"gpt-5-chat": 0.7}
    assert config.model_costs == {"gpt-5-chat": 1.0}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("artifact: x\nthreshhold: 1\n", "threshhold: unknown key (known: artifact,"),
        ("artifact: x\nartifact: y\n", "line 2: key 'artifact' is repeated"),
        ("artifact: x\nmodel_thresholds: {a: 0.5, a: 0.6}\n", "key 'a' is repeated"),
        ("artifact: x\nmodel_thresholds: {a: 1.5}\n", "model_thresholds.a"),
        ("artifact: x\ncandidates: [{id: a, modalities: []}]\n", "at least one modality"),
        ("artifact: x\ncandidates: [{id: a}, {id: a}]\n", "'a' is listed twice"),
        (
            "artifact: x\ncandidates:\n - {id: a, cost: 1}\n"
            " - {id: b, price: {input_mtok: 1, output_mtok: 1}}\n",
            "cannot be compared",
        ),
        (
            "artifact: x\nmodel_thresholds: {a: 0.5}\npolicy: quality\n",
            "say the same thing twice",
        ),
        ("artifact: x\npolicies: {p: {kind: utility}}\n", "lambda_per_usd"),
        ("artifact: x\npolicies: {p: {kind: cleverest}}\n", "policies.p"),
        ("candidates: [{}]\n", "candidates.0.id: Field required"),
        ("- a\n", "expected a mapping"),
        ("", "expected a mapping"),
        ("a: [", "not valid YAML"),
        ("a: &a [1]\nb: *a\n", "line 2: aliases (*a) are not read"),
        ("a: &a [*a]\n", "aliases (*a) are not read"),
        ("- " * 5000 + "a\n", "levels deep"),
        ("[" * 50_000, "levels deep"),
        ('artifact: "a\\0b"\n', "holds a NUL"),
        ("artifact: ${HOME\n", "unfinished variable"),
        ("artifact: x\nencoder: {timeout_s: .inf}\n", "encoder.timeout_s"),
        ("artifact: x\nencoder: {device: potato}\n", "encoder.device: "),
        ("artifact: x\nencoder: {batch_size: 0}\n", "greater than or equal to 1, not 0"),
        ("artifact: x\ncandidates: a\n", "candidates: give a list, not 'a'"),
        ("artifact: x\nimages: 3\n", "images: give a mapping of keys to values, not 3"),
        ("artifact: ${MODEL_ROUTER_TEST_UNSET}\n", "'MODEL_ROUTER_TEST_UNSET' is not set"),
    ],
)
def test_a_wrong_config_is_refused_in_one_line_that_names_the_place(tmp_path, text, expected):
    assert expected in refusal(tmp_path, text)


def test_the_known_keys_are_listed_once(tmp_path):
    message = refusal(tmp_path, "artifact: x\nfirst: 1\nsecond: 2\n")
    assert message.count("(known:") == 1
    assert message.count("unknown key") == 2


def test_a_missing_file_is_named():
    with pytest.raises(ConfigError, match=r"nowhere\.yml' does not exist"):
        load_config("nowhere.yml")


def test_variables_are_filled_from_the_environment_or_their_default(tmp_path, monkeypatch):
    monkeypatch.setenv("MODEL_ROUTER_TEST_HOST", "127.0.0.1")
    path = written(tmp_path, "url: http://${MODEL_ROUTER_TEST_HOST}:${MODEL_ROUTER_PORT:-80}/\n")
    assert read_yaml(path) == {"url": "http://127.0.0.1:80/"}


def test_a_value_from_the_environment_is_in_no_message(tmp_path, monkeypatch):
    monkeypatch.setenv("MODEL_ROUTER_TEST_SECRET", "canary")
    for line in ("timeout_s: ${MODEL_ROUTER_TEST_SECRET}", "device: x${MODEL_ROUTER_TEST_SECRET}"):
        message = refusal(tmp_path, f"artifact: x\nencoder:\n  {line}\n")
        assert "canary" not in message
        assert "from the environment" in message


def test_every_shipped_runtime_config_is_valid():
    root = Path(__file__).resolve().parents[2] / "configs"
    config = load_config(root / "router.yml")
    assert config.policy in config.policies


def test_the_shipped_experts_are_candidates_of_one_file_beside_the_config():
    root = Path(__file__).resolve().parents[2] / "configs"
    config = load_config(root / "experts-service.yml")
    targets = [candidate.target for candidate in config.candidates]
    assert [target.kind for target in targets] == ["peft"] * 3 + ["compatible"]
    assert {target.experts for target in targets[:3]} == {root / "experts-serve.yml"}
    assert config.policy in config.policies


def test_an_experts_config_is_relative_to_the_file_that_names_it(tmp_path):
    target = "{kind: peft, experts: ../e.yml, max_concurrency: 2}"
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "router.yml").write_text(
        f"artifact: x\ncandidates: [{{id: a, target: {target}}}, {{id: b}}]\n"
        f"direct: [{{id: d, target: {target}}}]\n"
    )
    config = load_config(tmp_path / "c" / "router.yml")
    for candidate in (config.candidates[0], config.direct[0]):
        assert candidate.target.experts == tmp_path / "e.yml"
        assert "max_concurrency" in candidate.target.model_fields_set  # so that it binds


def test_a_config_is_frozen():
    config = validate(RuntimeConfig, {"artifact": "x"}, source="test")
    with pytest.raises(ValueError, match="frozen"):
        config.policy = "quality"


def test_a_policy_of_unknown_kind_is_refused():
    with pytest.raises(ConfigError, match="recommended"):
        validate_policy({"kind": "magic"}, source="recommended")


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ("{kind: utility, lambda_per_usd: 1, fallback: {model: a, novelty_above: 1.5}}", "1.5"),
        ("{kind: utility, lambda_per_usd: 1, fallback: {novelty_above: 0.5}}", "fallback.model"),
        ("{kind: fixed, model: a, fallback: {model: a}}", "unknown key"),
    ],
)
def test_a_fallback_that_makes_no_sense_is_refused(tmp_path, policy, message):
    (tmp_path / "router.yml").write_text(f"artifact: x\npolicies: {{p: {policy}}}\n")
    with pytest.raises(ConfigError, match=message):
        load_config(tmp_path / "router.yml")


@pytest.mark.parametrize(
    "policy",
    ["utility, lambda_per_usd: 1", "cheapest_qualified", "highest_probability"],
)
def test_every_policy_but_fixed_may_have_a_fallback(tmp_path, policy):
    (tmp_path / "router.yml").write_text(
        f"artifact: x\npolicies: {{p: {{kind: {policy}, fallback: {{model: a}}}}}}\n"
    )
    fallback = load_config(tmp_path / "router.yml").policies["p"].fallback
    assert (fallback.model, fallback.novelty_above) == ("a", 0.99)
