"""The files in ``deploy/`` are well-formed, agree with the service, and their configs load.

No container engine and no cluster is asked. Every linter also refuses a broken copy, so that one
which has stopped looking is found.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from router_runtime.config import load_config
from router_runtime.model_router import ModelRouter
from router_runtime.service.front import _HEALTH_PATHS
from router_runtime.service.parts import _DRAIN_S, LOOPBACK, check_targets
from router_runtime.service.serve import GRACE_S
from router_runtime.service_config import CallConfig, RequestLimits

ROOT = Path(__file__).resolve().parents[1]
DEPLOY = ROOT / "deploy"
UNIT = DEPLOY / "systemd" / "model-router.service"
CONFIGS = (DEPLOY / "router.yml", DEPLOY / "systemd" / "router.yml")
VARIABLES = {
    "DATABASE_URL": "postgresql+psycopg://user@postgres:5432/name",
    "REDIS_URL": "redis://redis:6379/0",
}
STOP_S = GRACE_S + 2 + _DRAIN_S
SECRET = re.compile(r"KEY|SECRET|PASSWORD|PEPPER|TOKEN", re.IGNORECASE)


def text_of(name):
    return (DEPLOY / name).read_text()


def linted(program, *words, folder):
    """Return (passed, what it said)."""
    beside = Path(sys.executable).parent / program
    found = str(beside) if beside.exists() else shutil.which(program)
    if found is None:
        pytest.skip(f"{program} is not installed")
    done = subprocess.run(  # noqa: S603 - a linter on our own files
        [found, *map(str, words)], capture_output=True, text=True, check=False, cwd=folder
    )
    return done.returncode == 0, done.stdout + done.stderr


def broken(folder, name, text, old, new):
    assert old in text
    path = folder / name
    path.write_text(text.replace(old, new, 1))
    return path


# --------------------------------------------------------------------------- configs


@pytest.mark.parametrize("path", CONFIGS, ids=["router", "systemd"])
def test_the_configs_load_and_name_targets_for_both_tiers(path, monkeypatch):
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)
    config = load_config(path)
    check_targets(config)
    router = ModelRouter.from_config(config)
    assert {candidate.tier for candidate in config.candidates} == {"weak", "strong"}
    assert router.decide("What is 2 + 2?").model_id in ("gpt-5-mini", "gpt-5")


def test_containers_listen_beyond_this_machine_and_share_limits_and_the_unit_does_not(monkeypatch):
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)
    shared, alone = (load_config(path).service for path in CONFIGS)
    assert shared.host == "0.0.0.0"  # noqa: S104 - what is asserted
    assert shared.redis_url == VARIABLES["REDIS_URL"]
    assert shared.store.url == VARIABLES["DATABASE_URL"]
    assert alone.host in LOOPBACK
    assert alone.redis_url is None


def test_the_config_map_holds_the_same_config():
    held = documents()["ConfigMap"]["data"]["router.yml"]
    assert held.strip() == text_of("router.yml").strip()


# --------------------------------------------------------------------------- linters


def test_the_dockerfile_passes_hadolint(tmp_path):
    passed, said = linted("hadolint", DEPLOY / "Dockerfile", folder=tmp_path)
    assert passed, said
    bad = broken(tmp_path, "Dockerfile", text_of("Dockerfile"), "3.11-slim-bookworm", "latest")
    assert not linted("hadolint", bad, folder=tmp_path)[0]


def test_the_compose_file_is_valid(tmp_path):
    words = ("--builtin-schema", "vendor.compose-spec")
    passed, said = linted("check-jsonschema", *words, DEPLOY / "compose.yml", folder=tmp_path)
    assert passed, said
    bad = broken(tmp_path, "compose.yml", text_of("compose.yml"), "read_only:", "readonly:")
    assert not linted("check-jsonschema", *words, bad, folder=tmp_path)[0]


@pytest.mark.parametrize("version", ["1.30", "1.37"])
def test_the_manifests_are_valid(version):
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    for document in documents().values():
        kubernetes_validate.validate(document, version, strict=True)
    bad = documents()["Deployment"]
    bad["spec"]["template"]["spec"]["containers"][0]["readinessprobe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(bad, version, strict=True)


def test_the_proxys_config_parses(tmp_path):
    crossplane = pytest.importorskip("crossplane")

    def parsed(path):
        main = tmp_path / "nginx.conf"
        main.write_text(f"events {{}}\nhttp {{ include {path}; }}\n")
        return crossplane.parse(str(main), strict=True)

    found = parsed(DEPLOY / "nginx.conf")
    assert found["status"] == "ok", found["errors"]
    bad = broken(tmp_path, "bad.conf", text_of("nginx.conf"), "proxy_buffering", "proxy_bufering")
    assert parsed(bad)["status"] == "failed"


@pytest.fixture
def unit(tmp_path):
    """The unit with a program that exists here, since it is looked for."""
    path = tmp_path / UNIT.name
    here = str(Path(sys.executable))
    path.write_text(UNIT.read_text().replace("/opt/model-router/bin/model-router", here))
    return path


def test_systemd_takes_the_unit_without_a_word(unit, tmp_path):
    assert linted("systemd-analyze", "verify", "--man=no", unit, folder=tmp_path) == (True, "")
    bad = broken(tmp_path, "bad.service", unit.read_text(), "LockPersonality=", "LockPerson=")
    assert "Unknown key" in linted("systemd-analyze", "verify", "--man=no", bad, folder=tmp_path)[1]


def test_systemd_finds_the_unit_hardly_exposed(unit, tmp_path):
    def exposed_at_most(tenths, path):
        words = ("security", "--offline=yes", "--no-pager", f"--threshold={tenths}", path)
        return linted("systemd-analyze", *words, folder=tmp_path)[0]

    assert exposed_at_most(20, unit)
    bad = tmp_path / "open.service"
    bad.write_text(re.sub(r"(?m)^(Protect|Private|Restrict|System|Cap).*\n", "", unit.read_text()))
    assert not exposed_at_most(20, bad)


# --------------------------------------------------------------------------- agreement


def documents():
    return {each["kind"]: each for each in yaml.safe_load_all(text_of("kubernetes.yml"))}


def settings():
    """The unit's settings; of a repeated one the last."""
    return dict(re.findall(r"(?m)^([A-Z]\w+)=(.*)$", UNIT.read_text()))


def test_whoever_stops_it_waits_longer_than_it_needs():
    pod = documents()["Deployment"]["spec"]["template"]["spec"]
    sleep_s = int(pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][1])
    compose = yaml.safe_load(text_of("compose.yml"))["services"]["router"]
    assert int(settings()["TimeoutStopSec"]) > STOP_S
    assert int(compose["stop_grace_period"].removesuffix("s")) > STOP_S
    assert pod["terminationGracePeriodSeconds"] > STOP_S + sleep_s


def test_probes_ask_what_the_service_answers():
    container = documents()["Deployment"]["spec"]["template"]["spec"]["containers"][0]
    asked = {name: container[name]["httpGet"]["path"] for name in container if "Probe" in name}
    assert asked == {
        "startupProbe": "/startupz",
        "livenessProbe": "/healthz",
        "readinessProbe": "/readyz",
    }
    assert set(asked.values()) == set(_HEALTH_PATHS)
    assert "http://127.0.0.1:8080/healthz" in text_of("Dockerfile")
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"http": yaml.safe_load(text_of("router.yml"))["service"]["port"]}


def test_the_proxy_lets_through_what_the_service_takes():
    text = text_of("nginx.conf")
    assert int(re.search(r"client_max_body_size (\d+)m", text)[1]) * 2**20 == (
        RequestLimits().max_body_bytes
    )
    assert int(re.search(r"proxy_read_timeout (\d+)s", text)[1]) > CallConfig().deadline_s


def test_the_image_gets_all_that_is_installed_and_nothing_else():
    dockerfile = text_of("Dockerfile")
    copied = [
        source
        for line in re.findall(r"(?m)^COPY (?!--from)(.*)$", dockerfile)
        for source in line.split()[:-1]
    ]
    assert all((ROOT / source).exists() for source in copied)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = project["tool"]["setuptools"]["packages"]["find"]["include"]
    for package in {name.removesuffix("*").replace(".", "/") for name in packages}:
        assert any(f"{source}/".startswith(f"{package}/") for source in copied), package
    extras = re.search(r"'\.\[([a-z,]+)\]'", dockerfile)[1].split(",")
    assert set(extras) <= set(project["project"]["optional-dependencies"])
    first, *allowed = [
        line for line in text_of("Dockerfile.dockerignore").splitlines() if line[:1] in ("*", "!")
    ]
    assert first == "*"
    assert {line[1:] for line in allowed if line[0] == "!"} == set(copied)


def test_it_runs_as_nobody_in_particular_on_a_root_that_it_cannot_write():
    assert re.search(r"(?m)^USER (\d+):\1$", text_of("Dockerfile"))
    compose = yaml.safe_load(text_of("compose.yml"))["services"]["router"]
    assert compose["read_only"] is True
    assert compose["cap_drop"] == ["ALL"]
    pod = documents()["Deployment"]["spec"]["template"]["spec"]
    inside = pod["containers"][0]["securityContext"]
    assert pod["securityContext"]["runAsNonRoot"] is inside["readOnlyRootFilesystem"] is True
    assert inside["capabilities"] == {"drop": ["ALL"]}
    assert settings()["DynamicUser"] == "yes"
    assert settings()["ProtectSystem"] == "strict"
    for path in CONFIGS:  # the one place that all of them may write to
        spool = yaml.safe_load(path.read_text())["service"]["store"]["spool"]
        assert spool.startswith("/var/lib/model-router/")


def test_no_file_holds_a_secret():
    for line in re.findall(r"(?m)^(?:ENV|ARG) .*$", text_of("Dockerfile")):
        assert not SECRET.search(line), line
    assert not re.search(r"(?m)^Environment=.*(KEY|PEPPER|PASSWORD)", UNIT.read_text())
    assert "Secret" not in documents()
    for name, value in re.findall(r"(?m)^(\w+)=(.*)$", text_of("compose.env.example")):
        assert not value, name
    assert {".env", "secrets.env"} <= set(text_of(".gitignore").split())
    for service in yaml.safe_load(text_of("compose.yml"))["services"].values():
        for name, value in service.get("environment", {}).items():
            assert not SECRET.search(name) or re.fullmatch(r"\$\{\w+:\?[^}]+\}", value), name


def test_every_variable_that_is_read_is_given():
    compose = text_of("compose.yml")
    given = set(yaml.safe_load(compose)["services"]["router"]["environment"])
    assert set(re.findall(r"\$\{(\w+)\}", text_of("router.yml"))) <= given
    assert {"MODEL_ROUTER_PEPPER", "OPENAI_API_KEY"} <= given
    wanted = set(re.findall(r"\$\{(\w+):\?", compose))
    assert wanted == set(re.findall(r"(?m)^(\w+)=", text_of("compose.env.example")))
