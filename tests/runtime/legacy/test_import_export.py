"""Import and export of the published router's files."""

import io
import json
import os
import pickle
import zipfile

import joblib
import numpy as np
import pytest
import torch
import xgboost
from typer.testing import CliRunner

from router_runtime.artifacts import load_artifact
from router_runtime.cli import app
from router_runtime.errors import ArtifactError, ConfigError
from router_runtime.legacy import export_files, import_artifact, plain_features
from router_runtime.prediction.encoders.specs import ClipSpec, EmbeddedSpec, RemoteSpec
from router_runtime.prediction.heads.network import RouterNetwork, fold
from router_runtime.prediction.heads.prior import PriorHead
from router_runtime.prediction.heads.xgboost import XGBoostHead

MODELS = ("org/big", "small", "third")
SETTINGS = {"learning_rate": 0.001, "dropout": 0.3, "epochs": 50}


def network(hidden=(8, 4), inputs=6, outputs=3, seed=0):
    """A network whose BatchNorm layers are not the identity."""
    torch.manual_seed(seed)
    made = RouterNetwork(inputs, outputs, hidden_dims=hidden)
    with torch.no_grad():
        for module in made.network:
            if isinstance(module, torch.nn.BatchNorm1d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.1, 3.0)
                module.weight.normal_()
                module.bias.normal_()
    return made.eval()


def checkpoint(hidden=(8, 4), **changes):
    made = network(hidden)
    return {
        "model_state_dict": made.state_dict(),
        "config": {"hidden_dims": list(hidden), **SETTINGS},
        "model_names": list(MODELS),
        "input_dim": 6,
        "output_dim": 3,
        **changes,
    }


def saved(folder, content, names=None):
    folder.mkdir(exist_ok=True)
    torch.save(content, folder / "nn_router.pth")
    if names is not None:
        joblib.dump(names, folder / "model_names.joblib")
    return folder


def probabilities(made, X):
    with torch.no_grad():
        return made(torch.from_numpy(X)).numpy()


def rows(n=50, columns=6, seed=1):
    return np.random.default_rng(seed).normal(size=(n, columns)).astype(np.float32)


def booster(seed, columns=6, objective="binary:logistic"):
    X = rows(80, columns, seed)
    y = (X[:, seed % columns] > 0).astype(np.float32)
    data = xgboost.DMatrix(X, y)
    return xgboost.train({"objective": objective, "nthread": 1}, data, num_boost_round=5)


def boosters(n=3):
    return XGBoostHead([booster(seed) for seed in range(n)], n_features=6)


def written(folder, files):
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


# --------------------------------------------------------------------------- the real ones


def test_the_published_network_gives_its_own_probabilities(shared_data, tmp_path):
    source = shared_data / "blueprint"
    import_artifact(source, tmp_path / "out")
    artifact = load_artifact(tmp_path / "out")
    assert artifact.model_ids == (
        "gpt-5-chat",
        "nvidia/nvidia-nemotron-nano-9b-v2",
        "Qwen/Qwen3-VL-8B-Instruct",
    )
    content = torch.load(source / "nn_router.pth", weights_only=True, map_location="cpu")
    made = RouterNetwork(1024, 3, hidden_dims=content["config"]["hidden_dims"])
    made.load_state_dict(content["model_state_dict"])
    X = rows(500, 1024)
    difference = artifact.head.predict_proba(X) - probabilities(made.eval(), X)
    assert np.abs(difference).max() < 1e-5


def test_the_published_boosters_convert_without_unpickling(shared_data, tmp_path):
    import_artifact(shared_data / "blueprint", tmp_path / "out", head="xgboost")
    artifact = load_artifact(tmp_path / "out")
    assert artifact.model_ids[1:] == ("nemotron-nano-12b-v2-vl", "meta/llama-3.2-1b-instruct")
    P = artifact.head.predict_proba(rows(20, 1536))
    assert ((P > 0) & (P < 1)).all() and P.std() > 0.05
    assert artifact.training["config"]["gpt-5-chat"]["n_estimators"] == 500


# --------------------------------------------------------------------------- importing


def test_an_imported_network_is_folded_and_keeps_its_order(tmp_path):
    source = saved(tmp_path / "in", checkpoint())
    artifact = import_artifact(source, tmp_path / "out")
    assert artifact.model_ids == MODELS
    X = rows()
    P = load_artifact(tmp_path / "out").head.predict_proba(X)
    np.testing.assert_allclose(P, probabilities(network(), X), atol=1e-6)


def test_the_command_tells_what_it_made_as_json(tmp_path):
    source, output = saved(tmp_path / "in", checkpoint()), tmp_path / "out"
    words = ["import-artifact", str(source), "--output", str(output), "--json"]
    told = json.loads(CliRunner().invoke(app, words).stdout)
    assert (told["output"], told["model_ids"]) == (str(output), list(MODELS))
    assert told["artifact_id"] == load_artifact(output).artifact_id


def test_the_features_are_plain_and_nothing_is_claimed_about_them(tmp_path):
    artifact = import_artifact(saved(tmp_path / "in", checkpoint()), tmp_path / "out")
    assert artifact.features == plain_features(ClipSpec())
    assert artifact.features.normalise == "none" and artifact.features.extra_columns == ()
    assert artifact.encoder_fingerprints == (None,)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Imported router" in card and "cannot be verified" in card


def test_a_file_in_the_folder_names_the_folder(tmp_path):
    source = saved(tmp_path / "in", checkpoint())
    assert import_artifact(source / "nn_router.pth", tmp_path / "out").model_ids == MODELS


def test_names_of_another_router_are_noted_and_the_networks_own_kept(tmp_path):
    source = saved(tmp_path / "in", checkpoint(), names=["a", "b", "c"])
    artifact = import_artifact(source, tmp_path / "out")
    assert artifact.model_ids == MODELS
    assert "model_names.joblib lists a, b, c" in artifact.training["notes"][0]


def test_names_come_from_the_joblib_file_when_the_network_has_none(tmp_path):
    content = checkpoint()
    del content["model_names"]
    source = saved(tmp_path / "in", content, names=["a", "b", "c"])
    assert import_artifact(source, tmp_path / "out").model_ids == ("a", "b", "c")


def test_given_names_replace_the_stored_ones(tmp_path):
    source = saved(tmp_path / "in", checkpoint())
    artifact = import_artifact(source, tmp_path / "out", model_ids=["x", "y", "z"])
    assert artifact.model_ids == ("x", "y", "z")


@pytest.mark.parametrize("names", [["x"], ["x", "x", "y"], ["x", "", "y"]])
def test_names_that_do_not_fit_the_outputs_are_refused(tmp_path, names):
    source = saved(tmp_path / "in", checkpoint())
    with pytest.raises(ConfigError, match="3 outputs"):
        import_artifact(source, tmp_path / "out", model_ids=names)
    assert not (tmp_path / "out").exists()


def test_a_remote_encoder_of_another_width_is_refused(tmp_path):
    source = saved(tmp_path / "in", checkpoint())
    with pytest.raises(ConfigError, match=r"6 features.*gives 1024.*dim to 3"):
        import_artifact(source, tmp_path / "out", encoder=RemoteSpec(dim=512))
    import_artifact(source, tmp_path / "out", encoder=RemoteSpec(dim=3))


def test_an_encoder_that_is_fitted_to_its_data_is_refused(tmp_path):
    source = saved(tmp_path / "in", checkpoint())
    with pytest.raises(ConfigError, match="embedded"):
        import_artifact(source, tmp_path / "out", encoder=EmbeddedSpec())


# --------------------------------------------------------------------------- hostile and damaged


class Hostile:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def test_a_checkpoint_with_an_object_is_refused_and_nothing_runs(tmp_path):
    marker = tmp_path / "pwned"
    source = saved(tmp_path / "in", checkpoint(config={"hidden_dims": Hostile(marker)}))
    with pytest.raises(ArtifactError, match="never loaded"):
        import_artifact(source, tmp_path / "out")
    assert not marker.exists() and not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["model_names.joblib", "best_hyperparameters.joblib"])
def test_a_hostile_companion_is_refused_and_nothing_runs(tmp_path, name):
    marker = tmp_path / "pwned"
    source = written(tmp_path / "in", export_files(boosters(), MODELS, SETTINGS))
    (source / name).write_bytes(pickle.dumps([Hostile(marker)]))
    with pytest.raises(ArtifactError, match=r"system'"):
        import_artifact(source, tmp_path / "out", head="xgboost")
    assert not marker.exists() and not (tmp_path / "out").exists()


def test_hostile_boosters_are_refused_and_nothing_runs(tmp_path):
    marker = tmp_path / "pwned"
    files = export_files(boosters(), MODELS, SETTINGS)
    router = joblib.load(io.BytesIO(files["xgb_multi_router.joblib"]))
    router.estimators_[1].extra = Hostile(marker)
    source = written(tmp_path / "in", files)
    joblib.dump(router, source / "xgb_multi_router.joblib")
    with pytest.raises(ArtifactError, match=r"system'"):
        import_artifact(source, tmp_path / "out", head="xgboost")
    assert not marker.exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input_dim": 7}, "do not fit"),
        ({"output_dim": 60_000, "input_dim": 60_000}, "do not fit"),
        ({"input_dim": 10**9}, "input_dim"),
        ({"config": {"hidden_dims": [8]}}, "do not fit"),
        ({"config": {}}, "hidden_dims"),
        ({"config": {"hidden_dims": [60_000] * 33}}, "hidden_dims"),
        ({"model_state_dict": {"x": "y"}}, "finite dense tensors"),
        ({"model_names": [1, 2, 3]}, "model_names"),
    ],
)
def test_a_checkpoint_that_contradicts_itself_is_refused(tmp_path, changes, message):
    source = saved(tmp_path / "in", checkpoint(**changes))
    with pytest.raises(ArtifactError, match=message):
        import_artifact(source, tmp_path / "out")


def weight(value):
    return {**network().state_dict(), "network.0.weight": value}


@pytest.mark.parametrize(
    "value",
    [
        torch.zeros(1).expand(2**20, 2**20),  # four terabytes in four bytes
        torch.zeros(8, 6, device="meta"),
        torch.zeros(8, 6).to_sparse(),
        torch.nested.nested_tensor([torch.zeros(3), torch.zeros(2)]),
    ],
    ids=["strides of 0", "meta", "sparse", "nested"],
)
def test_a_tensor_that_is_not_what_it_weighs_is_refused(tmp_path, value):
    source = saved(tmp_path / "in", checkpoint(model_state_dict=weight(value)))
    with pytest.raises(ArtifactError, match="finite dense tensors"):
        import_artifact(source, tmp_path / "out")


def test_tensors_that_share_their_memory_count_each(tmp_path, monkeypatch):
    monkeypatch.setattr("router_runtime.legacy.checkpoint.MAX_BYTES", 40_000)
    shared = torch.zeros(3000)
    state = {f"{i}": shared for i in range(4)}
    source = saved(tmp_path / "in", checkpoint(model_state_dict=state))
    with pytest.raises(ArtifactError, match="more than 40000 bytes"):
        import_artifact(source, tmp_path / "out")


@pytest.mark.parametrize(
    "change",
    [{"network.1.running_var": -5.0}, {"network.0.weight": 3e38, "network.1.weight": 3e38}],
)
def test_a_network_that_does_not_fold_to_finite_weights_is_refused(tmp_path, change):
    content = checkpoint()
    for name, value in change.items():
        content["model_state_dict"][name].fill_(value)
    with pytest.raises(ArtifactError, match="finite numbers"):
        import_artifact(saved(tmp_path / "in", content), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def rezipped(path, change, **options):
    """Write the archive anew, its members' bytes passed through ``change(name, data)``."""
    with zipfile.ZipFile(path) as source:
        members = {name: change(name, source.read(name)) for name in source.namelist()}
    with zipfile.ZipFile(path, "w", **options) as target:
        for name, data in members.items():
            target.writestr(name, data)


def test_a_compressed_checkpoint_is_not_unpacked(tmp_path):
    source = saved(tmp_path / "in", checkpoint())
    path = source / "nn_router.pth"
    rezipped(path, lambda name, data: data)
    import_artifact(source, tmp_path / "out")
    rezipped(path, lambda name, data: data, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(ArtifactError, match="compressed"):
        import_artifact(source, tmp_path / "out")
    rezipped(path, lambda name, data: bytes(2**29), compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(ArtifactError, match="unpacks to more than"):
        import_artifact(source, tmp_path / "out")


def test_a_long_program_in_a_checkpoint_is_not_run(tmp_path):
    """One byte of it may make a list of 56 bytes."""
    source = saved(tmp_path / "in", checkpoint())
    longer = {True: lambda data: data[:2] + 2**21 * b"]" + data[2:], False: bytes}
    rezipped(source / "nn_router.pth", lambda name, data: longer[name.endswith(".pkl")](data))
    with pytest.raises(ArtifactError, match="values beside the tensors"):
        import_artifact(source, tmp_path / "out")


def test_a_checkpoint_older_than_archives_is_refused(tmp_path):
    source = saved(tmp_path / "in", checkpoint())
    torch.save(checkpoint(), source / "nn_router.pth", _use_new_zipfile_serialization=False)
    with pytest.raises(ArtifactError, match=r"older than PyTorch 1\.6"):
        import_artifact(source, tmp_path / "out")


@pytest.mark.parametrize("name", ["\ud800", "a\nb", "a\x1b[31m"])
def test_a_model_name_that_cannot_be_printed_is_refused(tmp_path, name):
    source = saved(tmp_path / "in", checkpoint(model_names=[name, "b", "c"]))
    with pytest.raises(ArtifactError, match="no text") as caught:
        import_artifact(source, tmp_path / "out")
    assert str(caught.value).isprintable()
    source = saved(tmp_path / "in", checkpoint(), names=[name])
    with pytest.raises(ArtifactError, match="no text"):
        import_artifact(source, tmp_path / "out")


def test_weights_that_are_not_finite_are_refused(tmp_path):
    content = checkpoint()
    content["model_state_dict"]["network.0.bias"][2] = float("nan")
    with pytest.raises(ArtifactError, match="finite"):
        import_artifact(saved(tmp_path / "in", content), tmp_path / "out")


@pytest.mark.parametrize("content", [b"", b"no zip", b"PK\x03\x04cut off"])
def test_a_damaged_checkpoint_is_named(tmp_path, content):
    source = written(tmp_path / "in", {"nn_router.pth": content})
    with pytest.raises(ArtifactError, match=r"nn_router\.pth"):
        import_artifact(source, tmp_path / "out")


def test_an_empty_folder_says_what_is_missing(tmp_path):
    with pytest.raises(ArtifactError, match=r"nn_router\.pth' does not exist"):
        import_artifact(tmp_path, tmp_path / "out")
    with pytest.raises(ArtifactError, match=r"xgb_multi_router\.joblib"):
        import_artifact(tmp_path, tmp_path / "out", head="xgboost")


def test_boosters_that_give_no_probabilities_are_refused(tmp_path):
    head = XGBoostHead([booster(0, objective="reg:squarederror")] * 3, n_features=6)
    source = written(tmp_path / "in", export_files(head, MODELS, SETTINGS))
    with pytest.raises(ArtifactError, match=r"reg:squarederror"):
        import_artifact(source, tmp_path / "out", head="xgboost")


def test_boosters_that_stopped_early_predict_with_their_best_rounds(tmp_path):
    stopped = booster(0)
    first_two = stopped[:2]
    stopped.set_attr(best_iteration="1")
    head = XGBoostHead([stopped] * 3, n_features=6)
    source = written(tmp_path / "in", export_files(head, MODELS, SETTINGS))
    again = import_artifact(source, tmp_path / "out", head="xgboost")
    X = rows()
    np.testing.assert_allclose(
        again.head.predict_proba(X)[:, 0], first_two.inplace_predict(X), atol=1e-7
    )


def test_boosters_of_different_widths_are_refused(tmp_path):
    head = XGBoostHead([booster(0), booster(1), booster(2, columns=5)], n_features=6)
    source = written(tmp_path / "in", export_files(head, MODELS, SETTINGS))
    with pytest.raises(ArtifactError, match=r"\[5, 6\] features"):
        import_artifact(source, tmp_path / "out", head="xgboost")


def test_a_pickle_of_something_else_is_no_xgboost_router(tmp_path):
    source = written(tmp_path / "in", export_files(boosters(), MODELS, SETTINGS))
    joblib.dump({"estimators_": []}, source / "xgb_multi_router.joblib")
    with pytest.raises(ArtifactError, match="no published XGBoost router"):
        import_artifact(source, tmp_path / "out", head="xgboost")


# --------------------------------------------------------------------------- exporting


@pytest.mark.parametrize("hidden", [(8, 4), (5,), ()])
def test_an_exported_network_comes_back_with_the_same_probabilities(tmp_path, hidden):
    head = fold(network(hidden))
    source = written(tmp_path / "in", export_files(head, MODELS, SETTINGS))
    again = import_artifact(source, tmp_path / "out")
    X = rows()
    np.testing.assert_allclose(again.head.predict_proba(X), head.predict_proba(X), atol=1e-6)
    assert again.model_ids == MODELS
    assert again.training["config"] == {**SETTINGS, "hidden_dims": list(hidden)}


def test_the_exported_checkpoint_runs_in_the_published_network(tmp_path):
    head = fold(network())
    stream = io.BytesIO(export_files(head, MODELS, SETTINGS)["nn_router.pth"])
    content = torch.load(stream, weights_only=True)
    made = RouterNetwork(content["input_dim"], content["output_dim"], hidden_dims=(8, 4))
    made.load_state_dict(content["model_state_dict"], strict=True)
    X = rows()
    np.testing.assert_allclose(probabilities(made.eval(), X), head.predict_proba(X), atol=1e-6)
    assert list(made.state_dict()) == list(content["model_state_dict"])


def test_exports_are_equal_to_the_byte_and_leave_torchs_random_state_alone():
    head = fold(network())
    before = torch.get_rng_state()
    assert export_files(head, MODELS, SETTINGS) == export_files(head, MODELS, SETTINGS)
    assert torch.equal(before, torch.get_rng_state())


def test_the_exported_checkpoint_holds_tensors_and_plain_values_only():
    files = export_files(fold(network()), MODELS, SETTINGS)
    with zipfile.ZipFile(io.BytesIO(files["nn_router.pth"])) as archive:
        (program,) = [name for name in archive.namelist() if name.endswith("data.pkl")]
        modules = {b"numpy", b"router_runtime", b"builtins"}
        assert not any(module in archive.read(program) for module in modules)


def test_names_and_settings_load_with_joblib():
    files = export_files(fold(network()), MODELS, SETTINGS)
    assert joblib.load(io.BytesIO(files["model_names.joblib"])) == list(MODELS)
    assert joblib.load(io.BytesIO(files["best_hyperparameters.joblib"])) == SETTINGS
    assert set(files) == {"nn_router.pth", "model_names.joblib", "best_hyperparameters.joblib"}


def test_an_artifact_exports_its_head(tmp_path):
    artifact = import_artifact(saved(tmp_path / "in", checkpoint()), tmp_path / "out")
    assert export_files(artifact, MODELS, SETTINGS) == export_files(artifact.head, MODELS, SETTINGS)


def test_exported_boosters_serve_in_scikit_learn_and_come_back_equal(tmp_path):
    head = boosters()
    files = export_files(head, MODELS, SETTINGS)
    X = rows()
    router = joblib.load(io.BytesIO(files["xgb_multi_router.joblib"]))
    columns = np.stack([pair[:, 1] for pair in router.predict_proba(X)], axis=1)
    np.testing.assert_allclose(columns, head.predict_proba(X), atol=1e-7)
    again = import_artifact(written(tmp_path / "in", files), tmp_path / "out", head="xgboost")
    assert np.array_equal(again.head.predict_proba(X), head.predict_proba(X))
    assert again.training["config"] == SETTINGS


def test_an_ensemble_cannot_be_exported():
    with pytest.raises(ConfigError, match=r"ensemble of 2.*'ensemble: 1'"):
        export_files(fold([network(seed=0), network(seed=1)]), MODELS, SETTINGS)


def test_a_head_without_a_counterpart_cannot_be_exported():
    head = PriorHead(np.array([0.2, 0.5, 0.7]), n_features=6)
    with pytest.raises(ConfigError, match=r"'prior' head.*'mlp' or 'xgboost'"):
        export_files(head, MODELS, SETTINGS)


def test_the_manifest_of_an_import_names_files_by_digest_and_no_path(tmp_path):
    import_artifact(saved(tmp_path / "in", checkpoint()), tmp_path / "out")
    text = (tmp_path / "out" / "manifest.json").read_text()
    (digest,) = json.loads(text)["training"]["imported"].values()
    assert len(digest) == 64 and str(tmp_path) not in text
