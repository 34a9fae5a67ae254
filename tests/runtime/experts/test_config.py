from pathlib import Path

import pytest

from router_runtime.errors import ConfigError
from router_runtime.experts.config import ExpertsConfig, config_of_options, load_experts_config
from router_runtime.yaml_config import validate

SHIPPED = Path(__file__).resolve().parents[3] / "configs" / "experts-serve.yml"


def read(**content):
    return validate(ExpertsConfig, {"base": {"model": "m"}} | content, source="test")


def test_the_shipped_config_is_valid():
    config = load_experts_config(SHIPPED)
    assert set(config.adapters) == {"calendar", "claim-window", "provider-select"}
    assert all(path.is_absolute() for path in config.adapters.values())


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"allow_updates": True}, "adapters_root"),
        ({"evict": True}, "max_adapter_mb"),
        ({"name": "a", "adapters": {"a": "x"}}, "rename one"),
        ({"adapters": {"a/b": "x"}}, "letters, digits"),
        ({"images": {"fetch": {"hosts": ["a.org"]}}}, "data URIs"),
        ({"made_up": 1}, "unknown key"),
        ({"max_batch": 0}, "max_batch"),
        ({"api_key_env": "sk-secret"}, "environment variable"),
        ({"base": {"model": "m", "dtype": "int8"}}, "dtype"),
        ({"base": {"model": "m", "device": "tpu"}}, "device"),
    ],
)
def test_what_contradicts_itself_is_said(content, words):
    with pytest.raises(ConfigError, match=words):
        read(**content)


def test_paths_are_relative_to_the_file_and_hub_ids_stay(tmp_path):
    (tmp_path / "models" / "base").mkdir(parents=True)
    file = tmp_path / "experts.yml"
    file.write_text(
        "base: {model: models/base, chat_template: t.jinja}\nadapters: {a: ad/a}\n"
        "adapters_root: ad\n"
    )
    config = load_experts_config(file)
    assert config.base.model == str(tmp_path / "models" / "base")
    assert config.base_name == "models/base"
    assert config.base.chat_template == tmp_path / "t.jinja"
    assert config.adapters == {"a": tmp_path / "ad" / "a"}
    assert config.adapters_root == tmp_path / "ad"
    file.write_text("base: {model: Qwen/Qwen3-VL-8B-Instruct}\n")
    assert load_experts_config(file).base.model == "Qwen/Qwen3-VL-8B-Instruct"


def test_a_command_line_makes_a_config():
    options = {"name": "qwen", "base.device": None}
    config = config_of_options("some/base", ("a=x/y", "b=/z"), options)
    assert (config.base_name, config.base.device) == ("qwen", "auto")
    assert config.adapters == {"a": Path.cwd() / "x" / "y", "b": Path("/z")}


@pytest.mark.parametrize(
    ("entries", "words"),
    [(("a",), "name=folder"), (("=x",), "name=folder"), (("a=x", "a=y"), "given twice")],
)
def test_adapters_of_a_command_line_are_named_once(entries, words):
    with pytest.raises(ConfigError, match=words):
        config_of_options("b", entries, {})
