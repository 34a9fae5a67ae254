"""Read an encoder of kind ``clip``."""

from __future__ import annotations

import numpy as np

from router_runtime.errors import EncoderError
from router_runtime.exporting_encoders import open_clip_towers
from router_runtime.exporting_encoders.halves import (
    BATCH_SIZE,
    Half,
    Source,
    sample_windows,
    stacked,
)
from router_runtime.exporting_encoders.samples import Probes
from router_runtime.prediction.encoders.clip import ClipEncoder
from router_runtime.prediction.encoders.clip_pixels import Preprocessing
from router_runtime.prediction.encoders.clip_tokenizer import MERGES_FILE
from router_runtime.prediction.encoders.onnx_folder import TextHalf, picture_half
from router_runtime.prediction.encoders.onnx_text import TextInputs
from router_runtime.prediction.encoders.specs import ClipSpec, EncoderRuntime


def read(spec: ClipSpec, probes: Probes) -> Source:
    """Return the encoder with what it makes of ``probes``.

    Raises
    ------
    EncoderError
        It cannot be had, or has something that is not exported.
    """
    encoder = ClipEncoder(spec, EncoderRuntime(device="cpu", batch_size=BATCH_SIZE))
    merges, cleaning = encoder.byte_pairs()
    text = TextHalf(
        dim=encoder.text_dim,
        length=encoder.windows.length,
        max_windows=encoder.windows.max_windows,
        merges=MERGES_FILE,
        cleaning=cleaning,
    )
    prepare = _preprocessing(encoder)
    picture = picture_half(prepare, dim=encoder.image_dim)
    inputs = TextInputs.of(text, merges)
    batches = sample_windows(probes.texts, inputs, encoder.windows)
    tokens = [inputs.batch(windows) for windows in batches]
    halves = (
        Half(
            "text",
            open_clip_towers.text_tower(encoder.model, start_token=encoder.windows.prefix[0]),
            tokens,
            tokens,
            np.vstack([encoder.encode_windows(windows) for windows in batches]),
        ),
        Half(
            "picture",
            open_clip_towers.picture_tower(encoder.model),
            stacked([prepare(image) for image in probes.images]),
            stacked([one.numpy() for one in encoder.pixels(probes.images)]),
            encoder.encode_images(probes.images),
        ),
    )
    return Source(encoder.fingerprint, text, picture, merges, halves)


def _preprocessing(encoder: ClipEncoder) -> Preprocessing:
    config = encoder.preprocessing
    if config.get("mode", "RGB") != "RGB" or config.get("interpolation") == "random":
        raise EncoderError(
            f"pictures of this model are prepared in a way that is not exported ({config}). Serve "
            "it with 'engine: torch'."
        )
    return Preprocessing.from_config(config)
