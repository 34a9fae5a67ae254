import json
import os
import re
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import joblib
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from router_runtime.artifacts import load_artifact
from router_runtime.config import EncoderRuntime
from router_runtime.errors import ArtifactError, DataError
from router_runtime.legacy import import_artifact
from router_training import generate_embeddings, nn_router
from router_training.fitting import MlpConfig

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [
    *("--train-embeddings", "hf_train_embeddings.npy"),
    *("--test-embeddings", "hf_test_embeddings.npy"),
    *("--train-json", "hf_evaluations_train.json"),
    *("--test-json", "hf_evaluations_test.json"),
    *("--output-dir", "router_artifacts"),
]
N_TRAIN, N_TEST = 160, 60


def records(n, *, start=0):
    """Every second question is hard; the small model answers easy ones, the big one nearly all."""
    return [
        {
            "idx": index,
            "prompt": f"{'hard' if index % 2 else 'easy'} question {start + index}",
            "answer": "42",
            "images": [],
            "model_scores": {"org/big": int(index % 10 > 0), "small": 1 - index % 2},
        }
        for index in range(n)
    ]


def features(samples, seed):
    """Text half with one telling column, picture half of zeros, as the published script writes."""
    X = np.random.default_rng(seed).normal(scale=0.1, size=(len(samples), 1024))
    X[:, 512:] = 0
    X[:, :64] += [[1.0 if "hard" in sample["prompt"] else -1.0] for sample in samples]
    return X.astype(np.float32)


def written(folder, *, train=None, test=None):
    train = records(N_TRAIN) if train is None else train
    test = records(N_TEST, start=1000) if test is None else test
    for name, samples, seed in (("train", train, 0), ("test", test, 1)):
        (folder / f"hf_evaluations_{name}.json").write_text(json.dumps(samples))
        np.save(folder / f"hf_{name}_embeddings.npy", features(samples, seed))
    return folder


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder, for a small network that is trained in this process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(nn_router.default_config, "hidden_dims", [16])
    return written(tmp_path)


def run(folder, *arguments):
    """Run the script in a process of its own, as a user does."""
    return subprocess.run(  # noqa: S603 - our own script
        [sys.executable, str(ROOT / "router_training" / "nn_router.py"), *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
    )


def call(*arguments):
    """Run the command in this process; raises what ``run_app`` turns into one line."""
    return CliRunner().invoke(nn_router.app, [*arguments], catch_exceptions=False).output


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = written(tmp_path_factory.mktemp("trained"))
    result = run(folder, *COMMAND, "--no-tune")
    assert result.returncode == 0, result.stderr
    return folder, result


def test_the_published_command_prints_the_published_lines(trained):
    lines = trained[1].stdout.splitlines()
    assert lines[0] == "Per-model metrics:"
    figure = r"\d\.\d{3}"
    assert re.fullmatch(rf"  org/big: AUC={figure}, acc={figure}, f1={figure}", lines[1])
    assert re.fullmatch(r"  small: AUC=1.000, acc=1.000, f1=1.000", lines[2])
    assert re.fullmatch(rf"Router system accuracy: {figure}", lines[4])
    assert lines[5] == "Oracle (best possible): 1.000"
    assert lines[7] == "Model selection distribution:"
    assert re.match(r"  org/big: \d+\.\d%", lines[8])


def test_the_folder_holds_an_artifact_and_the_published_files(trained):
    folder = trained[0] / "router_artifacts"
    artifact = load_artifact(folder / "nn_router.pth")
    assert artifact.model_ids == ("org/big", "small")
    checkpoint = torch.load(folder / "nn_router.pth", weights_only=True)
    assert set(checkpoint) == {
        "model_state_dict",
        "config",
        "model_names",
        "input_dim",
        "output_dim",
    }
    assert (checkpoint["input_dim"], checkpoint["output_dim"]) == (1024, 2)
    assert joblib.load(folder / "model_names.joblib") == ["org/big", "small"]
    best = joblib.load(folder / "best_hyperparameters.joblib")
    assert best["hidden_dims"] == [512, 256, 128] and best["epochs"] == 50


def test_the_published_files_predict_what_the_artifact_predicts(trained, tmp_path):
    folder = trained[0] / "router_artifacts"
    again = import_artifact(folder, tmp_path / "again")
    X = np.load(trained[0] / "hf_test_embeddings.npy")
    P = load_artifact(folder).head.predict_proba(X)
    np.testing.assert_allclose(again.head.predict_proba(X), P, atol=1e-6)


def test_without_metadata_the_features_are_plain_and_unverified_and_a_line_says_so(trained):
    folder, result = trained
    assert result.stderr.startswith("warning: no hf_embeddings_metadata.json")
    assert len(result.stderr.splitlines()) == 1
    artifact = load_artifact(folder / "router_artifacts")
    assert artifact.encoder_fingerprints == (None,)
    assert artifact.features.normalise == "none" and artifact.features.extra_columns == ()


def test_what_is_evaluated_is_what_the_artifact_serves(trained):
    folder, result = trained
    artifact = load_artifact(folder / "router_artifacts")
    assert artifact.recommended_policy == {"kind": "highest_probability", "fallback": None}
    X = np.load(folder / "hf_test_embeddings.npy")
    P = artifact.calibrator.apply(artifact.head.predict_proba(X))
    Y = np.array([list(r["model_scores"].values()) for r in records(N_TEST, start=1000)])
    accuracy = Y[np.arange(N_TEST), P.argmax(axis=1)].mean()
    assert f"Router system accuracy: {accuracy:.3f}" in result.stdout


def test_the_same_seed_gives_the_same_weights(folder):
    heads = []
    for name in ("one", "two"):
        call(*COMMAND[:-1], name, "--no-tune")
        heads.append(load_artifact(folder / name).head.to_files("head"))
    assert heads[0] == heads[1]


def test_test_records_are_never_trained_on(trained):
    training = load_artifact(trained[0] / "router_artifacts").training
    assert training["parts"] == {
        "train": 128,
        "validation": 16,
        "calibration": 16,
        "test": N_TEST,
    }


def test_training_records_that_are_also_test_records_are_left_out_and_counted(folder):
    test = records(N_TEST, start=1000)
    written(folder, train=records(N_TRAIN) + [{**r, "idx": 1000 + r["idx"]} for r in test[:7]])
    assert "7 training records also occur in the test records" in call(*COMMAND, "--no-tune")
    training = load_artifact(folder / "router_artifacts").training
    assert sum(training["parts"].values()) == N_TRAIN + N_TEST


def test_tuning_searches_the_published_grid(folder, monkeypatch):
    monkeypatch.setattr(nn_router, "N_TRIALS", 2)
    monkeypatch.setitem(nn_router.default_config, "epochs", 3)
    call(*COMMAND)
    head = load_artifact(folder / "router_artifacts").training["head"]
    assert (head["search"], head["epochs"], head["pos_weight"]) == (2, 3, "balanced")


def test_the_constants_are_the_published_ones():
    published = {
        "hidden_dims": [512, 256, 128],
        "dropout": 0.3,
        "learning_rate": 0.001,
        "batch_size": 64,
        "epochs": 50,
        "patience": 10,
    }
    assert published.items() <= nn_router.default_config.items()
    assert {key: list(values) for key, values in nn_router.param_grid.items()} == {
        "hidden_dims": [(256, 128), (512, 256), (512, 256, 128)],
        "dropout": [0.2, 0.3, 0.4, 0.5],
        "learning_rate": [0.0001, 0.0005, 0.001],
        "batch_size": [32, 64, 128],
        "weight_decay": [0, 1e-6, 1e-5, 1e-4],
    }
    MlpConfig.model_validate(nn_router.head_settings(tune=True))


def test_class_weights_can_be_switched_off(monkeypatch):
    assert nn_router.head_settings(tune=False)["pos_weight"] == "balanced"
    monkeypatch.setattr(nn_router, "USE_CLASS_WEIGHTS", False)
    assert nn_router.head_settings(tune=False)["pos_weight"] == "none"


def test_missing_scores_stay_missing(folder):
    train = records(N_TRAIN)
    for sample in train[::3]:
        sample["model_scores"]["small"] = None
    written(folder, train=train)
    assert "small: AUC=1.000" in call(*COMMAND, "--no-tune")


# --------------------------------------------------------------------------- bad input


def test_wrong_input_is_one_line_status_2_and_nothing_written(folder):
    np.save(folder / "hf_train_embeddings.npy", np.zeros((3, 1024), np.float32))
    result = run(folder, *COMMAND, "--no-tune")
    assert result.returncode == 2
    (line,) = [line for line in result.stderr.splitlines() if not line.startswith("warning")]
    assert "3 rows" in line and "160 records" in line
    assert not (folder / "router_artifacts").exists()


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((N_TRAIN, 7), np.float32), "7 columns; expected 1024"),
        (np.full((N_TRAIN, 1024), np.nan, np.float32), "row 1: It holds NaN"),
        (np.zeros(N_TRAIN, np.float32), "one matrix"),
        (np.array([{}], dtype=object), "no NumPy array file"),
    ],
)
def test_arrays_that_are_no_features_are_refused(folder, array, message):
    np.save(folder / "hf_train_embeddings.npy", array)
    with pytest.raises(DataError, match=message):
        call(*COMMAND)


def test_a_missing_array_says_which_script_makes_it(folder):
    (folder / "hf_test_embeddings.npy").unlink()
    with pytest.raises(DataError, match=r"hf_test_embeddings\.npy.*generate_embeddings\.py"):
        call(*COMMAND)


def test_a_model_that_only_the_test_records_know_is_an_error(folder):
    test = records(N_TEST, start=1000)
    test[3]["model_scores"]["new"] = 1
    written(folder, test=test)
    with pytest.raises(DataError, match=r"row 4, field 'model_scores'.*'new'"):
        call(*COMMAND)


def test_one_class_only_is_an_error(folder):
    train = records(N_TRAIN)
    for sample in train:
        sample["model_scores"]["small"] = 1
    written(folder, train=train)
    with pytest.raises(DataError, match="'small' has one class only"):
        call(*COMMAND, "--no-tune")
    assert not (folder / "router_artifacts").exists()


def test_a_folder_with_other_files_is_not_overwritten(folder):
    (folder / "router_artifacts").mkdir()
    (folder / "router_artifacts" / "notes.txt").write_text("mine")
    with pytest.raises(ArtifactError, match=r"notes\.txt"):
        call(*COMMAND, "--no-tune")
    assert [path.name for path in (folder / "router_artifacts").iterdir()] == ["notes.txt"]


def test_ctrl_c_ends_with_status_130_and_nothing_written(folder):
    code = (
        "import _thread, threading, sys\n"
        "import router_training.nn_router as script\n"
        "from router_runtime.console import run_app\n"
        "threading.Timer(0.5, _thread.interrupt_main).start()\n"
        "script.default_config |= {'epochs': 100000, 'patience': 100000}\n"
        f"sys.argv = ['nn_router.py', *{[*COMMAND, '--no-tune']!r}]\n"
        "run_app(script.app)"
    )
    result = subprocess.run(  # noqa: S603 - our own code
        [sys.executable, "-c", code],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert result.returncode == 130, result.stderr
    assert "Traceback" not in result.stderr
    assert not (folder / "router_artifacts").exists()


# --------------------------------------------------------------------------- stages 2 and 3


@contextmanager
def clip_as_service():
    """A server whose vectors tell hard questions from easy ones."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            vectors = [
                {"embedding": [3.0 if "hard" in entry["text"] else -3.0] * 4 + [1.0] * 508}
                for entry in body["data"]
            ]
            data = json.dumps({"data": vectors}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def embed(*arguments):
    CliRunner().invoke(generate_embeddings.app, [*arguments], catch_exceptions=False)


def test_embeddings_from_a_server_become_a_router_that_serves_with_that_server(folder):
    with clip_as_service() as address:
        embed("--clip-server", address)
        assert "warning" not in call(*COMMAND, "--no-tune")
        artifact = load_artifact(folder / "router_artifacts")
        assert artifact.encoder_fingerprints[0] is not None
        predictor = artifact.predictor(EncoderRuntime(url=f"http://{address}"))
        query = nn_router.read_evaluations("hf_evaluations_test.json").queries[1]
        assert query.text.startswith("hard")
        big, small = predictor.probabilities([query])[0]
        assert big > 0.7 > 0.3 > small


def test_an_embedded_encoder_travels_with_its_state(folder):
    embed("--encoder", "embedded")
    call(*COMMAND, "--no-tune")
    artifact = load_artifact(folder / "router_artifacts")
    queries = nn_router.read_evaluations("hf_evaluations_test.json").queries
    served = artifact.predictor().probabilities(queries)
    X = np.load("hf_test_embeddings.npy")
    assert np.array_equal(served, artifact.calibrator.apply(artifact.head.predict_proba(X)))


def test_embeddings_of_other_records_are_refused(folder):
    with clip_as_service() as address:
        embed("--clip-server", address)
    train = records(N_TRAIN)
    train[0], train[1] = train[1], train[0]
    (folder / "hf_evaluations_train.json").write_text(json.dumps(train))
    with pytest.raises(DataError, match="made from other records"):
        call(*COMMAND)


def test_the_published_scripts_metadata_counts_as_none(folder):
    metadata = {"train_samples": N_TRAIN, "embedding_dim": 1024, "model": "CLIP"}
    (folder / "hf_embeddings_metadata.json").write_text(json.dumps(metadata))
    assert "cannot be checked" in call(*COMMAND, "--no-tune")


def test_damaged_metadata_is_named(folder):
    (folder / "hf_embeddings_metadata.json").write_text('{"feature_spec": {}}')
    with pytest.raises(DataError, match=r"hf_embeddings_metadata\.json"):
        call(*COMMAND)


@pytest.mark.parametrize("script", ["generate_embeddings.py", "nn_router.py"])
def test_a_script_without_the_training_libraries_names_the_extra(script, tmp_path):
    path = ROOT / "router_training" / script
    code = (
        "import runpy, sys; sys.modules['scipy'] = None; "
        f"sys.argv = [{script!r}]; runpy.run_path({str(path)!r}, run_name='__main__')"
    )
    result = subprocess.run(  # noqa: S603 - our own code
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 2, result.stderr
    assert "pip install 'model-router[train]'" in result.stderr
    assert "Traceback" not in result.stderr
