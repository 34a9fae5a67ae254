"""The doctor tells what is there and what is missing, and never a secret."""

from __future__ import annotations

import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import typer
import yaml
from typer.testing import CliRunner

from router_runtime import doctor as checks
from router_runtime.cli_doctor import doctor
from router_runtime.console import EXIT_FOUND
from router_runtime.doctor import disk, examine, extras, listening, reached, to_json, versions

SECRET = "hunter2-very-secret"  # noqa: S105 - what must not be printed


@pytest.fixture
def server():
    """A server that wants a key: it answers 401 to everything."""

    class Refusing(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(401)
            self.end_headers()

        def log_message(self, *args):
            pass

    listening = HTTPServer(("127.0.0.1", 0), Refusing)
    thread = threading.Thread(target=listening.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{listening.server_port}/v1"
    listening.shutdown()
    thread.join()
    listening.server_close()


@pytest.fixture
def silent():
    """A URL at which nothing listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return f"http://127.0.0.1:{port}/v1"


@pytest.fixture
def quick(monkeypatch):
    """Without importing every library that encoders have."""
    monkeypatch.setattr(checks, "ENCODER_KINDS", ("embedded",))


def config_file(folder, artifact, url, **service):
    content = {
        "artifact": str(artifact),
        "candidates": [
            {
                "id": "sim-small-text",
                "price": {"input_mtok": 1, "output_mtok": 1},
                "target": {"kind": "compatible", "base_url": url, "api_key_env": "DOCTORS_KEY"},
            }
        ],
        "policy": "quality",
        "service": {"store": {"url": "sqlite:///store.db", "spool": "spool"}, **service},
    }
    (folder / "router.yml").write_text(yaml.safe_dump(content))
    return folder / "router.yml"


def told(found, name):
    return next(finding for finding in found if finding.name == name)


def test_versions_and_extras_are_told():
    assert all(finding.status == "ok" for finding in versions())
    by_name = {finding.name: finding for finding in extras()}
    assert by_name["service"].status in ("ok", "note")
    assert "all" not in by_name


def test_a_missing_package_is_a_note_with_the_pip_command(monkeypatch):
    wanted = ['nowhere-to-be-found>=1; extra == "far"', 'numpy>=999; extra == "new"']
    monkeypatch.setattr(checks, "requires", lambda name: wanted)
    far, new = extras()
    assert (far.status, new.status) == ("note", "problem")
    assert "pip install 'model-router[far]'" in far.detail
    assert "older than 999" in new.detail


def test_a_library_that_does_not_load_is_a_problem(monkeypatch):
    def broken(kind):
        raise OSError("libsomething.so: undefined symbol")

    monkeypatch.setattr(checks, "ENCODER_KINDS", ("clip",))
    monkeypatch.setattr(checks, "check_encoder", broken)
    found = told(checks.encoders(), "clip")
    assert found.status == "problem"
    assert "undefined symbol" in found.detail


def test_a_server_that_refuses_is_reachable_and_one_that_is_not_there_is_not(server, silent):
    assert reached("a", server).status == "ok"
    assert "401" in reached("a", server).detail
    assert reached("b", silent).status == "problem"


def test_a_port_that_is_taken_is_a_note(server, silent):
    taken, free = (int(url.split(":")[2].split("/")[0]) for url in (server, silent))
    assert listening("127.0.0.1", taken).status == "note"
    assert listening("127.0.0.1", free).status == "ok"


def test_versions_tell_which_artifacts_are_read():
    assert "(reads 1, 2, 3)" in told(versions(), "model-router").detail


def test_a_config_in_order_has_no_problem(quick, trained, server, tmp_path, monkeypatch):
    monkeypatch.setenv("DOCTORS_KEY", SECRET)
    found = examine(config_file(tmp_path, trained[0].output, server))
    of_config = [f for f in found if f.name != "base"]
    assert [f for f in of_config if f.status == "problem"] == []
    assert told(found, "database").status == "note"  # made at the first start
    (tried,) = (f for f in found if "a text was encoded" in f.detail)
    assert (tried.section, tried.detail.split()[-1]) == ("encoders", "sim-small-text")
    assert told(found, "model cache").section == "disk"
    assert told(found, "port 8080").status in ("ok", "note")
    assert not (tmp_path / "store.db").exists()
    assert SECRET not in json.dumps(to_json(found))


def test_what_is_missing_is_named_with_its_remedy(quick, trained, silent, tmp_path, monkeypatch):
    monkeypatch.delenv("DOCTORS_KEY", raising=False)
    redis = f"redis://:{SECRET}@127.0.0.1:1/0"
    found = examine(config_file(tmp_path, trained[0].output, silent, redis_url=redis))
    assert "DOCTORS_KEY is not set" in told(found, "key of sim-small-text").detail
    assert told(found, "target of sim-small-text").status == "problem"
    assert told(found, "Redis").status == "problem"
    assert SECRET not in json.dumps(to_json(found))


def test_a_database_that_does_not_answer_is_told_without_its_password(quick, trained, tmp_path):
    pytest.importorskip("psycopg")
    store = {"url": f"postgresql+psycopg://me:{SECRET}@127.0.0.1:1/none", "spool": "spool"}
    path = config_file(tmp_path, trained[0].output, "http://127.0.0.1:1", store=store)
    found = examine(path)
    assert told(found, "database").status == "problem"
    assert SECRET not in json.dumps(to_json(found))


def test_a_config_that_is_wrong_is_one_problem(quick, tmp_path):
    (tmp_path / "router.yml").write_text("candidates: 3\n")
    found = examine(tmp_path / "router.yml")
    assert found[-1].section == "config"
    assert found[-1].status == "problem"


def test_too_little_disk_is_a_problem(tmp_path):
    wanted = {"spool": tmp_path / "not" / "there"}
    assert next(disk(wanted, 1)).status == "ok"
    assert next(disk(wanted, 2**80)).status == "problem"


def test_the_exit_status_says_whether_something_must_be_mended(quick, tmp_path, monkeypatch):
    app = typer.Typer()
    app.command()(doctor)
    (tmp_path / "router.yml").write_text("candidates: 3\n")
    wrong = CliRunner().invoke(app, ["--config", str(tmp_path / "router.yml"), "--json"])
    assert wrong.exit_code == EXIT_FOUND == 1
    assert json.loads(wrong.stdout)["ok"] is False
    monkeypatch.setattr("router_runtime.doctor.examine", lambda config: tuple(versions()))
    right = CliRunner().invoke(app, [])
    assert right.exit_code == 0
    assert "nothing has to be mended" in right.stdout
