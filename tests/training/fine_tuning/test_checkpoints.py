from __future__ import annotations

import pytest

from router_runtime.errors import RouterError

pytest.importorskip("torch")

import torch

from router_training.fine_tuning.checkpoints import Checkpoints


def test_a_checkpoint_of_other_inputs_is_not_continued(tmp_path):
    kept = Checkpoints(tmp_path / "c", inputs="one")
    assert kept.read() is None
    kept.write({"a": torch.ones(2)}, {"step": 3})
    assert kept.read().values == {"step": 3}
    assert Checkpoints(tmp_path / "c", inputs="two").read() is None


def test_only_the_newest_checkpoint_stays(tmp_path):
    kept = Checkpoints(tmp_path / "c", inputs="one")
    for step in range(3):
        kept.write({"a": torch.full((2,), step)}, {"step": step})
    assert sorted(file.name for file in (tmp_path / "c").iterdir()) == [
        "checkpoint.json",
        "tensors-2.safetensors",
    ]
    assert torch.equal(kept.read().tensors["a"], torch.full((2,), 2))
    kept.remove()
    assert kept.read() is None and not (tmp_path / "c").exists()


def test_a_damaged_checkpoint_says_what_to_delete(tmp_path):
    kept = Checkpoints(tmp_path / "c", inputs="one")
    kept.write({"a": torch.ones(2)}, {"step": 0})
    (tmp_path / "c" / "tensors-0.safetensors").write_bytes(b"cut")
    with pytest.raises(RouterError, match="Delete that folder"):
        kept.read()
    (tmp_path / "c" / "checkpoint.json").write_text("{")
    with pytest.raises(RouterError, match="is damaged"):
        kept.read()


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RouterError, match="cannot be kept"):
        Checkpoints(tmp_path / "file" / "c", inputs="one").write({}, {"step": 0})
