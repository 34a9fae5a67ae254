"""A tiny open_clip model with real parts, what is exported of it, and an artifact that uses it."""

from __future__ import annotations

import io
import json

import numpy as np
import PIL.Image
import pytest

from router_runtime.artifacts import Artifact, load_artifact, save_artifact
from router_runtime.images import load_image
from router_runtime.prediction.calibration import Calibrator
from router_runtime.prediction.encoders.specs import ClipSpec, EncoderRuntime
from router_runtime.prediction.feature_parts import FeatureParts
from router_runtime.prediction.features import FeatureSpec
from router_runtime.prediction.heads.logistic import LogisticHead

TOWERS = {
    "embed_dim": 32,
    "vision_cfg": {
        "image_size": 32, "layers": 2, "width": 64, "patch_size": 8, "head_width": 32,
    },
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 3},
}  # fmt: skip
CPU = EncoderRuntime(device="cpu", batch_size=4)
TEXTS = [
    "a cat",
    "",
    "naïve \N{GRINNING FACE} 日本",
    "What is 17 + 25? " * 9,
    "long " * 300,
    "a cat",
]


def save_model(folder, name, *, seed=0, **changes):
    """Register an architecture and return the spec of random weights for it."""
    open_clip = pytest.importorskip("open_clip")
    torch = pytest.importorskip("torch")
    save_file = pytest.importorskip("safetensors.torch").save_file
    (folder / f"{name}.json").write_text(json.dumps(TOWERS | changes))
    open_clip.add_model_config(folder / f"{name}.json")
    torch.manual_seed(seed)
    state = open_clip.create_model(name).state_dict()
    noisy = {k: v + 0.05 * torch.randn_like(v) if v.dim() > 0 else v for k, v in state.items()}
    path = folder / f"{name}-{seed}.safetensors"
    save_file({key: value.contiguous() for key, value in noisy.items()}, path)
    return ClipSpec(model=name, pretrained=str(path), max_windows=3)


def few_probes():
    """Enough to measure on in a test."""
    from router_runtime.exporting_encoders.samples import Probes

    images = (picture(8), picture(9, size=(90, 60), kind="JPEG"))
    return Probes(("a", "two words", "a rather longer sentence about cats."), images)


def picture(seed, *, size=(40, 50), kind="PNG"):
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    out = io.BytesIO()
    PIL.Image.fromarray(pixels).save(out, kind)
    return load_image(out.getvalue())


@pytest.fixture(scope="session")
def spec(tmp_path_factory):
    pytest.importorskip("router_runtime.prediction.encoders.clip", exc_type=ImportError)
    return save_model(tmp_path_factory.mktemp("onnx-clip"), "tiny-onnx", quick_gelu=True)


@pytest.fixture(scope="session")
def source(spec):
    from router_runtime.prediction.encoders.clip import ClipEncoder

    return ClipEncoder(spec, CPU)


@pytest.fixture(scope="session")
def exported(spec, tmp_path_factory):
    """The folder of exported encoders, the one in it, and its manifest."""
    pytest.importorskip("onnx")
    from router_runtime.exporting_encoders.exporting import export_encoder

    output = tmp_path_factory.mktemp("exported")
    return output, *export_encoder(spec, output, weight_bits=7, least_cosine=0.99)


@pytest.fixture(scope="session")
def runtime(exported):
    def make(precision="fp32", **changes):
        return EncoderRuntime(
            engine="onnx", folder=exported[0], precision=precision, batch_size=4, **changes
        )

    return make


@pytest.fixture
def artifact(spec, source, tmp_path):
    """An artifact's folder, trained (so it says) with PyTorch's encoder."""
    features = FeatureSpec(encoders=(spec,), extra_columns=())
    rng = np.random.default_rng(0)
    head = LogisticHead(rng.normal(size=(64, 2)).astype(np.float32), np.zeros(2, np.float32))
    made = Artifact(
        model_ids=("small", "large"),
        parts=FeatureParts(features, (source.fingerprint,), (None,), head),
        calibrator=Calibrator.identity(2),
        scored_modalities={"small": ("text", "image"), "large": ("text", "image")},
        recommended_policy={"kind": "highest_probability"},
    )
    save_artifact(made, tmp_path / "artifact", created_by="test", card="# card\n")
    assert load_artifact(tmp_path / "artifact").model_ids == made.model_ids
    return tmp_path / "artifact"
