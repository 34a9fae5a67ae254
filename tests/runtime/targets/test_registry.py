from __future__ import annotations

import subprocess
import sys

import pytest

from router_runtime.config import CandidateConfig
from router_runtime.errors import ConfigError, MissingDependencyError
from router_runtime.target_config import (
    AzureTargetConfig,
    CompatibleTargetConfig,
    OpenAITargetConfig,
)
from router_runtime.targets.registry import build_target
from router_runtime.yaml_config import validate

LOCAL = CompatibleTargetConfig(kind="compatible", base_url="http://127.0.0.1:9/v1")


def test_a_target_knows_its_candidate_and_the_servers_name_for_it():
    pytest.importorskip("openai")
    target = build_target("mine", LOCAL.model_copy(update={"model": "theirs"}), environment={})
    assert (target.model_id, target.model) == ("mine", "theirs")


def test_the_key_is_taken_from_the_named_variable_and_shown_nowhere():
    pytest.importorskip("openai")
    config = AzureTargetConfig(kind="azure", endpoint="https://x.example", api_key_env="MY_KEY")
    target = build_target("m", config, environment={"MY_KEY": " sk-canary\n"})
    assert "canary" not in repr(target)
    assert target._key == "sk-canary"


@pytest.mark.parametrize("environment", [{}, {"OPENAI_API_KEY": " "}])
def test_a_key_that_is_not_set_is_named(environment):
    with pytest.raises(ConfigError, match=r"'m'.*'OPENAI_API_KEY' is not set.*api_key_env: null"):
        build_target("m", OpenAITargetConfig(), environment=environment)


def test_the_environment_is_the_processs_by_default(monkeypatch):
    pytest.importorskip("openai")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-canary")
    assert build_target("m", OpenAITargetConfig())._key == "sk-canary"


@pytest.mark.parametrize("key", ["canary\nX-Evil: 1", "canary\u00e9"])
def test_a_key_that_no_header_may_carry_is_refused_unshown(key):
    with pytest.raises(ConfigError, match="'OPENAI_API_KEY' holds characters") as caught:
        build_target("m", OpenAITargetConfig(), environment={"OPENAI_API_KEY": key})
    assert "canary" not in str(caught.value)


def test_a_key_in_the_place_of_its_variables_name_is_refused_unshown():
    content = {"id": "m", "target": {"kind": "openai", "api_key_env": "sk-canary"}}
    with pytest.raises(ConfigError, match="no name of an environment variable") as caught:
        validate(CandidateConfig, content, source="router.yml")
    assert "canary" not in str(caught.value)


def test_the_sdk_is_imported_when_a_target_is_built_and_missed_by_name(monkeypatch):
    code = "import router_runtime.targets.registry, sys; print('openai' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603 - own code
    assert run.stdout.strip() == "False"
    monkeypatch.setitem(sys.modules, "openai", None)
    monkeypatch.delitem(sys.modules, "router_runtime.targets.openai", raising=False)
    with pytest.raises(MissingDependencyError, match=r"model-router\[label\]"):
        build_target("m", LOCAL, environment={})


# --------------------------------------------------------------------------- URLs


@pytest.mark.parametrize(
    "url",
    [
        "http://user:canary@host/v1",
        "https://canary@host",
        "https://host/v1?key=canary",
        "https://host/v1#canary",
        "http://a\\@canary/v1",
        "ftp://canary/v1",
        "canary",
        "https://",
        "http://canary:99999/v1",
        "http://[canary/v1",
        "https://host/v1 canary",
        "https://canary/v1\n",
    ],
)
def test_a_url_that_cannot_be_used_is_refused_unshown(url):
    target = {"kind": "compatible", "base_url": url}
    with pytest.raises(ConfigError, match=r"base_url: it must be http\(s\)://host") as caught:
        validate(CandidateConfig, {"id": "m", "target": target}, source="test.yml")
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    ["http://127.0.0.1:8000/v1", "https://api.x.example", "http://[::1]:8000/v1/", "HTTPS://x/v1"],
)
def test_usual_urls_are_taken(url):
    assert CompatibleTargetConfig(kind="compatible", base_url=url).base_url == url
