"""Pictures to a choice, by pretrained encoders of four kinds and two small heads, as a user types.

The encoders' weights are random and the requests fit any picture, so that nothing but pixels can
tell a screen from a scanned page; even so the features do.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from router_runtime import ModelRouter
from router_runtime.messages import query_from_prompt
from router_runtime.types import Reason
from router_training.cli import app
from router_training.config import load_training_config
from router_training.pipeline import Walk

making = pytest.importorskip("encoder_parts.making", exc_type=ImportError)

ADAPTERS = ("calendar", "chandra-ocr")
HEADS = {
    "logistic": "logistic",
    "mlp": "{kind: mlp, hidden_dims: [32], epochs: 60, batch_size: 16, dropout: 0.1, device: cpu}",
}
PAIRS = [
    ("dinov2", "logistic"),
    ("dinov2", "mlp"),
    ("siglip", "logistic"),
    ("siglip", "mlp"),
    ("clip", "logistic"),
    ("open_clip", "mlp"),
]
CONFIG = """\
data: {{source: routing, path: '{data}'}}
split: {{train: 0.7, validation: 0.1, calibration: 0.1, test: 0.1}}
features: {{encoders: [{encoder}], extra_columns: []}}
encoder: {{device: cpu}}
head: {head}
calibration: {{method: none}}
novelty: {{shrink_above: 1.0, fallback: off}}
output: artifact
work_dir: ../work
"""


def call(*words: object) -> None:
    done = CliRunner().invoke(app, list(map(str, words)))
    assert done.exit_code == 0, (done.output, done.exception)


@pytest.fixture(scope="module")
def routing(tmp_path_factory):
    """Routing data of screens and pages whose requests say nothing."""
    folder = tmp_path_factory.mktemp("pictures")
    names = ",".join(ADAPTERS)
    options = ["--adapters", names, "--rows", 84, "--ambiguous-share", 1, "--blank-share", 0]
    call("draw-screens", folder / "drawn", *options)
    data_sets = [f"--{name}-dataset={folder / 'drawn' / name / 'train.jsonl'}" for name in ADAPTERS]
    call("generate-routing-data", *data_sets, "--eval-samples", 14, "--output-dir", folder)
    return next(folder.glob("routing_*"))


@pytest.fixture(scope="module")
def held_out(routing):
    """Queries that no training saw, and the columns that are right."""
    rows = [json.loads(line) for line in (routing / "eval.jsonl").read_text().splitlines()]
    queries = [
        query_from_prompt(
            row["conversations"][0]["value"].removeprefix("<image>\n"),
            [routing / row["image"]],
            allow_paths=True,
        )
        for row in rows
    ]
    return queries, np.array([ADAPTERS.index(row["adapter"]) for row in rows])


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    """Tiny random encoders, as a config names them."""
    folder = tmp_path_factory.mktemp("encoders")
    making.make_open_clip(folder / "open_clip", side=64)
    named = {"open_clip": f"{{kind: clip, model: 'local-dir:{folder / 'open_clip'}'}}"}
    for kind in ("dinov2", "siglip", "clip"):
        making.save(folder / kind, kind, width=64, side=64, crop=False)
        named[kind] = f"{{kind: huggingface, model: '{folder / kind}'}}"
    return named


@pytest.fixture(scope="module", params=PAIRS, ids="-".join)
def trained(request, encoders, routing):
    """The folder of a finished run; both heads of an encoder use the same kept features."""
    encoder, head = request.param
    folder = routing.parent / "-".join(request.param)
    folder.mkdir()
    text = CONFIG.format(data=routing, encoder=encoders[encoder], head=HEADS[head])
    (folder / "train.yml").write_text(text)
    call("run", folder / "train.yml", "--no-examples")
    return folder


@pytest.fixture(scope="module")
def predicted(trained, held_out):
    """Probabilities of the held-out queries."""
    router = ModelRouter(trained / "artifact")
    assert router.model_ids == ADAPTERS
    return router.probabilities(held_out[0])


def test_a_router_learns_from_pixels_alone(predicted, held_out):
    assert (predicted.argmax(axis=1) == held_out[1]).mean() > 0.7  # a half by chance


def test_a_saved_router_predicts_what_training_did(trained):
    walk = Walk(load_training_config(trained / "train.yml"))
    rows = walk.split.test
    queries = walk.data.take(rows).queries
    P, again = (ModelRouter(trained / "artifact").probabilities(queries) for _ in range(2))
    np.testing.assert_array_equal(again, P)
    np.testing.assert_allclose(P, walk.P(rows), atol=1e-5)


def test_pictures_that_the_router_is_unsure_of_go_to_a_manual_choice(trained, held_out, predicted):
    confidence = predicted.max(axis=1)
    extremes = np.argsort(confidence)[[0, 1, 2, -3, -2, -1]]
    bound = float(confidence[extremes[2:4]].mean())
    (trained / "router.yml").write_text(
        "artifact: artifact\nencoder: {device: cpu}\npolicies:\n"
        "  careful: {kind: highest_probability, "
        f"fallback: {{model: chandra-ocr, confidence_below: {bound!r}}}}}\n"
    )
    router = ModelRouter.from_config(trained / "router.yml")
    decisions = router.decide_batch([held_out[0][row] for row in extremes])
    unsure = [decision.reason is Reason.LOW_CONFIDENCE for decision in decisions]
    assert unsure == [True] * 3 + [False] * 3
    assert {decision.model_id for decision in decisions[:3]} == {"chandra-ocr"}
    for decision in decisions[3:]:
        assert decision.probabilities[decision.model_id] > bound
