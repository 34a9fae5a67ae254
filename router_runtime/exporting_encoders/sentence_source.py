"""Read an encoder of kind ``sentence``."""

from __future__ import annotations

import numpy as np

from router_runtime.exporting_encoders import bert_towers
from router_runtime.exporting_encoders.halves import (
    BATCH_SIZE,
    Half,
    Source,
    sample_windows,
    tokenizer_json,
)
from router_runtime.exporting_encoders.samples import Probes
from router_runtime.prediction.encoders.onnx_folder import JsonTextHalf
from router_runtime.prediction.encoders.onnx_text import TextInputs
from router_runtime.prediction.encoders.sentence import SentenceEncoder
from router_runtime.prediction.encoders.specs import EncoderRuntime, SentenceSpec


def read(spec: SentenceSpec, probes: Probes) -> Source:
    """Return the encoder with what it makes of ``probes``.

    Raises
    ------
    EncoderError
        It cannot be had, or has something that is not exported.
    """
    encoder = SentenceEncoder(spec, EncoderRuntime(device="cpu", batch_size=BATCH_SIZE))
    tower = bert_towers.text_tower(list(encoder.model))
    words = tokenizer_json(encoder.tokenizer)
    text = JsonTextHalf(
        dim=encoder.text_dim,
        length=encoder.windows.length,
        max_windows=encoder.windows.max_windows,
        padding="masked",
        pad_id=encoder.tokenizer.pad_token_id or 0,
    )
    inputs = TextInputs.of(text, words)
    batches = sample_windows(probes.texts, inputs, encoder.windows)
    tokens = [inputs.batch(windows) for windows in batches]
    expected = np.vstack([encoder.encode_windows(windows) for windows in batches])
    half = Half("text", tower, tokens, tokens, expected)
    return Source(encoder.fingerprint, text, None, words, (half,))
