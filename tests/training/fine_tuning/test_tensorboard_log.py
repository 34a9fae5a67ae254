from __future__ import annotations

import sys

import pytest

from router_runtime.errors import MissingDependencyError, RouterError
from router_training.fine_tuning.tensorboard_log import tensorboard_run

pytest.importorskip("torch")


def test_figures_and_settings_are_written(tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with tensorboard_run(tmp_path / "logs", settings={"rank": 8}) as record:
        record({"validation/loss": 0.5, "epoch": 1.0}, step=3)
        record({"validation/loss": 0.25, "epoch": 2.0}, step=6)
    found = events.EventAccumulator(str(tmp_path / "logs"))
    found.Reload()
    told = [(event.step, event.value) for event in found.Scalars("validation/loss")]
    assert told == [(3, 0.5), (6, 0.25)]
    assert "settings/text_summary" in found.Tags()["tensors"]


def test_a_missing_package_is_named_with_its_extra(tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with (
        pytest.raises(MissingDependencyError, match="tensorboard"),
        tensorboard_run(tmp_path, settings={}),
    ):
        pass


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    pytest.importorskip("tensorboard")
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(RouterError, match="cannot be written"),
        tensorboard_run(tmp_path / "file" / "logs", settings={}),
    ):
        pass
