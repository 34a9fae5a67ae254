"""Encoders: texts and pictures to vectors. One file per implementation, chosen by ``spec.kind``.

Importing this package loads none of them, so a router whose encoder is ``embedded`` needs no
PyTorch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np

from router_runtime.errors import EncoderError, MissingDependencyError
from router_runtime.prediction.encoders.specs import EncoderRuntime, EncoderSpec
from router_runtime.prediction.heads.base import import_whole
from router_runtime.types import Encoder

_VISION_LANGUAGE = "router_runtime.prediction.encoders.vision_language:VisionLanguageEncoder"
_FACTORIES = {
    "embedded": "router_runtime.prediction.encoders.embedded:EmbeddedEncoder",
    "clip": "router_runtime.prediction.encoders.clip:ClipEncoder",
    "huggingface": "router_runtime.prediction.encoders.huggingface:HuggingFaceEncoder",
    "sentence": "router_runtime.prediction.encoders.sentence:SentenceEncoder",
    "vision-language": _VISION_LANGUAGE,
    "remote": "router_runtime.prediction.encoders.remote:RemoteEncoder",
}
ENCODER_KINDS = tuple(_FACTORIES)
"""Every kind that a spec may have."""
_EXPORTED = "router_runtime.prediction.encoders.onnx_encoder:OnnxEncoder"
_ENGINES = {  # of exported encoders: what opens a graph
    "onnx": "router_runtime.prediction.encoders.onnx_session:open_session",
    "openvino": "router_runtime.prediction.encoders.openvino_session:open_session",
}
EXPORTED_KINDS = ("clip", "huggingface", "sentence")
"""Kinds that ``engine: onnx`` and ``openvino`` serve."""
_EXTRAS = {
    "onnx": "onnx",
    "openvino": "openvino",
    "clip": "clip",
    "huggingface": "clip",
    "sentence": "minilm",
    "vision-language": "clip",
    "remote": "remote",
}
_DISTRIBUTIONS = {  # what pip calls the modules that the implementations import
    "open_clip": "open-clip-torch",
    "torch": "torch",
    "transformers": "transformers",
    "huggingface_hub": "huggingface_hub",
    "sentence_transformers": "sentence-transformers",
    "httpx": "httpx",
    "onnxruntime": "onnxruntime",
    "openvino": "openvino",
    "tokenizers": "tokenizers",
    "regex": "regex",
    "ftfy": "ftfy",
}


def build_encoder(
    spec: EncoderSpec,
    *,
    runtime: EncoderRuntime = EncoderRuntime(),
    state: Mapping[str, np.ndarray] | None = None,
) -> Encoder:
    """Return the encoder that ``spec`` describes.

    Parameters
    ----------
    spec : EncoderSpec
        What it is.
    runtime : EncoderRuntime
        Where and how fast it runs; with ``engine`` ``onnx`` or ``openvino``, kinds that can be
        exported come from its folder.
    state : mapping of str to ndarray, optional
        The fitted arrays of an ``embedded`` encoder; the others take none.

    Raises
    ------
    EncoderError
        Weights or server cannot be had, or ``state`` is missing or given in vain.
    MissingDependencyError
        The implementation's library is not installed; the message gives the pip command.
    """
    if spec.kind == "embedded":
        if state is None:
            raise EncoderError(
                "an 'embedded' encoder must be fitted before it can encode. Load it from an "
                "artifact, or fit it with router_training.fit_embedded.fit_embedded."
            )
        return cast(Encoder, _factory(spec.kind)(spec, state))
    if state:
        raise EncoderError(f"an encoder of kind '{spec.kind}' takes no fitted state; give none.")
    if runtime.exported and spec.kind in EXPORTED_KINDS:
        open_session = _imported(_ENGINES[runtime.engine], runtime.engine)
        return cast(Encoder, _imported(_EXPORTED, runtime.engine)(spec, runtime, open_session))
    return cast(Encoder, _factory(spec.kind)(spec, runtime))


def check_encoder(kind: str) -> None:
    """Import the implementation of a kind, without weights.

    Raises
    ------
    MissingDependencyError
        Its library is not installed; the message gives the pip command.
    """
    _factory(kind)


def _factory(kind: str) -> Any:
    return _imported(_FACTORIES[kind], kind)


def _imported(path: str, user: str) -> Any:
    """Return what ``module:name`` names, which the kind or engine ``user`` needs."""
    module, _, name = path.partition(":")
    try:
        return getattr(import_whole(module), name)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if user not in _EXTRAS or missing not in _DISTRIBUTIONS:
            raise
        raise MissingDependencyError(_DISTRIBUTIONS[missing], _EXTRAS[user]) from error
