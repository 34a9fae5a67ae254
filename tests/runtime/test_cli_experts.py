import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from router_runtime.errors import ConfigError, TargetConnectionError, TargetStatusError

pytest.importorskip("torch")
cli_experts = pytest.importorskip("router_runtime.cli_experts", exc_type=ImportError)
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
making = pytest.importorskip("experts_parts.making", exc_type=ImportError)

from router_runtime.experts.config import ExpertsConfig  # noqa: E402
from router_runtime.experts.serve import ExpertsServer  # noqa: E402
from router_runtime.experts.service import Experts  # noqa: E402


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("experts")
    base = making.make_llama(folder / "llama")
    making.random_adapter(base, folder / "adapters" / "calendar")
    return folder


@pytest.fixture
def url(folder):
    config = ExpertsConfig(
        base={"model": str(folder / "llama")},
        name="llama",
        adapters_root=folder / "adapters",
        allow_updates=True,
        api_key_env="KEY",
    )
    experts = Experts.load(config)
    with ExpertsServer(experts, environment={"KEY": "canary-key"}) as server:
        yield server.url
    experts.close()


def command(*arguments):
    """Return what the command line prints; errors are raised as they are."""
    from typer.testing import CliRunner

    result = CliRunner().invoke(cli_experts.experts_app, arguments)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def test_adapters_are_added_listed_and_removed_on_a_running_server(url, monkeypatch):
    monkeypatch.setenv("THE_KEY", "canary-key")
    there = ("--url", url, "--key-env", "THE_KEY")
    assert "added" in command("add", "days", "calendar", *there)
    listed = command("list", *there)
    assert re.search(r"days\s+llama\s+0\.\d\d", listed)
    with pytest.raises(TargetStatusError, match="already been loaded"):
        command("add", "days", "calendar", *there)
    models = json.loads(command("list", *there, "--json"))["models"]
    assert [(model["id"], model["parent"]) for model in models][-1] == ("days", "llama")
    told = json.loads(command("remove", "days", "--url", f"{url}/v1", *there[2:], "--json"))
    assert told["adapter"] == "days" and "removed" in told["said"]
    assert "days" not in command("list", *there)
    with pytest.raises(TargetStatusError, match="cannot be found"):
        command("remove", "days", *there)


def test_a_missing_key_and_a_wrong_url_are_said(url, monkeypatch):
    with pytest.raises(TargetStatusError, match="401"):
        command("list", "--url", url)
    with pytest.raises(ConfigError, match="NOT_SET_KEY"):
        command("list", "--url", url, "--key-env", "NOT_SET_KEY")
    with pytest.raises(ConfigError, match="--url"):
        command("list", "--url", "file:///etc/passwd")
    with pytest.raises(TargetConnectionError, match="cannot be reached"):
        command("list", "--url", "http://127.0.0.1:9")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "CONFIG"),
        (("x.yml", "--base", "m"), "CONFIG"),
        (("x.yml", "--name", "m"), "--base"),
        (("x.yml",), "x.yml"),
        (("--base", "m", "--adapter", "a"), "name=folder"),
        (("--base", "m", "--device", "tpu"), "device"),
        (("--base", "m", "--host", "0.0.0.0"), "api_key_env"),  # noqa: S104 - it is refused
        (("--base", "./absent"), "absent"),
    ],
)
def test_serve_says_what_is_wrong_before_it_listens(arguments, words):
    from router_runtime.errors import RouterError

    with pytest.raises(RouterError, match=words):
        command("serve", *arguments)


def test_serve_answers_until_it_is_stopped(folder):
    code = (
        "import sys; from router_runtime.cli_experts import experts_app; experts_app(sys.argv[1:])"
    )
    base, adapter = folder / "llama", f"days={folder / 'adapters' / 'calendar'}"
    options = ["--base", str(base), "--adapter", adapter, "--name", "llama", "--port", free_port()]
    process = subprocess.Popen(  # noqa: S603 - our own program
        [sys.executable, "-c", code, "serve", *options], stdout=subprocess.PIPE, text=True
    )
    try:
        first = process.stdout.readline()
        assert "on base 'llama'" in first
        url = re.search(r"http://\S+", first)[0].removesuffix("/v1")
        shown = _when_up(url)
        assert "days" in shown
    finally:
        process.terminate()
        assert process.wait(60) in (0, -15)


def _when_up(url):
    import time

    for _ in range(600):
        try:
            return command("list", "--url", url)
        except TargetConnectionError:
            time.sleep(0.05)
    raise AssertionError("the server did not come up")


def free_port():
    import socket

    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])
