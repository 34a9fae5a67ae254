"""What is timed: the encoder alone, and embedding as ``router-train embed`` does it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from router_runtime.prediction.encoders import build_encoder
from router_runtime.prediction.encoders.cache import CachedEncoder
from router_runtime.prediction.encoders.specs import ClipSpec, EncoderRuntime
from router_runtime.prediction.features import EmbeddingGenerator, FeatureSpec
from router_runtime.types import Query
from router_training.embed import write_features
from router_training.labels import read_evaluations

NAME = "ViT-B-32-quickgelu"
BATCH = 32


@dataclass(frozen=True)
class Bench:
    """An exported encoder, opened."""

    spec: ClipSpec
    exported: Path
    precision: str
    encoder: Any


def export(folder: Path, precision: str) -> tuple[ClipSpec, Path]:
    """Export a model with random weights; PyTorch is needed for this alone."""
    import torch
    from safetensors.torch import save_file

    from router_runtime.exporting_encoders.exporting import export_encoder
    from router_runtime.weights import torch_setup  # noqa: F401  makes torchvision importable

    # isort: split
    import open_clip

    torch.manual_seed(0)
    model = open_clip.create_model(NAME)
    weights = folder / "random.safetensors"
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, weights)
    spec = ClipSpec(model=NAME, pretrained=str(weights))
    export_encoder(spec, folder / "encoders", precisions=[precision], on_step=lambda _: None)
    return spec, folder / "encoders"


def opened(exported: tuple[ClipSpec, Path], precision: str, *, threads: int) -> Bench:
    spec, folder = exported
    runtime = EncoderRuntime.model_validate(
        {
            "engine": "onnx",
            "folder": folder,
            "precision": precision,
            "threads": threads,
            "batch_size": BATCH,
        }
    )
    return Bench(spec, folder, precision, build_encoder(spec, runtime=runtime))


def encode_alone(bench: Bench, pixels: np.ndarray, n: int) -> None:
    for _ in range(0, n, len(pixels)):
        bench.encoder.encode_pixels(pixels)


def read_files(rows: Path) -> Sequence[Query]:
    """Read rows and pictures as training does, each picture decoded once."""
    return [Query("", query.images) for query in read_evaluations(rows).queries]


def embed(bench: Bench, queries: Sequence[Query], folder: Path) -> None:
    """Write the features of pictures alone, through a cache that is empty."""
    folder.mkdir(parents=True)
    encoder = CachedEncoder(bench.encoder, folder / "cache")
    spec = FeatureSpec(encoders=(bench.spec,), extra_columns=())
    write_features(folder, EmbeddingGenerator(spec, [encoder]), queries)
