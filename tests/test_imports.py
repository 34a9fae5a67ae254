"""What importing costs, and what the packages offer."""

from __future__ import annotations

import subprocess
import sys

import pytest

import router_runtime

HEAVY = ("torch", "xgboost", "open_clip", "transformers", "sklearn", "scipy", "fastapi", "httpx")


def loaded_by(statement: str) -> set[str]:
    code = f"{statement}\nimport sys\nprint('\\n'.join(sys.modules))"
    done = subprocess.run(  # noqa: S603 - our own interpreter on our own code
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    return {name.partition(".")[0] for name in done.stdout.split()}


@pytest.mark.parametrize(
    "statement",
    [
        "import router_runtime",
        "from router_runtime import ModelRouter, load_artifact, EmbeddingGenerator",
        "import router_runtime.cli",
    ],
)
def test_importing_the_runtime_loads_nothing_heavy(statement):
    assert not loaded_by(statement) & set(HEAVY)


def test_routing_with_an_embedded_artifact_loads_nothing_heavy(trained):
    statement = (
        "from router_runtime import ModelRouter\n"
        f"ModelRouter({str(trained[0].output)!r}).route('What is 17 + 25?')"
    )
    assert not loaded_by(statement) & set(HEAVY)


def test_the_command_line_of_training_loads_what_a_command_needs_only_when_it_runs():
    assert not loaded_by("import router_training.cli") & {*HEAVY, "jinja2", "matplotlib", "pandas"}


def test_every_public_name_is_there():
    for name in router_runtime.__all__:
        assert getattr(router_runtime, name).__name__ == name
    assert set(router_runtime.__all__) <= set(dir(router_runtime))


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="Router3000"):
        _ = router_runtime.Router3000
