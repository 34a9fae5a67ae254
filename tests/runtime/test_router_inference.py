from __future__ import annotations

from pathlib import Path

import pytest

from router_runtime.errors import ConfigError
from router_runtime.router_inference import CategoryConfig, load_category_config

ROOT = Path(__file__).resolve().parents[2]


def write(tmp_path, text):
    (tmp_path / "router_config.yaml").write_text(text)
    return tmp_path / "router_config.yaml"


def test_the_published_config_is_read(tmp_path):
    path = write(
        tmp_path,
        "categories:\n  - math\n  - science\n  - code\n"
        "model_mappings:\n"
        '  math: "path/to/math-specialist"\n'
        '  science: "path/to/science-specialist"\n'
        '  code: "path/to/code-specialist"\n'
        'router_config:\n  model_path: "router_model"\n  device: "cuda:0"\n'
        "  confidence_threshold: 0.5\n",
    )
    config = load_category_config(path)
    assert config.categories == ("math", "science", "code")
    assert config.model_of("math") == "path/to/math-specialist"
    assert config.router_config.model_path == (tmp_path / "router_model").resolve()
    assert config.router_config.device == "cuda:0"
    assert config.router_config.confidence_threshold == 0.5


def test_without_mappings_the_categories_are_the_models():
    config = CategoryConfig(categories=("b", "a"))
    assert config.models == ("b", "a")
    shared = CategoryConfig(
        categories=("b", "a", "c"), model_mappings={"a": "x", "b": "y", "c": "y"}
    )
    assert shared.models == ("y", "x")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("categories: [a]", "categories"),
        ("categories: [a, a]", "listed twice"),
        ("categories: [a, b]\nmodel_mappings: {a: x}", "differ in 'b'"),
        ("categories: [a, b]\nmodel_mappings: {a: x, b: y, c: z}", "differ in 'c'"),
        ("categories: [a, b]\nrouter_config: {fallback: c}", "'c' is not among"),
        ("categories: [a, b]\nrouter_config: {device: gpu}", "device"),
        ("categories: [a, b]\nrouter_config: {confidence_threshold: 2}", "confidence_threshold"),
        ("categories: [a, b]\nsurprise: 1", "surprise"),
    ],
)
def test_what_contradicts_itself_is_refused(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        load_category_config(write(tmp_path, text))


def test_the_shipped_config_is_valid():
    config = load_category_config(ROOT / "configs" / "router_config.yaml")
    assert config.categories == ("math", "science", "code", "general", "commonsense")
