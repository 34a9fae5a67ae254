from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from router_runtime import ModelRouter, artifact_folder
from router_runtime.artifacts import (
    FORMAT_VERSION,
    MANIFEST,
    load_artifact,
    read_manifest,
    save_artifact,
)
from router_runtime.errors import (
    ArtifactError,
    ArtifactIntegrityError,
    ArtifactVersionError,
    EncoderError,
)
from router_runtime.prediction.encoders.specs import EncoderRuntime, RemoteSpec
from router_runtime.prediction.feature_parts import FeatureParts
from router_runtime.prediction.features import FeatureSpec
from router_runtime.prediction.novelty import NoveltyModel


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


def with_parts(artifact, **changes):
    return replace(artifact, parts=replace(artifact.parts, **changes))


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
    target = tmp_path / "new"
    monkeypatch.setattr(
        artifact_folder.os, "replace", lambda a, b: (order.append(Path(b)), real(a, b))
    )
    saved(load_artifact(folder), target)
    order = [path.name for path in order if path.parent == target]
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

    monkeypatch.setattr(artifact_folder.os, "replace", dies_at_the_card)
    with pytest.raises(ArtifactError, match="no space left"):
        saved(artifact, target)
    assert not (target / MANIFEST).exists()
    with pytest.raises(ArtifactError, match="not a complete artifact"):
        load_artifact(target)


@pytest.mark.parametrize("step", range(13))
def test_saving_again_mends_a_folder_whose_save_was_killed(folder, tmp_path, monkeypatch, step):
    target = tmp_path / "new"
    artifact = load_artifact(folder)
    saved(artifact, target, exports={"of-the-old.bin": b"1"})
    steps = iter(range(99))

    def killed_at(real):
        def call(*arguments, **options):
            if next(steps) == step:
                raise KeyboardInterrupt
            return real(*arguments, **options)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(artifact_folder, "_write_synced", killed_at(artifact_folder._write_synced))
        patch.setattr(artifact_folder.os, "replace", killed_at(os.replace))
        patch.setattr(
            artifact_folder.shutil, "rmtree", lambda *a, **o: None
        )  # no tidying up either
        try:
            saved(artifact, target)
        except KeyboardInterrupt:
            assert step < 12
    if (target / MANIFEST).exists():
        load_artifact(target)
    saved(artifact, target)
    assert {entry.name for entry in target.iterdir()} == {*read_manifest(target).files, MANIFEST}
    load_artifact(target)


def test_a_save_needs_no_room_beside_the_folder(folder, tmp_path):
    """The folder may be a mounted volume, whose parent is another disk or read-only."""
    target = tmp_path / "volume"
    target.mkdir()
    before = sorted(tmp_path.iterdir())
    saved(load_artifact(folder), target)
    assert sorted(tmp_path.iterdir()) == before
    assert [entry.name for entry in target.iterdir() if entry.is_dir()] == []


def test_a_folder_that_cannot_be_written_is_an_artifact_error(folder, tmp_path):
    (tmp_path / "file").write_text("")
    artifact = load_artifact(folder)
    with pytest.raises(ArtifactError, match="name a folder"):
        saved(artifact, tmp_path / "file")
    with pytest.raises(ArtifactError, match="Cannot write"):
        saved(artifact, tmp_path / "file" / "new")


def test_a_load_during_a_save_is_asked_to_come_again(folder, monkeypatch):
    artifact = load_artifact(folder)
    real = artifact_folder._checked_files

    def replaced(path, manifest):
        saved(artifact, folder, exports={"new.bin": b"1"})
        return real(path, manifest)

    monkeypatch.setattr(artifact_folder, "_checked_files", replaced)
    with pytest.raises(ArtifactError, match="Load it again") as caught:
        load_artifact(folder)
    assert not isinstance(caught.value, ArtifactIntegrityError)


def test_a_file_that_goes_while_it_is_read_is_an_artifact_error(folder, monkeypatch):
    def gone(path, limit):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(artifact_folder, "_read_bounded", gone)
    with pytest.raises(ArtifactError, match="Permission denied"):
        load_artifact(folder)


def test_a_file_larger_than_anything_we_write_is_not_read(folder):
    with (folder / "README.md").open("r+b") as stream:
        stream.truncate(artifact_folder.MAX_FILE_BYTES + 1)  # sparse
    with pytest.raises(ArtifactIntegrityError, match=r"README\.md' has \d+ bytes"):
        load_artifact(folder)
    with (folder / MANIFEST).open("r+b") as stream:
        stream.truncate(artifact_folder.MAX_MANIFEST_BYTES + 1)
    with pytest.raises(ArtifactIntegrityError, match=r"manifest\.json' has \d+ bytes"):
        load_artifact(folder)


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
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    "name", ["HEAD.safetensors", "readme.md", "Manifest.json", "manifest.json"]
)
def test_an_export_whose_name_differs_by_case_alone_is_refused(folder, tmp_path, name):
    with pytest.raises(ArtifactError, match="overwrite"):
        saved(load_artifact(folder), tmp_path / "new", exports={name: b"x"})


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
        lambda c: c["predictor"]["head"].update(kind="pickle"),
        lambda c: c["predictor"].update(kind="pickle"),
        lambda c: c["predictor"].update(kind=["features"]),
        lambda c: c["predictor"].pop("kind"),
        lambda c: c["predictor"].update(surprise=1),
        lambda c: c.update(calibration={"maps": "none"}),
        lambda c: c["predictor"]["encoders"][0].update(state="nowhere.safetensors"),
        lambda c: c.update(format_version=[1]),
        lambda c: c.update(format_version=True),
        lambda c: c["metrics"].update(x=float("nan")),
        lambda c: c["metrics"].update(x="\ud800"),
        lambda c: c["predictor"]["features"]["extra_columns"].append("\ud800"),
        lambda c: c["predictor"].update(encoders=[]),
        lambda c: c["predictor"]["encoders"].append(c["predictor"]["encoders"][0]),
        lambda c: c["model_ids"].pop(),
        lambda c: c["model_ids"].reverse(),
        lambda c: c["predictor"].update(n_features=7),
        lambda c: c["calibration"]["maps"].pop(),
        lambda c: c["scored_modalities"].update(unknown=["text"]),
        lambda c: c["costs"]["model_ids"].pop(),
        lambda c: c["costs"]["usd"].update(low=0.5),
        lambda c: c["costs"]["usd"].update(scale=[[]]),
        lambda c: c["costs"]["usd"]["low"].__setitem__(0, -1.0),
        lambda c: c["costs"]["usd"]["coefficients"][0].pop(),
        lambda c: c.update(recommended_policy={"kind": "utility", "lambda_per_usd": -1}),
        lambda c: c.update(recommended_policy={"kind": "fixed", "model": "unknown"}),
    ],
)
def test_a_damaged_manifest_is_an_artifact_error(folder, change):
    edit(folder, change)
    with pytest.raises(ArtifactError) as caught:
        load_artifact(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"\xff\xfe", b'{"format_version": "1"}', b"[" * 100_000, b'{"a":' * 100_000],
)
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


@pytest.mark.parametrize("name", ["router.pth", "v1.json"])
def test_a_folder_may_be_named_like_a_file(folder, tmp_path, name):
    saved(load_artifact(folder), tmp_path / name)
    load_artifact(tmp_path / name)


def test_a_path_that_no_system_takes_is_an_artifact_error():
    with pytest.raises(ArtifactError, match="cannot be read"):
        load_artifact("x" * 5000)


def test_parts_that_do_not_fit_each_other_are_not_saved(folder, tmp_path):
    artifact = load_artifact(folder)
    with pytest.raises(ArtifactError, match="outputs of the head"):
        saved(replace(artifact, model_ids=("one",), scored_modalities={}), tmp_path / "new")
    with pytest.raises(ArtifactError, match="surrogates"):
        saved(replace(artifact, training={"x": "\ud800"}), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_an_artifact_does_not_choose_which_secret_its_server_is_sent(folder, tmp_path, monkeypatch):
    pytest.importorskip("httpx")
    spec = RemoteSpec(url="http://127.0.0.1:9", api_key_env="CLOUD_SECRET")
    loaded = load_artifact(folder)
    parts = FeatureParts(FeatureSpec(encoders=(spec,)), (None,), (None,), loaded.head)
    remote = replace(loaded, parts=parts)
    monkeypatch.delenv("CLOUD_SECRET", raising=False)
    remote.build_encoders()  # would fail if the variable were looked for
    saved(remote, tmp_path / "new")
    assert "CLOUD_SECRET" not in (tmp_path / "new" / MANIFEST).read_text()
    with pytest.raises(EncoderError, match="MY_KEY"):
        remote.build_encoders(EncoderRuntime(api_key_env="MY_KEY"))


def test_an_encoder_with_another_fingerprint_is_refused(trained):
    artifact = with_parts(load_artifact(trained[0].output), encoder_fingerprints=("0" * 64,))
    with pytest.raises(ArtifactIntegrityError, match="fingerprint"):
        artifact.predictor()


def test_an_imported_artifact_is_not_checked(trained):
    artifact = with_parts(load_artifact(trained[0].output), encoder_fingerprints=(None,))
    assert artifact.predictor().model_ids == artifact.model_ids


def test_an_artifact_contains_no_training_text_or_picture(trained, workload):
    config, result = trained
    content = b"".join(file.read_bytes() for file in config.output.iterdir())
    texts = {sample.query.text for sample in result.evaluations.samples}
    assert not [text for text in texts if text.encode() in content]
    assert b"\x89PNG" not in content
    assert str(workload).encode() not in content


# --------------------------------------------------------------------------- novelty


def test_novelty_is_kept_to_the_bit(trained):
    config, result = trained
    loaded = load_artifact(config.output)
    X = np.random.default_rng(0).normal(size=(50, loaded.head.n_features)).astype(np.float32)
    kept = result.artifact.novelty
    np.testing.assert_array_equal(loaded.novelty.novelty(X), kept.novelty(X))
    assert loaded.novelty.describe() == kept.describe()
    assert "novelty.safetensors" in read_manifest(config.output).files


def test_an_artifact_may_be_without_novelty(folder, tmp_path):
    artifact = load_artifact(folder)
    policy = {**artifact.recommended_policy, "fallback": None}
    saved(replace(artifact, novelty=None, recommended_policy=policy), tmp_path / "new")
    assert load_artifact(tmp_path / "new").novelty is None
    assert "novelty.safetensors" not in read_manifest(tmp_path / "new").files


def test_a_recommended_fallback_without_novelty_is_not_saved(folder, tmp_path):
    artifact = load_artifact(folder)
    with pytest.raises(ArtifactError, match="fallback, but there is no novelty model"):
        saved(replace(artifact, novelty=None), tmp_path / "new")


def test_novelty_of_other_features_is_not_saved(folder, tmp_path):
    artifact = load_artifact(folder)
    novelty = artifact.novelty
    tensors = safetensors.numpy.load(novelty.to_files()["novelty.safetensors"])
    tensors["mean"], tensors["components"] = tensors["mean"][1:], tensors["components"][1:]
    changed = {"n_features": novelty.n_features - 1}
    other = NoveltyModel(novelty.description.model_copy(update=changed), **tensors)
    with pytest.raises(ArtifactError, match="features of the novelty model"):
        saved(replace(artifact, novelty=other), tmp_path / "new")


# --------------------------------------------------------------------------- older versions

VERSION_1 = Path(__file__).resolve().parents[1] / "data" / "artifact-v1"


def test_a_folder_of_version_1_routes_as_it_did_when_it_was_written():
    assert json.loads((VERSION_1 / MANIFEST).read_text())["format_version"] == 1
    artifact = load_artifact(VERSION_1)
    assert artifact.novelty is None
    router = ModelRouter(VERSION_1)
    decision = router.decide("What is 17 + 25?")
    # as the version that wrote the folder decided
    assert decision.ranking == ("sim-large-text", "sim-large-vl", "sim-small-vl", "sim-small-text")
    assert decision.probabilities == pytest.approx(
        {
            "sim-large-vl": 0.8747349305947301,
            "sim-small-vl": 0.6826107706928992,
            "sim-large-text": 0.9340243503730989,
            "sim-small-text": 0.6008731099466604,
        },
        abs=1e-6,
    )
    assert decision.novelty is None


VERSION_2 = VERSION_1.with_name("artifact-v2")


def test_a_folder_of_version_2_routes_as_it_did_when_it_was_written():
    assert json.loads((VERSION_2 / MANIFEST).read_text())["format_version"] == 2
    router = ModelRouter(VERSION_2)
    decision = router.decide("What is 17 + 25?")
    # as the version that wrote the folder decided
    assert decision.ranking == ("sim-large-text", "sim-large-vl", "sim-small-vl", "sim-small-text")
    assert decision.probabilities == pytest.approx(
        {
            "sim-large-vl": 0.8432382806089368,
            "sim-small-vl": 0.6207104743203662,
            "sim-large-text": 0.8964061958183567,
            "sim-small-text": 0.5073318864603821,
        },
        abs=1e-6,
    )
    assert decision.novelty == pytest.approx(0.5797033788668172, abs=1e-6)
    assert router.artifact.parts.kind == "features"


@pytest.mark.parametrize("old", [VERSION_1, VERSION_2])
def test_a_folder_of_an_older_version_is_saved_as_the_present_one(old, tmp_path):
    before = load_artifact(old)
    saved(before, tmp_path / "new")
    manifest = read_manifest(tmp_path / "new")
    assert manifest.format_version == FORMAT_VERSION == 3
    assert manifest.predictor["kind"] == "features"
    after = load_artifact(tmp_path / "new")
    assert (after.novelty is None) == (before.novelty is None)
    assert after.parts.describe() == before.parts.describe()
