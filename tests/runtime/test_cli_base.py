"""The command line where no artifact is named, and its doctor."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from router_runtime.base_artifact import TIERS
from router_runtime.cli import app
from router_runtime.errors import ConfigError

KNOWN = "What does an owl eat?\nA. stones\nB. mice\nC. sand\nD. light\nAnswer:"


def shown(*arguments):
    done = CliRunner().invoke(app, list(arguments))
    assert done.exit_code == 0, done.output
    return done.stdout


def test_route_asks_the_base_artifact_where_none_is_named():
    assert shown("route", "--quiet", KNOWN).strip() in TIERS
    decision = json.loads(shown("route", "--json", KNOWN))
    assert set(decision["probabilities"]) == set(TIERS)
    assert decision["policy"] == "recommended"


def test_route_sees_pictures_without_an_artifact(workload):
    picture = next((workload / "images").glob("*.png"), workload / "example.png")
    assert shown("route", "--quiet", "--image", str(picture), "How many?").strip() in TIERS


def test_an_artifact_and_a_config_are_one_too_many(trained):
    with pytest.raises(ConfigError, match="not both"):
        CliRunner().invoke(
            app,
            ["route", "--artifact", str(trained[0].output), "--config", "x.yml", "hi"],
            catch_exceptions=False,
        )


def test_the_doctor_is_a_command():
    assert "Exit status" in shown("doctor", "--help")
