"""Training on an exported encoder, and serving what comes out of it."""

from __future__ import annotations

import json

import numpy as np
import pytest

from router_runtime.artifacts import load_artifact
from router_runtime.errors import ArtifactIntegrityError
from router_runtime.types import Query

from .conftest import CPU, picture

pytest.importorskip("onnxruntime")
pytest.importorskip("sklearn")


def test_an_artifact_trained_on_an_export_is_served_by_it_alone(
    workload, exported, spec, runtime, tmp_path
):
    from router_training.config import load_training_config
    from router_training.pipeline import run

    (tmp_path / "train.yml").write_text(
        f"data: {{path: '{workload / 'records.jsonl'}'}}\n"
        f"features: {{encoders: [{spec.model_dump_json()}]}}\n"
        f"encoder: {{engine: onnx, folder: {json.dumps(str(exported[0]))}, precision: int8}}\n"
        "head: logistic\noutput: artifact\nwork_dir: work\nseed: 3\n"
    )
    config = load_training_config(tmp_path / "train.yml")
    trained = run(config).artifact
    assert trained.encoder_fingerprints == (exported[2].fingerprint("int8"),)
    loaded = load_artifact(config.output)
    queries = [Query("What is 17 + 25?"), Query("and this?", (picture(5),))]
    np.testing.assert_allclose(
        loaded.predictor(runtime("int8")).probabilities(queries),
        trained.predictor(runtime("int8")).probabilities(queries),
        atol=1e-6,
    )
    for other in (runtime("fp32"), CPU):
        with pytest.raises(ArtifactIntegrityError, match="was trained with"):
            loaded.predictor(other)
