"""Read an encoder of kind ``huggingface``."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from router_runtime.exporting_encoders import transformers_towers
from router_runtime.exporting_encoders.halves import (
    BATCH_SIZE,
    Half,
    Source,
    sample_windows,
    stacked,
    tokenizer_json,
)
from router_runtime.exporting_encoders.samples import Probes
from router_runtime.prediction.encoders.huggingface import HuggingFaceEncoder
from router_runtime.prediction.encoders.onnx_folder import (
    AnyPictureHalf,
    JsonTextHalf,
    picture_half,
)
from router_runtime.prediction.encoders.onnx_text import TextInputs
from router_runtime.prediction.encoders.processor_pixels import from_processor
from router_runtime.prediction.encoders.specs import EncoderRuntime, HuggingFaceSpec
from router_runtime.prediction.encoders.windows import TextWindows
from router_runtime.types import Image


def read(spec: HuggingFaceSpec, probes: Probes) -> Source:
    """Return the encoder with what it makes of ``probes``.

    Raises
    ------
    EncoderError
        It cannot be had, or has something that is not exported.
    """
    encoder = HuggingFaceEncoder(spec, EncoderRuntime(device="cpu", batch_size=BATCH_SIZE))
    picture, second = _pictures(encoder, probes.images)
    if encoder.windows is None:
        return Source(encoder.fingerprint, None, picture, None, (second,))
    text, words, first = _texts(encoder, encoder.windows, probes.texts)
    return Source(encoder.fingerprint, text, picture, words, (first, second))


def _pictures(encoder: HuggingFaceEncoder, images: Sequence[Image]) -> tuple[AnyPictureHalf, Half]:
    prepare = from_processor(encoder.processor.to_dict())
    half = Half(
        "picture",
        transformers_towers.picture_tower(encoder.model, size=prepare.height),
        stacked([prepare(image) for image in images]),
        stacked([one.numpy() for one in encoder.pixels(images)]),
        encoder.encode_images(images),
    )
    return picture_half(prepare, dim=encoder.image_dim), half


def _texts(
    encoder: HuggingFaceEncoder, windows: TextWindows, texts: Sequence[str]
) -> tuple[JsonTextHalf, bytes, Half]:
    words = tokenizer_json(encoder.tokenizer)
    tower = transformers_towers.text_tower(
        encoder.model, start_and_end=(*windows.prefix, *windows.suffix)
    )
    causal = encoder.model.config.model_type == "clip"
    text = JsonTextHalf(
        dim=encoder.text_dim,
        length=windows.length,
        max_windows=windows.max_windows,
        padding="ignored" if causal else "read",
        pad_id=0 if causal else encoder.tokenizer.pad_token_id or 0,
    )
    inputs = TextInputs.of(text, words)
    batches = sample_windows(texts, inputs, windows)
    tokens = [inputs.batch(batch) for batch in batches]
    expected = np.vstack([encoder.encode_windows(batch) for batch in batches])
    return text, words, Half("text", tower, tokens, tokens, expected)
