"""The shipped config of a frozen vision-language encoder with a head, on a tiny random Qwen3-VL.

Which adapter is right can be told neither by the request nor by the picture alone: "this" on a red
screen is what "other" is on a blue one.
"""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from typer.testing import CliRunner

from router_runtime import ModelRouter
from router_runtime.errors import ArtifactIntegrityError
from router_training.cli import app
from router_training.config import load_training_config
from router_training.labels import read_evaluations
from router_training.pipeline import Walk

pytest.importorskip("router_runtime.prediction.encoders.vision_language", exc_type=ImportError)
pytest.importorskip("tensorboard")

SHIPPED = Path(__file__).resolve().parents[2] / "configs" / "qwen-head.yml"
ADAPTERS = ("calendar", "claim-window", "provider-select")


def call(*words: object) -> str:
    done = CliRunner().invoke(app, list(map(str, words)))
    assert done.exit_code == 0, (done.output, done.exception)
    return done.output


def screen(color: str, rng: np.random.Generator) -> str:
    size = tuple(int(side) for side in rng.integers(40, 70, 2))
    picture = PIL.Image.new("RGB", size, color)
    for _ in range(20):
        at = (int(rng.integers(size[0])), int(rng.integers(size[1])))
        picture.putpixel(at, tuple(int(level) for level in rng.integers(0, 256, 3)))
    file = io.BytesIO()
    picture.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def write_records(path: Path, rows: int, *, seed: int) -> Path:
    rng = np.random.default_rng(seed)
    lines = []
    for row in range(rows):
        asked, color = ("this", "other")[rng.integers(2)], ("red", "blue")[rng.integers(2)]
        right = ADAPTERS[int((asked == "this") == (color == "red"))]
        if row % 10 == 0:  # text alone, and pictures alone
            asked, right = f"free {row}?", ADAPTERS[2]
        record = {
            "id": str(row),
            "prompt": f"{asked} {asked} {rng.integers(100)}",
            "images": [] if row % 10 == 0 else [screen(color, rng)],
            "scores": {name: float(name == right) for name in ADAPTERS},
        }
        lines.append(json.dumps(record))
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def trained(qwen, tmp_path_factory):
    """The folder of a finished run of the shipped config, but for the model and the rows."""
    root = tmp_path_factory.mktemp("qwen-head")
    (root / "configs").mkdir()
    text = SHIPPED.read_text()
    for old, new in (
        ("Qwen/Qwen3-VL-8B-Instruct ", f"'{qwen}' "),
        ("source: routing ", f"path: '{write_records(root / 'records.jsonl', 240, seed=1)}' "),
        ("learning_rate: 1.0e-4", "learning_rate: 3.0e-3"),
        ("device: auto", "device: cpu"),
    ):
        assert old in text
        text = text.replace(old, new)
    (root / "configs" / "qwen-head.yml").write_text(text)
    call("run", root / "configs" / "qwen-head.yml", "--no-examples")
    return root


def test_the_head_learns_what_only_text_and_picture_together_tell(trained):
    router = ModelRouter(trained / "router_artifacts" / "qwen-head")
    fresh = read_evaluations(write_records(trained / "fresh.jsonl", 100, seed=2))
    P = router.probabilities(fresh.queries)
    columns = [fresh.model_ids.index(name) for name in router.model_ids]
    right = fresh.labels.Y[:, columns].argmax(axis=1)
    assert (P.argmax(axis=1) == right).mean() > 0.8  # one half by text or by picture alone


def test_a_saved_router_predicts_what_training_did(trained):
    walk = Walk(load_training_config(trained / "configs" / "qwen-head.yml"))
    rows = walk.split.calibration
    queries = walk.data.take(rows).queries
    folder = trained / "router_artifacts" / "qwen-head"
    P, again = (ModelRouter(folder).probabilities(queries) for _ in range(2))
    np.testing.assert_array_equal(again, P)
    np.testing.assert_allclose(P, walk.P(rows), atol=1e-4)


def test_training_was_as_the_config_says(trained):
    config = load_training_config(trained / "configs" / "qwen-head.yml")
    assert config.head.tensorboard == (trained / "runs" / "qwen-head" / "tensorboard").resolve()
    log = Walk(config).fitted[1]
    (member,) = log["members"]
    steps = [one["steps"] for one in member["evaluations"]]
    assert steps == [20 * n for n in range(1, len(steps) + 1)]
    assert len(steps) == member["best_evaluation"] + 5
    assert member["evaluations"][-1]["learning_rate"] < 3e-3
    (run,) = config.head.tensorboard.iterdir()
    assert len(list(run.glob("network-1/events.out.tfevents.*"))) == 1
    manifest = (trained / "router_artifacts" / "qwen-head" / "manifest.json").read_text()
    assert "tensorboard" not in manifest


def test_what_was_encoded_is_not_encoded_again(trained, monkeypatch):
    """The features are kept: another head, other shares or an interrupted run read them."""
    from router_runtime.prediction.encoders.vision_language import VisionLanguageEncoder

    text = (trained / "configs" / "qwen-head.yml").read_text()
    other = trained / "configs" / "other.yml"
    other.write_text(text.replace("train: 0.75, validation: 0.1", "train: 0.65, validation: 0.2"))
    asked = []
    encode = VisionLanguageEncoder.encode_queries
    monkeypatch.setattr(
        VisionLanguageEncoder,
        "encode_queries",
        lambda self, queries: asked.extend(queries) or encode(self, queries),
    )
    call("embed", other)
    assert asked == []
    metadata = Walk(load_training_config(other)).features.metadata
    assert (metadata["joint_dim"], metadata["text_dim"], metadata["image_dim"]) == (32, 0, 0)
    assert metadata["embedding_structure"].startswith("vision-language text and images(32) | ")


def test_another_model_of_the_same_shape_is_refused(trained, making, tmp_path):
    folder = trained / "router_artifacts" / "qwen-head"
    manifest = json.loads((folder / "manifest.json").read_text())
    spec = manifest["predictor"]["features"]["encoders"][0]
    spec["model"] = str(making.make_qwen(tmp_path / "other", seed=5))
    copy = tmp_path / "artifact"
    copy.mkdir()
    for file in folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtifactIntegrityError, match=r"vision-language.*was trained with"):
        ModelRouter(copy).probabilities([])
