"""What is read of an encoder before its graphs are written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from router_runtime.errors import EncoderError
from router_runtime.exporting_encoders.towers import PictureTower, TextTower
from router_runtime.prediction.encoders.onnx_folder import AnyPictureHalf, AnyTextHalf
from router_runtime.prediction.encoders.onnx_text import TextInputs
from router_runtime.prediction.encoders.windows import TextWindows, Window
from router_runtime.types import F32

Batch: TypeAlias = Mapping[str, npt.NDArray[Any]]
"""What a graph takes by name: ``ids`` (n, n_tokens) and perhaps ``lengths`` (n,), or ``pixels``
(n, 3, height, width)."""

BATCH_SIZE = 16


@dataclass(frozen=True, eq=False)
class Half:
    """One half of an encoder on the way to a graph.

    Parameters
    ----------
    name : {"text", "picture"}
    tower : TextTower or PictureTower
    inputs : sequence of Batch
        For the graph, as they are made where it is served.
    own_inputs : sequence of Batch
        The same as the encoder itself makes them.
    expected : ndarray of shape (n_samples, dim), float32
        What the encoder makes of the samples.
    """

    name: str
    tower: TextTower | PictureTower
    inputs: Sequence[Batch]
    own_inputs: Sequence[Batch]
    expected: F32

    def replaced(self, tower: TextTower | PictureTower) -> Half:
        """Return the half with a tower that computes the same."""
        return replace(self, tower=tower)

    def first_batch(self) -> Half:
        """Return the half with the samples of one batch alone."""
        rows = len(next(iter(self.inputs[0].values())))
        return replace(
            self,
            inputs=self.inputs[:1],
            own_inputs=self.own_inputs[:1],
            expected=self.expected[:rows],
        )


@dataclass(frozen=True, eq=False)
class Source:
    """An encoder that is being exported.

    Parameters
    ----------
    fingerprint : str
    text, picture
        What the manifest says of its halves; None where it has no such half.
    words : Path or bytes or None
        The file of the tokenizer, or its content.
    halves : tuple of Half
    """

    fingerprint: str
    text: AnyTextHalf | None
    picture: AnyPictureHalf | None
    words: Path | bytes | None
    halves: tuple[Half, ...]


def sample_windows(
    texts: Sequence[str], inputs: TextInputs, own: TextWindows
) -> list[list[Window]]:
    """Return the texts' windows in batches, having compared tokenizers.

    Parameters
    ----------
    texts : sequence of str
    inputs : TextInputs
        Of the tokenizer that will be served.
    own : TextWindows
        Of the encoder itself.

    Raises
    ------
    EncoderError
        The two cut a text differently.
    """
    windows: list[Window] = []
    for text in texts:
        cut = inputs.windows.cut(text)
        if cut != own.cut(text):
            raise EncoderError(
                "this model's tokenizer cannot be exported: outside its library it gives other "
                f"tokens for {text[:40]!r}. Serve this encoder with 'engine: torch'."
            )
        windows += cut
    return [windows[i : i + BATCH_SIZE] for i in range(0, len(windows), BATCH_SIZE)]


def stacked(pixels: Sequence[F32]) -> list[Batch]:
    """Return pictures' pixels in batches."""
    return [
        {"pixels": np.stack(pixels[i : i + BATCH_SIZE])} for i in range(0, len(pixels), BATCH_SIZE)
    ]


def tokenizer_json(tokenizer: Any) -> bytes:
    """Return the ``tokenizer.json`` of a tokenizer of transformers.

    Raises
    ------
    EncoderError
        It is one that runs in Python, or fills shorter texts up at their start.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or tokenizer.padding_side != "right":
        raise EncoderError(
            f"this model's {type(tokenizer).__name__} cannot be exported: only tokenizers with a "
            "'tokenizer.json' that pad on the right can. Serve this encoder with 'engine: torch'."
        )
    text: str = backend.to_str()
    return text.encode("utf-8")
