"""OpenAI's package for Node against the real service: another client family, the same answers."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from contextlib import ExitStack
from decimal import Decimal
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from router_runtime.service.keys import create_key
from router_runtime.service.values import KeyLimits

HERE = Path(__file__).parent / "npm"
PEPPER = b"pepper-of-the-tests-0123456789"
ALL = ("sim-large-vl", "sim-small-vl", "sim-large-text", "sim-small-text")


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """A folder with the client and the package that it imports; none of its scripts is run."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        pytest.skip("node and npm are not installed")
    folder = tmp_path_factory.mktemp("npm")
    for name in ("package.json", "client.mjs"):
        shutil.copy(HERE / name, folder)
    quiet = ("--no-audit", "--no-fund", "--no-package-lock", "--ignore-scripts")
    done = subprocess.run(  # noqa: S603 - a pinned package, without its scripts
        [npm, "install", "--prefer-offline", *quiet],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    if done.returncode:
        pytest.skip(f"npm cannot install the package: {done.stderr.strip()[-300:]}")
    return folder


def picture():
    buffer = BytesIO()
    Image.new("RGB", (16, 16), "red").save(buffer, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def with_cutting_model(content):
    """A model that is called by name only, and whose streams are cut in the middle."""
    target = content["candidates"][0]["target"]
    content["direct"].append({"id": "cut", "target": target})


@pytest.fixture(scope="module")
def found(package, site_maker, tmp_path_factory):
    """What every scenario of ``client.mjs`` came to, and the site that it was played at."""
    with ExitStack() as stack:
        site = site_maker(
            stack,
            tmp_path_factory.mktemp("site"),
            models={"cut": {"errors": {"rate": 1.0, "kinds": ["reset_midway"]}}},
            edit=with_cutting_model,
        )
        engine = site.service.store.engine
        keys = {
            "full": create_key(engine, PEPPER, name="full"),
            "once": create_key(
                engine,
                PEPPER,
                name="once",
                allowed_models=["sim-small-text"],
                limits=KeyLimits(requests_per_minute=2),
            ),
            "poor": create_key(
                engine, PEPPER, name="poor", limits=KeyLimits(usd_per_day=Decimal("1e-7"))
            ),
        }
        site.service.keys.refresh()
        told = {
            "url": site.url,
            "keys": {name: made.key for name, made in keys.items()},
            "picture": picture(),
        }
        (package / "site.json").write_text(json.dumps(told))
        done = subprocess.run(  # noqa: S603 - our own client
            [shutil.which("node"), "client.mjs", "site.json"],
            cwd=package,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        yield json.loads(done.stdout)


def test_a_chat_is_answered_and_its_headers_can_be_read(found):
    chat = found["chat"]
    assert chat["content"]
    assert chat["model"] == chat["told"]
    assert chat["model"] in ALL
    assert chat["tokens"] > 0


def test_a_stream_is_read_to_its_end_without_usage_that_was_not_asked_for(found):
    assert found["stream"] == {
        "content": found["stream"]["content"],
        "finish": ["stop"],
        "usages": 0,
    }
    assert found["stream"]["content"]


def test_usage_that_was_asked_for_comes_once(found):
    assert found["streamWithUsage"] == {"usages": 1}


def test_the_helper_for_streams_puts_the_answer_together(found):
    assert found["streamHelper"]["content"]


@pytest.mark.parametrize("scenario", ["tools", "streamedTools"])
def test_tools_are_called(found, scenario):
    assert found[scenario]["name"] == "add"
    assert set(found[scenario]["given"]) == {"a", "b"}


def test_json_mode_gives_an_object(found):
    assert isinstance(found["jsonMode"]["parsed"], dict)


def test_a_picture_goes_to_a_model_that_sees(found):
    assert found["picture"]["model"].endswith("-vl")
    assert found["picture"]["content"]


def test_several_choices_and_unknown_fields_pass_through(found):
    assert found["twoChoices"] == {"indices": [0, 1]}
    assert found["unknownField"]["content"]


def test_the_router_object_goes_beside_the_usual_fields(found):
    assert found["controls"]["model"] == "sim-large-text"
    assert found["controls"]["reason"]
    assert found["dryRun"]["object"] == "router.decision"
    assert set(found["dryRun"]["ranking"]) <= set(ALL)


def test_models_are_listed_and_retrieved(found):
    assert {"auto", "auto:small_first", "sim-embedding", *ALL} <= set(found["models"]["ids"])
    assert found["models"]["one"] == "sim-small-vl"


def test_embeddings_are_decoded(found):
    assert found["embeddings"] == {"lengths": [8, 8]}


@pytest.mark.parametrize(
    ("scenario", "name", "status", "code", "kind"),
    [
        ("wrongKey", "AuthenticationError", 401, "invalid_api_key", "authentication_error"),
        ("noSuchModel", "NotFoundError", 404, "model_not_found", "invalid_request_error"),
        ("wrongControl", "BadRequestError", 400, "invalid_router_controls", None),
        ("notAllowed", "PermissionDeniedError", 403, "model_not_allowed", "permission_error"),
        ("limited", "RateLimitError", 429, "rate_limit_exceeded", "rate_limit_error"),
        ("broke", "APIError", 402, "budget_exceeded", "insufficient_quota"),
    ],
)
def test_errors_are_the_packages_own(found, scenario, name, status, code, kind):
    error = found[scenario]
    assert (error["name"], error["status"], error["code"]) == (name, status, code), error
    assert error["isApiError"]
    assert kind is None or error["type"] == kind
    assert error["decision"].startswith("dec_")


def test_a_limit_says_when_to_come_back(found):
    assert int(found["limited"]["retryAfter"]) >= 1


def test_a_wrong_control_names_its_field(found):
    assert found["wrongControl"]["param"].startswith("router.")


def test_a_stream_that_breaks_is_an_error_and_no_shorter_answer(found):
    assert found["brokenStream"]["isApiError"], found["brokenStream"]
    assert found["brokenStream"]["code"] == "stream_cut"
