"""Texts to what an exported text half takes: token ids, and how many of them are the text's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from router_runtime.prediction.encoders.clip_tokenizer import ClipTokenizer, JsonTokenizer
from router_runtime.prediction.encoders.onnx_folder import AnyTextHalf, JsonTextHalf
from router_runtime.prediction.encoders.windows import TextWindows, Window, padded


@dataclass(frozen=True)
class TextInputs:
    """How texts become windows, and windows become the arrays of one call.

    Parameters
    ----------
    windows : TextWindows
    pad_id : int
        Token that fills shorter windows up.
    length : int or None
        Tokens of every row; None: those of the batch's longest window.
    masked : bool
        Whether the graph must be told where each window ends.
    """

    windows: TextWindows
    pad_id: int = 0
    length: int | None = None
    masked: bool = False

    @classmethod
    def of(cls, half: AnyTextHalf, words: Path | bytes) -> Self:
        """Build what a manifest describes.

        Parameters
        ----------
        half : TextHalf or JsonTextHalf
        words : Path or bytes
            The tokenizer's file, or its content.

        Raises
        ------
        EncoderError
            The file is missing, damaged or another one.
        """
        limits = {"length": half.length, "max_windows": half.max_windows}
        if not isinstance(half, JsonTextHalf):
            tokenizer = ClipTokenizer.from_merges(words, cleaning=half.cleaning)
            return cls(tokenizer.windows(**limits))
        return cls(
            JsonTokenizer(words).windows(**limits),
            pad_id=half.pad_id,
            length=half.length if half.padding == "read" else None,
            masked=half.padding == "masked",
        )

    def batch(self, windows: Sequence[Window]) -> dict[str, npt.NDArray[Any]]:
        """Return ``ids`` int64 (n_windows, n_tokens), and where asked ``lengths`` int32."""
        ids, _ = padded(windows, pad_id=self.pad_id, length=self.length)
        if not self.masked:
            return {"ids": ids}
        return {"ids": ids, "lengths": np.array([len(one) for one in windows], dtype=np.int32)}
