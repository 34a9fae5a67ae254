"""What every test may use: the shared tables, and one small trained router."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Generator
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
SHARED = TESTS.parent.parent / "shared" / "data"

sys.path.insert(0, str(TESTS / "benchmarks"))  # where makers lie that benchmarks use as well
sys.path.insert(0, str(TESTS / "guides"))  # where the reading of documents lies


def pytest_configure() -> None:
    """Hear Ctrl-C also where a shell has started the tests in the background, deaf to it."""
    main = threading.current_thread() is threading.main_thread()
    if main and signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    return failed_if_forbidden((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    return failed_if_forbidden((yield))


def failed_if_forbidden(report):
    """Under MODEL_ROUTER_NO_SKIP nothing may be skipped, but for want of the shared tables."""
    reason = str(report.longrepr)
    if report.skipped and os.environ.get("MODEL_ROUTER_NO_SKIP") and "shared" not in reason:
        report.outcome = "failed"
        report.longrepr = f"skipped although MODEL_ROUTER_NO_SKIP is set: {reason}"
    return report


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real outcomes; tests that need it are skipped where it is absent."""
    if not SHARED.is_dir():
        pytest.skip("the shared tables of real outcomes are not beside the project")
    return SHARED


@pytest.fixture(scope="session")
def making():
    """The functions that make tiny language models, and adapters on them."""
    for package in ("torch", "transformers"):
        pytest.importorskip(package)
    from experts_parts import making

    return making


@pytest.fixture(scope="session")
def qwen(making, tmp_path_factory) -> Path:
    return making.make_qwen(tmp_path_factory.mktemp("bases") / "qwen")


@pytest.fixture(scope="session")
def workload(tmp_path_factory) -> Path:
    """A folder with 400 simulated records and their pictures."""
    from router_training.simulated import write_workload

    folder = tmp_path_factory.mktemp("workload")
    write_workload(folder, rows=400, seed=1)
    return folder


@pytest.fixture(scope="session")
def trained(workload, tmp_path_factory):
    """A finished run on the workload with a quick head: (config, result)."""
    from router_training.config import load_training_config
    from router_training.pipeline import run

    folder = tmp_path_factory.mktemp("run")
    (folder / "train.yml").write_text(
        f"data: {{path: '{workload / 'records.jsonl'}'}}\n"
        "features: {encoders: [{kind: embedded, text_components: 32, thumbnail_components: 16}]}\n"
        "head: logistic\noutput: artifact\nwork_dir: work\nseed: 3\n"
    )
    config = load_training_config(folder / "train.yml")
    return config, run(config)
