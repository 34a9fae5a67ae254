"""YAML to frozen models, and values from a command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from router_runtime.errors import ConfigError
from router_runtime.yaml_config import StrictModel, read_yaml, validate, with_overrides


class Inner(StrictModel):
    path: Path = Path("x")


class Outer(StrictModel):
    inner: Inner = Inner()
    size: int = 1


def test_an_override_sets_a_key_of_a_section_that_may_be_absent():
    content = with_overrides({"size": 2}, {"inner.path": "p", "size": 3}, source="f")
    assert validate(Outer, content, source="f") == Outer(inner=Inner(path=Path("p")), size=3)


def test_a_path_from_a_command_line_is_of_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = with_overrides({}, {"inner.path": Path("data")}, source="f")
    assert content == {"inner": {"path": str(tmp_path / "data")}}


def test_a_section_that_is_no_mapping_is_named():
    with pytest.raises(ConfigError, match=r"f: 'inner' must be a mapping"):
        with_overrides({"inner": 3}, {"inner.path": "p"}, source="f")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("size: 1\nsize: 2\n", "line 2: key 'size' is repeated"),
        ("a: &x 1\nb: *x\n", "aliases .* are not read"),
        ("- 1\n", "expected a mapping"),
        ("a: '${NO_SUCH_VARIABLE_HERE}'\n", "'NO_SUCH_VARIABLE_HERE' is not set"),
        ("a: [1\n", "not valid YAML"),
    ],
)
def test_what_is_no_config_is_refused_with_the_files_name(tmp_path, text, message):
    file = tmp_path / "config.yml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        read_yaml(file)
    assert str(file) in str(caught.value)


def test_a_value_from_the_environment_is_filled_and_never_shown(tmp_path, monkeypatch):
    monkeypatch.setenv("SIZE", "secret")
    file = tmp_path / "config.yml"
    file.write_text("size: ${SIZE}\n")
    with pytest.raises(ConfigError) as caught:
        validate(Outer, read_yaml(file), source="f")
    assert "secret" not in str(caught.value)
    assert "from the environment" in str(caught.value)
