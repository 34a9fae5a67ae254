"""What the pages of the guides need: the two programs, and what the quickstart leaves behind."""

from __future__ import annotations

import fcntl
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from guides_parts.command_lines import ROOT
from guides_parts.programs import Programs


@pytest.fixture(scope="session")
def programs() -> Iterator[Programs]:
    with tempfile.TemporaryDirectory(prefix="guides-") as folder:
        started = Programs(Path(folder))
        yield started
        started.close()


@pytest.fixture(scope="session")
def quickstart(tmp_path_factory, worker_id) -> Path:
    """A folder as ``make quickstart`` leaves it, with fewer rows."""
    base = tmp_path_factory.getbasetemp()
    return made_once(base if worker_id == "master" else base.parent)


def made_once(base: Path) -> Path:
    """Let the first worker of a test run that comes here do it, and the others wait."""
    folder = base / "quickstart"
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            make_quickstart(folder.with_suffix(".making"))
            folder.with_suffix(".making").rename(folder)
    return folder


def make_quickstart(folder: Path) -> None:
    from router_training.config import load_training_config
    from router_training.pipeline import run
    from router_training.simulated import write_workload

    shutil.copytree(ROOT / "configs", folder / "configs")
    write_workload(folder / "runs" / "quickstart" / "data", rows=600, seed=0)
    run(load_training_config(folder / "configs" / "quickstart.yml"))
