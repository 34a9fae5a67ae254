"""Long texts: token ids -> windows that fit the model -> one pooled vector.

CLIP reads 77 tokens, MiniLM 256. Cutting a prompt at its head hides the question behind a long
preamble, so a long text is cut into windows that are encoded like texts of their own. Kept are the
first window (what kind of task this is) and the last ``max_windows - 1`` (what is asked); the end
of the text is always kept. Every window of a long text is full: the last one ends where the text
ends, those before it follow backwards without a gap, and the earliest of them may overlap the
first.

Pooling: the mean of the L2-normalised windows, so that each has the same weight whatever its norm,
times the mean of their norms. A text of one window keeps that window's vector as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from router_runtime.errors import EncoderError
from router_runtime.prediction.encoders.base import encode_distinct, well_formed
from router_runtime.types import F32, Int, Json

CHARS_PER_TOKEN = 8
"""Characters read for each token that can be kept.

Prose has about 4 to 5 characters a token, so this loses nothing and bounds the work: byte-pair
encoding takes time quadratic in the length of a word, and a hostile prompt is one endless word.
"""

Window = tuple[int, ...]


def spans(n: int, capacity: int, max_windows: int) -> list[tuple[int, int]]:
    """Return ``(start, stop)`` of the windows kept of a sequence of ``n`` elements.

    With ``max_windows`` 1 the only window is the last one.
    """
    if n <= capacity:
        return [(0, n)]
    count = min(max_windows, -(-n // capacity))
    tail = [(n - capacity * i, n - capacity * (i - 1)) for i in range(count - 1, 0, -1)]
    return [(0, capacity), *tail] if tail else [(n - capacity, n)]


def bounded(text: str, *, capacity: int, max_windows: int) -> str:
    """Return ``text``, or its head and tail when it is far longer than what can be kept.

    Parameters
    ----------
    capacity : int
        Tokens of one window; the head gets one window's characters, the tail the other windows'.
    """
    head = capacity * CHARS_PER_TOKEN if max_windows > 1 else 0
    tail = capacity * CHARS_PER_TOKEN * max(max_windows - 1, 1)
    if len(text) <= head + tail:
        return text
    return f"{text[:head]}\n{text[-tail:]}"


def pool_windows(vectors: F32, counts: Sequence[int]) -> F32:
    """Return the mean direction of each text's windows, as long as a window is on average.

    Parameters
    ----------
    vectors : ndarray of shape (n_windows, dim), float32
        The windows' vectors, those of one text side by side.
    counts : sequence of int
        Windows of each text, each at least 1; their sum is ``n_windows``.

    Returns
    -------
    ndarray of shape (n_texts, dim), float32
        A text of one window has exactly that window's vector. Of several, the mean of the
        L2-normalised vectors times the mean of their norms. A zero vector stays zero.
    """
    if not len(counts):
        return np.zeros((0, vectors.shape[1]), dtype=np.float32)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = vectors / np.where(norms == 0, 1, norms)
    sizes = np.asarray(counts, dtype=np.int64)
    starts = np.cumsum(sizes) - sizes
    directions, lengths = (np.add.reduceat(part, starts, axis=0) for part in (unit, norms))
    pooled = directions * lengths / (sizes * sizes)[:, None]
    single = (sizes == 1)[:, None]
    result: F32 = np.where(single, vectors[starts], pooled).astype(np.float32)
    return result


@dataclass(frozen=True)
class TextWindows:
    """How one tokenizer's texts become windows.

    Parameters
    ----------
    tokenize : callable
        Text to token ids, without special tokens and without truncation.
    prefix, suffix : tuple of int
        Special tokens around every window.
    length : int
        Tokens of a full window, special tokens included.
    max_windows : int
        Most windows kept of one text.
    """

    tokenize: Callable[[str], Sequence[int]]
    prefix: Window
    suffix: Window
    length: int
    max_windows: int

    def __post_init__(self) -> None:
        if self.capacity < 1:
            raise EncoderError(
                f"a text window of {self.length} tokens has no room for text beside its "
                f"{len(self.prefix) + len(self.suffix)} special tokens. The model's configuration "
                "and its tokenizer do not belong together."
            )

    @property
    def capacity(self) -> int:
        """Tokens of the text in one window."""
        return self.length - len(self.prefix) - len(self.suffix)

    def cut(self, text: str) -> list[Window]:
        """Return the windows of ``text``, special tokens included; at least one.

        Special tokens that the text itself spells out are dropped: to the model a prompt's
        ``<|endoftext|>`` would be the end, and whatever follows would be hidden.
        """
        limits = {"capacity": self.capacity, "max_windows": self.max_windows}
        special = {*self.prefix, *self.suffix}
        ids = [
            token
            for token in self.tokenize(bounded(well_formed(text), **limits))
            if token not in special
        ]
        kept = spans(len(ids), **limits)
        return [(*self.prefix, *ids[start:stop], *self.suffix) for start, stop in kept]

    def encode(
        self,
        texts: Sequence[str],
        encode: Callable[[list[Window]], F32],
        *,
        dim: int,
        batch_size: int,
    ) -> F32:
        """Return float32 (n_texts, dim): all windows of all texts in common batches, then pooled.

        Windows that occur several times, such as a shared preamble, are encoded once.
        """
        cuts = {text: self.cut(text) for text in texts}
        windows = [window for text in texts for window in cuts[text]]
        vectors = encode_distinct(
            windows, encode, dim=dim, batch_size=batch_size, key=lambda window: window, size=len
        )
        return pool_windows(vectors, [len(cuts[text]) for text in texts])

    def describe(self) -> dict[str, Json]:
        """Return what a fingerprint must know of the rule."""
        return {
            "rule": "first and last, full, ending at the end",
            "pooling": "mean direction, mean norm",
            "length": self.length,
            "max_windows": self.max_windows,
            "chars_per_token": CHARS_PER_TOKEN,
            "prefix": list(self.prefix),
            "suffix": list(self.suffix),
        }


def huggingface_windows(
    tokenizer: Any,
    *,
    length: int,
    max_windows: int,
    clean: Callable[[str], str] = str,
) -> TextWindows:
    """Return the windows of a transformers tokenizer.

    Parameters
    ----------
    tokenizer : transformers.PreTrainedTokenizerBase
        Fast or slow.
    length, max_windows : int
        As in ``TextWindows``.
    clean : callable
        Applied to a text before the tokenizer.

    Raises
    ------
    EncoderError
        The tokenizer's special tokens do not simply surround the text.
    """

    def ids(text: str, special: bool) -> list[int]:
        encoded = tokenizer(clean(text), add_special_tokens=special, verbose=False)
        return [int(token) for token in encoded["input_ids"]]

    bare, full = ids("a", False), ids("a", True)
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            break
    else:
        raise EncoderError(
            f"{type(tokenizer).__name__} does not put its special tokens around the text, so long "
            "texts cannot be cut into windows. Use another model."
        )
    return TextWindows(
        tokenize=lambda text: ids(text, False),
        prefix=tuple(full[:start]),
        suffix=tuple(full[start + len(bare) :]),
        length=length,
        max_windows=max_windows,
    )


def padded(
    windows: Sequence[Window],
    *,
    pad_id: int,
    length: int | None = None,
    side: Literal["left", "right"] = "right",
) -> tuple[Int, Int]:
    """Return the windows as one array, and the mask of what is not padding.

    Parameters
    ----------
    pad_id : int
        Token that fills up.
    length : int, optional
        Columns; the longest window's length when omitted.

    Returns
    -------
    ids, mask : ndarray of shape (n_windows, length), int64
    """
    length = max(map(len, windows)) if length is None else length
    ids = np.full((len(windows), length), pad_id, dtype=np.int64)
    mask = np.zeros_like(ids)
    for row, window in enumerate(windows):
        span = slice(length - len(window), None) if side == "left" else slice(len(window))
        ids[row, span] = window
        mask[row, span] = 1
    return ids, mask
