"""Exported encoders: the graphs of a folder, run by one of the engines. No PyTorch is imported.

An encoder keeps its kind when it is exported, so that the layout of ``X`` stays what it was. Its
fingerprint is its own: weights, precision and preprocessing. Where the export proved that nothing
changed but the order of additions, ``stands_for`` is the fingerprint of the encoder that was
exported, and artifacts that were trained on that one take this one as well.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt
import PIL.Image

from router_runtime.errors import EncoderError
from router_runtime.prediction.encoders.base import absent_half
from router_runtime.prediction.encoders.clip_pixels import Preprocessing
from router_runtime.prediction.encoders.onnx_folder import (
    HalfFile,
    checked_file,
    find_exported,
    variant_of,
)
from router_runtime.prediction.encoders.onnx_text import TextInputs
from router_runtime.prediction.encoders.pictures_ahead import decoders_beside, encode_pictures
from router_runtime.prediction.encoders.specs import EncoderRuntime, Spec
from router_runtime.prediction.encoders.windows import Window
from router_runtime.types import F32, Image, WeightsSize

_TOKENS: Final = 512
_PICTURES: Final = 8
"""Most of one run, per thread.

More at a time were measured to be slower, by a quarter for 64 texts of 77 tokens: what a layer
makes of them leaves the caches.
"""


class Session(Protocol):
    """A graph, ready to run."""

    def run(self, inputs: Mapping[str, npt.NDArray[Any]]) -> F32:
        """Return the graph's first output."""
        ...


class OnnxEncoder:
    """An ``Encoder`` on an exported encoder's folder.

    Parameters
    ----------
    spec : Spec
        The encoder that was exported.
    runtime : EncoderRuntime
        Folder, precision, threads, CPUs and batch size.
    open_session : callable
        The engine's: a graph's file and ``runtime`` to a ``Session``.

    Raises
    ------
    EncoderError
        The folder holds no such encoder, no such precision, or a file that was changed.
    """

    def __init__(
        self,
        spec: Spec,
        runtime: EncoderRuntime,
        open_session: Callable[[Path, EncoderRuntime], Session],
    ) -> None:
        if runtime.folder is None:
            raise EncoderError(
                f"'engine: {runtime.engine}' needs 'folder'. Name an exported encoder's folder."
            )
        folder, manifest = find_exported(runtime.folder, spec)
        variant = variant_of(folder, manifest, runtime.precision)
        self.kind: str = manifest.encoder_spec.kind
        self.precision: str = runtime.precision
        self.fingerprint = manifest.fingerprint(runtime.precision)
        self.stands_for = manifest.stands_for(runtime.precision)
        self._batch_size = runtime.batch_size
        self._threads = runtime.threads
        files = [half for half in (variant.text, variant.picture) if half is not None]
        self.text_dim = self.image_dim = 0
        self._preprocess: Preprocessing | None = None

        def opened(half: HalfFile) -> Session:
            checked_file(folder, manifest, half.data)
            return open_session(checked_file(folder, manifest, half.file), runtime)

        with ThreadPoolExecutor(2) as pool:  # digests and weights, while Python reads the tokenizer
            opening = {half.file: pool.submit(opened, half) for half in files}
            if manifest.text is not None and variant.text is not None:
                words = checked_file(folder, manifest, manifest.text.words)
                self.text_dim = manifest.text.dim
                self._texts = TextInputs.of(manifest.text, words)
                self._text_graph = opening[variant.text.file].result()
            if manifest.picture is not None and variant.picture is not None:
                self.image_dim = manifest.picture.dim
                self._preprocess = manifest.picture.preprocessing
                self._picture_graph = opening[variant.picture.file].result()
        self.frozen = WeightsSize(
            parameters=sum(half.parameters for half in files),
            n_bytes=sum((folder / half.data).stat().st_size for half in files),
        )
        self._warm_up()

    def encode_texts(self, texts: Sequence[str]) -> F32:
        if not self.text_dim:
            return absent_half(len(texts))
        return self._texts.windows.encode(
            texts, self.encode_windows, dim=self.text_dim, batch_size=self._batch_size
        )

    def encode_images(self, images: Sequence[Image]) -> F32:
        if self._preprocess is None:
            return absent_half(len(images))
        return encode_pictures(
            images,
            self._preprocess,
            self.encode_pixels,
            dim=self.image_dim,
            batch_size=self._batch_size,
            threads=decoders_beside(self._threads),
        )

    def encode_windows(self, windows: Sequence[Window]) -> F32:
        """Return float32 (n_windows, text_dim), reading no further than need be."""
        tokens = self._texts.length or max(map(len, windows))
        size = max(1, _TOKENS * self._threads // tokens)
        parts = (windows[i : i + size] for i in range(0, len(windows), size))
        return np.vstack([self._text_graph.run(self._texts.batch(part)) for part in parts])

    def encode_pixels(self, pixels: F32) -> F32:
        """Return float32 (n_pictures, image_dim) of float32 (n_pictures, 3, size, size)."""
        size = _PICTURES * self._threads
        parts = (pixels[i : i + size] for i in range(0, len(pixels), size))
        return np.vstack([self._picture_graph.run({"pixels": part}) for part in parts])

    def _encode_pictures(self, pictures: Sequence[Image | PIL.Image.Image]) -> F32:
        if self._preprocess is None:
            raise EncoderError("this encoder has no picture half. Export one that has.")
        return self.encode_pixels(np.stack([self._preprocess(picture) for picture in pictures]))

    def _warm_up(self) -> None:
        """Run both halves once, so that the first request does not wait for what is lazy."""
        if self.text_dim:
            self.encode_texts(["a"])
        if self._preprocess is not None:
            self._encode_pictures([PIL.Image.new("RGB", (64, 64))])
