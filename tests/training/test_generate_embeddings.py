import base64
import hashlib
import io
import json
import os
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from router_runtime.errors import ConfigError, DataError, EncoderError
from router_runtime.prediction.encoders.remote import RemoteEncoder
from router_runtime.simulator.config import SimulatorConfig
from router_runtime.simulator.embeddings import text_vector
from router_runtime.simulator.serve import SimulatorServer
from router_training.generate_embeddings import (
    EncoderName,
    app,
    encoder_spec,
    generate_embeddings_for_dataset,
    load_embedding_model,
)

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = "router_training/generate_embeddings.py"
COMMAND = ["--train-json", "hf_evaluations_train.json", "--test-json", "hf_evaluations_test.json"]


class ClipAsService:
    """clip-as-service over HTTP: a vector of norm 10 per document, decided by its content."""

    def __init__(self, *, failing_after=None):
        self.documents = []
        self.batches = []
        self.failing_after = failing_after
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                assert self.path == "/post" and body["execEndpoint"] == "/"
                limit = service.failing_after
                if limit is not None and len(service.documents) + len(body["data"]) > limit:
                    self.send_error(400)
                    return
                service.documents += body["data"]
                service.batches.append(len(body["data"]))
                answer = {"data": [{"embedding": vector(entry)} for entry in body["data"]]}
                data = json.dumps(answer).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self.server.server_port}"

    @contextmanager
    def running(self):
        thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self.server.shutdown()
            self.server.server_close()
            thread.join()


def vector(document):
    (content,) = document.values()
    seed = int.from_bytes(hashlib.sha256(content.encode()).digest()[:8], "big")
    values = np.random.default_rng(seed).normal(size=512)
    return (10 * values / np.linalg.norm(values)).tolist()


def png(colour):
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()


def picture_vector(picture):
    return np.asarray(vector({"uri": f"data:image/png;base64,{picture}"}), np.float32)


def record(idx, prompt, images=()):
    return {
        "idx": idx,
        "prompt": prompt,
        "answer": "yes",
        "images": list(images),
        "model_scores": {"big": 1, "small": idx % 2},
    }


RED, BLUE = png("red"), png("blue")
TRAIN = [
    record(0, "What is shown?", [RED]),
    record(1, "Compare both.", [RED, BLUE]),
    record(2, "What is 2 + 2?"),
]
TEST = [record(0, "And here?", [BLUE]), record(1, "What is 3 + 3?")]


def records_in(folder):
    (folder / "hf_evaluations_train.json").write_text(json.dumps(TRAIN))
    (folder / "hf_evaluations_test.json").write_text(json.dumps(TEST))
    return folder


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CLIP_SERVER", raising=False)
    return records_in(tmp_path)


@pytest.fixture(scope="module")
def clip():
    with ClipAsService().running() as service:
        yield service


def run(folder, *arguments):
    """Run the script in a process of its own, as a user does."""
    return subprocess.run(  # noqa: S603 - our own script
        [sys.executable, str(ROOT / SCRIPT), *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        env={name: value for name, value in os.environ.items() if name != "CLIP_SERVER"},
    )


def call(*arguments, **environment):
    """Run the command in this process; raises what ``run_app`` turns into one line."""
    CliRunner().invoke(app, [*arguments], env=environment, catch_exceptions=False)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """The folder after the published command, the script's answer, and what the server saw."""
    folder = records_in(tmp_path_factory.mktemp("published"))
    with ClipAsService().running() as service:
        result = run(folder, *COMMAND, "--clip-server", service.address)
        assert result.returncode == 0, result.stderr
        yield folder, result, service


def outputs(folder):
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("hf_eval"))


def test_the_published_command_writes_text_and_picture_halves(published):
    folder, result, _ = published
    X = np.load(folder / "hf_train_embeddings.npy")
    assert X.shape == (3, 1024) and X.dtype == np.float32
    for row, sample in enumerate(TRAIN):
        np.testing.assert_allclose(X[row, :512], vector({"text": sample["prompt"]}), atol=1e-6)
    np.testing.assert_allclose(X[0, 512:], picture_vector(RED), atol=1e-6)
    assert not X[2, 512:].any()
    assert np.load(folder / "hf_test_embeddings.npy").shape == (2, 1024)
    assert "hf_embeddings_metadata.json" in result.stdout


def test_every_picture_of_a_record_counts(published):
    both = np.load(published[0] / "hf_train_embeddings.npy")[1, 512:]
    mean = (picture_vector(RED) + picture_vector(BLUE)) / 2
    np.testing.assert_allclose(both, mean, atol=1e-5)


def test_the_metadata_has_the_published_keys_and_identifies_the_features(published):
    folder, _, clip = published
    metadata = json.loads((folder / "hf_embeddings_metadata.json").read_text())
    expected = {
        "train_samples": 3,
        "test_samples": 2,
        "embedding_dim": 1024,
        "text_dim": 512,
        "image_dim": 512,
        "combined_dim": 1024,
    }
    assert {key: metadata[key] for key in expected} == expected
    assert {"model", "embedding_structure"} <= set(metadata)
    assert metadata["feature_spec"]["normalise"] == "none"
    spec = encoder_spec(EncoderName.REMOTE, clip.address)
    assert metadata["encoders"][0]["fingerprint"] == RemoteEncoder(spec).fingerprint
    assert len(metadata["fingerprint"]) == 64


def test_a_second_run_asks_the_server_for_nothing(published):
    folder, _, clip = published
    first = (folder / "hf_train_embeddings.npy").read_bytes()
    assert len(clip.documents) == 7  # five texts and two pictures, each once
    assert run(folder, *COMMAND, "--clip-server", clip.address).returncode == 0
    assert len(clip.documents) == 7
    assert (folder / "hf_train_embeddings.npy").read_bytes() == first


def test_a_run_that_fails_leaves_no_result_and_the_next_one_continues(folder):
    with ClipAsService(failing_after=3).running() as service:
        with pytest.raises(EncoderError, match="400"):
            call(*COMMAND, "--clip-server", service.address)
    assert outputs(folder) == [".cache"]
    with ClipAsService().running() as service:
        call(*COMMAND, "--clip-server", service.address)
        assert len(service.documents) == 4
    assert "hf_embeddings_metadata.json" in outputs(folder)


def test_the_server_may_be_named_by_the_environment_and_the_output_elsewhere(folder, clip):
    call(*COMMAND, "--output-dir", "out", "--max-samples", "1", CLIP_SERVER=clip.address)
    assert np.load(folder / "out" / "hf_train_embeddings.npy").shape == (1, 1024)


def test_a_batch_is_as_large_as_wanted_and_the_cache_where_it_is_wanted(folder):
    with ClipAsService().running() as service:
        call(*COMMAND, "--clip-server", service.address, "--batch-size", "2", "--cache-dir", "kept")
        assert max(service.batches) == 2
        assert any((folder / "kept").rglob("*")) and not (folder / ".cache").exists()
        call(*COMMAND, "--clip-server", service.address, "--cache-dir", "kept")
        assert len(service.documents) == 7
        call(*COMMAND, "--clip-server", service.address)
        assert len(service.documents) == 14 and max(service.batches) > 2


def test_the_embedded_encoder_needs_no_server_and_keeps_its_state(folder):
    call(*COMMAND, "--encoder", "embedded")
    assert "hf_encoder.safetensors" in outputs(folder)


def test_wrong_input_is_one_line_and_status_2(folder):
    result = run(folder, "--train-json", "absent.json")
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1 and "absent.json" in result.stderr
    assert outputs(folder) == []


def test_an_nv_clip_server_is_asked_in_its_own_form(folder):
    config = SimulatorConfig.model_validate(
        {
            "models": {
                "nvidia/nvclip": {
                    "role": "embedding",
                    "modalities": ["text", "image"],
                    "dimensions": 1024,
                }
            }
        }
    )
    with SimulatorServer(config) as server:
        address = server.url.removeprefix("http://")
        result = run(folder, *COMMAND, "--encoder", "nvclip", "--clip-server", address)
        assert result.returncode == 0, result.stderr
    X = np.load(folder / "hf_train_embeddings.npy")
    assert X.shape == (3, 2048)
    for row, sample in enumerate(TRAIN):
        expected = text_vector(sample["prompt"], seed=0, dimensions=1024)
        np.testing.assert_allclose(X[row, :1024], expected, atol=1e-6)
    assert X[0, 1024:].any() and X[1, 1024:].any() and not X[2, 1024:].any()


def test_a_server_for_an_encoder_that_uses_none_is_refused(folder):
    with pytest.raises(ConfigError, match="leave out --clip-server"):
        call("--encoder", "clip", "--clip-server", "h:1")


def test_a_picture_that_does_not_decode_is_named(folder):
    broken = [record(0, "What?", [base64.b64encode(b"\x89PNG\r\n\x1a\n").decode()])]
    (folder / "hf_evaluations_train.json").write_text(json.dumps(broken))
    with pytest.raises(DataError, match=r"row 1, field 'images\[0\]'"):
        call(*COMMAND)


def test_the_script_removes_its_own_folder_from_the_module_path():
    code = (
        "import importlib.util, runpy, sys\n"
        f"sys.path[0] = {str(ROOT / 'router_training')!r}; sys.argv = ['x', '--help']\n"
        "try: runpy.run_path(sys.path[0] + '/generate_embeddings.py', run_name='__main__')\n"
        "except SystemExit: pass\n"
        "print([importlib.util.find_spec(name) for name in ('config', 'evaluate', 'labels')])"
    )
    result = subprocess.run(  # noqa: S603 - our own code
        [sys.executable, "-c", code], cwd="/", capture_output=True, text=True, timeout=60
    )
    assert result.stdout.splitlines()[-1] == "[None, None, None]", result.stderr


def test_the_functions_import_by_the_published_name(clip):
    code = (
        "from generate_embeddings import load_embedding_model, generate_embeddings_for_dataset\n"
        "client = load_embedding_model()\n"
        "data = [{'prompt': 'x', 'images': [], 'model_scores': {'a': 1}}] * 2\n"
        "data = [{**r, 'idx': i} for i, r in enumerate(data)]\n"
        "print(generate_embeddings_for_dataset(client, data, max_samples=None).shape)"
    )
    result = subprocess.run(  # noqa: S603 - our own code
        [sys.executable, "-c", code],
        cwd=ROOT / "router_training",
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT), "CLIP_SERVER": clip.address},
    )
    assert result.stdout.strip() == "(2, 1024)", result.stderr


def test_records_in_memory_give_the_rows_of_the_files(published):
    folder, _, clip = published
    client = load_embedding_model(f"grpc://{clip.address}")
    X = generate_embeddings_for_dataset(client, TRAIN)
    assert np.array_equal(X, np.load(folder / "hf_train_embeddings.npy"))
    assert generate_embeddings_for_dataset(client, TRAIN, max_samples=2).shape == (2, 1024)


def test_progress_is_reported_in_memory(clip):
    seen = []
    client = load_embedding_model(clip.address)
    generate_embeddings_for_dataset(client, TRAIN, progress=lambda *pair: seen.append(pair))
    assert seen == [(3, 3)]


def test_a_record_without_a_prompt_is_named(clip):
    with pytest.raises(DataError, match=r"row 2, field 'prompt'"):
        generate_embeddings_for_dataset(
            load_embedding_model(clip.address), [TRAIN[0], {"model_scores": {"a": 1}}]
        )
