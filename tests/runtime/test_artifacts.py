from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from router_runtime import artifacts
from router_runtime.artifacts import MANIFEST, load_artifact, read_manifest, save_artifact
from router_runtime.errors import ArtifactError, ArtifactIntegrityError, ArtifactVersionError


@pytest.fixture
def folder(trained, tmp_path) -> Path:
    """A copy of a real artifact that a test may damage."""
    target = tmp_path / "artifact"
    shutil.copytree(trained[0].output, target)
    return target


def edit(folder: Path, change) -> None:
    content = json.loads((folder / MANIFEST).read_text())
    change(content)
    (folder / MANIFEST).write_text(json.dumps(content))


def saved(artifact, folder, **options):
    return save_artifact(artifact, folder, created_by="test", card="# card\n", **options)


def test_what_is_saved_is_loaded_to_the_bit(trained):
    config, result = trained
    loaded = load_artifact(config.output)
    X = np.random.default_rng(0).normal(size=(50, loaded.head.n_features)).astype(np.float32)
    np.testing.assert_array_equal(
        loaded.head.predict_proba(X), result.artifact.head.predict_proba(X)
    )
    assert loaded.model_ids == result.artifact.model_ids
    assert loaded.calibrator.to_json() == result.artifact.calibrator.to_json()
    assert loaded.artifact_id == result.artifact.artifact_id
    assert loaded.encoder_fingerprints == result.artifact.encoder_fingerprints


def test_saving_twice_gives_the_same_bytes(folder, tmp_path):
    artifact = load_artifact(folder)
    for name in ("one", "two"):
        saved(artifact, tmp_path / name)
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes()


def test_the_manifest_is_written_last(folder, tmp_path, monkeypatch):
    order = []
    real = os.replace
    monkeypatch.setattr(
        artifacts.os, "replace", lambda a, b: (order.append(Path(b).name), real(a, b))
    )
    saved(load_artifact(folder), tmp_path / "new")
    assert order[-1] == MANIFEST
    assert len(order) == len(set(order)) > 2


def test_a_save_that_dies_leaves_no_manifest(folder, tmp_path, monkeypatch):
    target = tmp_path / "new"
    artifact = load_artifact(folder)
    saved(artifact, target)
    real = os.replace

    def dies_at_the_card(source, destination):
        if Path(destination).name == "README.md":
            raise OSError("no space left on device")
        real(source, destination)

    monkeypatch.setattr(artifacts.os, "replace", dies_at_the_card)
    with pytest.raises(ArtifactError, match="no space left"):
        saved(artifact, target)
    assert not (target / MANIFEST).exists()
    assert [entry.name for entry in tmp_path.iterdir() if entry.name.startswith(".")] == []
    with pytest.raises(ArtifactError, match="not a complete artifact"):
        load_artifact(target)


def test_saving_over_an_older_artifact_removes_its_files(folder):
    artifact = load_artifact(folder)
    saved(artifact, folder, exports={"old.bin": b"1"})
    assert (folder / "old.bin").exists()
    saved(artifact, folder)
    assert not (folder / "old.bin").exists()
    load_artifact(folder)


def test_saving_into_a_folder_with_other_files_is_refused(folder, tmp_path):
    target = tmp_path / "mine"
    target.mkdir()
    (target / "thesis.tex").write_text("precious")
    with pytest.raises(ArtifactError, match=r"thesis\.tex"):
        saved(load_artifact(folder), target)
    assert (target / "thesis.tex").read_text() == "precious"


def test_exports_are_listed_but_may_not_replace_weights(folder, tmp_path):
    artifact = load_artifact(folder)
    saved(artifact, tmp_path / "new", exports={"nn_router.pth": b"never read"})
    assert "nn_router.pth" in read_manifest(tmp_path / "new").files
    load_artifact(tmp_path / "new" / "nn_router.pth")
    with pytest.raises(ArtifactError, match="overwrite"):
        saved(artifact, tmp_path / "other", exports={"head.safetensors": b"x"})


@pytest.mark.parametrize("name", ["head.safetensors", "encoder-0.safetensors", "README.md"])
def test_a_missing_changed_or_extra_file_is_refused(folder, name):
    original = (folder / name).read_bytes()
    (folder / name).unlink()
    with pytest.raises(ArtifactIntegrityError, match=f"'{name}' is missing"):
        load_artifact(folder)
    (folder / name).write_bytes(original[:-1] + bytes([original[-1] ^ 1]))
    with pytest.raises(ArtifactIntegrityError, match=f"'{name}' was changed"):
        load_artifact(folder)
    (folder / name).write_bytes(original)
    (folder / "extra.pkl").write_bytes(b"")
    with pytest.raises(ArtifactIntegrityError, match=r"'extra\.pkl' is not in its manifest"):
        load_artifact(folder)


def test_another_format_version_is_refused_by_name(folder):
    edit(folder, lambda content: content.update(format_version=99))
    with pytest.raises(ArtifactVersionError, match="format version 99"):
        load_artifact(folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c.pop("model_ids"),
        lambda c: c.update(surprise=1),
        lambda c: c.update(model_ids=["a", "a"]),
        lambda c: c["files"].update({"../../etc/passwd": "0"}),
        lambda c: c["head"].update(kind="pickle"),
        lambda c: c.update(calibration={"maps": "none"}),
        lambda c: c["encoders"][0].update(state="nowhere.safetensors"),
    ],
)
def test_a_damaged_manifest_is_an_artifact_error(folder, change):
    edit(folder, change)
    with pytest.raises(ArtifactError) as caught:
        load_artifact(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b'{"format_version": "1"}'])
def test_a_manifest_that_is_no_json_object_is_an_artifact_error(folder, content):
    (folder / MANIFEST).write_bytes(content)
    with pytest.raises(ArtifactError):
        load_artifact(folder)


def test_a_folder_that_is_no_artifact_says_what_to_do(tmp_path):
    with pytest.raises(ArtifactError, match="router-train run"):
        load_artifact(tmp_path / "nowhere")
    (tmp_path / "nn_router.pth").write_bytes(b"")
    with pytest.raises(ArtifactError, match="import-artifact"):
        load_artifact(tmp_path / "nn_router.pth")


def test_an_encoder_with_another_fingerprint_is_refused(trained):
    artifact = replace(load_artifact(trained[0].output), encoder_fingerprints=("0" * 64,))
    with pytest.raises(ArtifactIntegrityError, match="fingerprint"):
        artifact.predictor()


def test_an_imported_artifact_is_not_checked(trained):
    artifact = replace(load_artifact(trained[0].output), encoder_fingerprints=(None,))
    assert artifact.predictor().model_ids == artifact.model_ids


def test_an_artifact_contains_no_training_text_or_picture(trained, workload):
    config, result = trained
    content = b"".join(file.read_bytes() for file in config.output.iterdir())
    texts = {sample.query.text for sample in result.evaluations.samples}
    assert not [text for text in texts if text.encode() in content]
    assert b"\x89PNG" not in content
    assert str(workload).encode() not in content
