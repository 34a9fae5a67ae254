"""Texts to token ids without torch: CLIP's byte-pair tokenizer, and any ``tokenizer.json``.

CLIP's has three steps. Cleaning (ftfy, HTML entities, white space, lower case) and the pattern that
cuts a text into words are those of OpenAI and open_clip, with the same libraries, so that every odd
character falls where it fell in training. Joining the bytes of a word is the work of Hugging Face's
``tokenizers``: its result is the same, and it takes n log n steps for a word of n bytes where
OpenAI's takes n². Words met before are remembered, within bounds.

What is plain ASCII skips the cleaning and takes a simpler pattern; other texts skip the steps of
ftfy that could change nothing in them. Both are shown to make no difference.
"""

from __future__ import annotations

import gzip
import html
import re
import string
import unicodedata
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Literal, Self, TypeAlias

import ftfy
import regex  # type: ignore[import-untyped]
from ftfy.badness import is_bad
from ftfy.fixes import fix_character_width, uncurl_quotes
from tokenizers import Tokenizer
from tokenizers.models import BPE

from router_runtime.errors import EncoderError
from router_runtime.prediction.encoders.windows import TextWindows, huggingface_windows

Cleaning: TypeAlias = Literal["lower", "whitespace", "canonicalize"]
"""As in open_clip: CLIP's own, the same without lower case, and SigLIP's without punctuation."""

MERGES_FILE: Final = "bpe_simple_vocab_16e6.txt.gz"
"""The file's name in open_clip's package and in an exported encoder's folder."""

_N_MERGES: Final = 48_894
_START, _END = "<start_of_text>", "<end_of_text>"
_CONTRACTIONS: Final = "'s|'t|'re|'ve|'m|'ll|'d"
_WORDS: Final = regex.compile(
    rf"{_START}|{_END}|{_CONTRACTIONS}|[\p{{L}}]+|[\p{{N}}]|[^\s\p{{L}}\p{{N}}]+", regex.IGNORECASE
)
_ASCII_WORDS: Final = re.compile(  # on cleaned text, where a blank is the only white space
    rf"{_START}|{_END}|{_CONTRACTIONS}|[a-z]+|[0-9]|[^ a-z0-9]+", re.IGNORECASE
)
_NEEDS_CLEANING: Final = re.compile(r"[^\t\n\r -~]|&(?![ \t\n&]|\Z)")
_CHANGED_BY_FTFY: Final = re.compile(  # each by itself; & may begin an entity
    "[&\\x00-\\x08\\x0b\\r-\\x1f\\x7f-\\x9f\\u0132\\u0133\\u0149\\u01c4-\\u01cc\\u01f1-\\u01f3"
    "\\u2028\\u2029\\u206a-\\u206f\\ufb00-\\ufb06\\ufeff\\ufff9-\\ufffc\\ud800-\\udfff]"
)
_WIDE: Final = re.compile("[\\u3000\\uff01-\\uffee]")
_LINES: Final = re.compile(r"[^\n]*\n|[^\n]+")
_PUNCTUATION: Final = str.maketrans("_", " ", string.punctuation.replace("_", ""))
_MAX_CACHED_WORDS: Final = 1 << 16
_MAX_CACHED_CHARS: Final = 24  # a longer word hardly comes again


def clean(text: str, cleaning: Cleaning) -> str:
    """Return ``text`` as open_clip's ``clean_fn`` of that name does."""
    if _NEEDS_CLEANING.search(text):  # not ASCII, a control character, or what may be an entity
        text = html.unescape(html.unescape(_mended(text)))
    if cleaning == "canonicalize":
        text = text.translate(_PUNCTUATION).lower()
        return " ".join(text.split())
    text = " ".join(text.split())
    return text.lower() if cleaning == "lower" else text


def _mended(text: str) -> str:
    """Return ``ftfy.fix_text(text)``, sooner where it changes at most quotes and widths."""
    if _CHANGED_BY_FTFY.search(text) or _is_odd(text):
        return ftfy.fix_text(text)
    plain: str = uncurl_quotes(fix_character_width(text) if _WIDE.search(text) else text)
    if plain == text:
        return text
    return ftfy.fix_text(text) if "&" in plain or _is_odd(plain) else plain


def _is_odd(text: str) -> bool:
    """Whether ftfy would normalise the text, or take a line of it for wrongly decoded."""
    if not unicodedata.is_normalized("NFC", text):
        return True
    return any(is_bad(line) for line in _LINES.findall(text))


class ClipTokenizer:
    """OpenAI's byte-pair tokenizer, with open_clip's ids. Any number of threads may share one.

    Made by ``from_merges``.

    Parameters
    ----------
    vocabulary : dict of str to int
        Ids of all pieces, in the alphabet of ``_alphabet``.
    merges : list of (str, str)
        Pairs of pieces in the order in which they are joined.
    cleaning : {"lower", "whitespace", "canonicalize"}
        What happens to a text first.
    """

    def __init__(
        self,
        vocabulary: dict[str, int],
        merges: list[tuple[str, str]],
        *,
        cleaning: Cleaning = "lower",
    ) -> None:
        self.start = vocabulary[_START]
        self.end = vocabulary[_END]
        self.size = len(vocabulary)
        self.cleaning = cleaning
        self._alphabet = _alphabet()
        self._model = BPE(
            vocab=vocabulary, merges=merges, end_of_word_suffix="</w>", cache_capacity=0
        )
        self._known: dict[str, tuple[int, ...]] = {_START: (self.start,), _END: (self.end,)}

    @classmethod
    def from_merges(cls, source: Path | str | bytes, *, cleaning: Cleaning = "lower") -> Self:
        """Build the tokenizer from OpenAI's ``bpe_simple_vocab_16e6.txt``, compressed or not.

        Parameters
        ----------
        source : Path, str or bytes
            The file, or its content.
        cleaning : {"lower", "whitespace", "canonicalize"}
            What the model was trained with; CLIP's own is ``lower``.

        Raises
        ------
        EncoderError
            The file is missing, damaged or another one.
        """
        shown = "the merges" if isinstance(source, bytes) else f"merges file '{source}'"
        try:
            data = source if isinstance(source, bytes) else Path(source).read_bytes()
            text = (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode("utf-8")
            lines = text.split("\n")[1 : _N_MERGES + 1]  # the first line tells the version
            pairs = [line.split() for line in lines]
            vocabulary = _vocabulary(pairs)
            return cls(vocabulary, [(a, b) for a, b in pairs], cleaning=cleaning)
        except FileNotFoundError:
            raise EncoderError(
                f"{shown} does not exist. Export the encoder again, or copy the file from "
                "open_clip's package."
            ) from None
        except (OSError, EOFError, zlib.error, ValueError) as error:
            reason = " ".join(str(error).split())[:120]
            raise EncoderError(
                f"{shown} cannot be read as CLIP's vocabulary: {reason}. Export the encoder again, "
                "or copy the file from open_clip's package."
            ) from error

    def tokenize(self, text: str) -> list[int]:
        """Return the ids of ``text`` without special tokens around it, and without a limit.

        Special tokens that the text spells out are in the result, as in open_clip; whoever encodes
        texts of others drops them (``TextWindows`` does).
        """
        ids: list[int] = []
        for piece in self._pieces(text):
            ids += piece
        return ids

    def encode(self, text: str, *, length: int | None = None) -> list[int]:
        """Return the ids of ``text`` with its start and end tokens, and no padding.

        Parameters
        ----------
        text : str
            Well-formed Unicode.
        length : int, optional
            Most ids returned, at least 2. A longer text is cut as open_clip cuts it: what
            follows is dropped, and the last id is the end token. What is dropped costs only its
            cleaning.
        """
        ids = [self.start]
        for piece in self._pieces(text):
            ids += piece
            if length is not None and len(ids) >= length:
                del ids[length - 1 :]
                break
        ids.append(self.end)
        return ids

    def windows(self, *, length: int, max_windows: int) -> TextWindows:
        """Return how long texts become windows of at most ``length`` tokens."""
        return TextWindows(
            self.tokenize,
            prefix=(self.start,),
            suffix=(self.end,),
            length=length,
            max_windows=max_windows,
        )

    def _pieces(self, text: str) -> Iterator[tuple[int, ...]]:
        """Yield the ids of one word after the other."""
        text = clean(text, self.cleaning)
        known = self._known
        words = (_ASCII_WORDS if text.isascii() else _WORDS).finditer(text)
        for match in words:
            word = match[0]
            ids = known.get(word)
            yield self._joined(word) if ids is None else ids

    def _joined(self, word: str) -> tuple[int, ...]:
        spelled = word.encode("utf-8").decode("latin-1").translate(self._alphabet)
        ids = tuple(token.id for token in self._model.tokenize(spelled))
        if len(word) <= _MAX_CACHED_CHARS and len(self._known) < _MAX_CACHED_WORDS:
            self._known[word] = ids
        return ids


class JsonTokenizer:
    """A model's ``tokenizer.json``: SigLIP, sentence encoders and others of Hugging Face's format.

    Any number of threads may share one.

    Parameters
    ----------
    source : Path, str or bytes
        The file, or its content.
    cleaning : {"lower", "whitespace", "canonicalize"}, optional
        What open_clip does to a text first; nothing for models that are not open_clip's.

    Raises
    ------
    EncoderError
        The file is missing or damaged.
    """

    def __init__(self, source: Path | str | bytes, *, cleaning: Cleaning | None = None) -> None:
        self.cleaning = cleaning
        try:
            if isinstance(source, bytes):
                self._tokenizer = Tokenizer.from_buffer(source)
            else:
                self._tokenizer = Tokenizer.from_file(str(source))
        except Exception as error:  # tokenizers raises bare Exception whatever is wrong
            shown = "the tokenizer" if isinstance(source, bytes) else f"tokenizer '{source}'"
            raise EncoderError(
                f"{shown} cannot be read: {' '.join(str(error).split())[:120]}. Copy "
                "the model's 'tokenizer.json' there again."
            ) from error
        self._tokenizer.no_truncation()  # windows decide, and batches pad
        self._tokenizer.no_padding()

    def __call__(self, text: str, *, add_special_tokens: bool, **_: Any) -> dict[str, list[int]]:
        """Return ``input_ids`` as a tokenizer of transformers does."""
        encoded = self._tokenizer.encode(text, add_special_tokens=add_special_tokens)
        return {"input_ids": encoded.ids}

    def tokenize(self, text: str) -> list[int]:
        """Return the ids of ``text`` without special tokens around it, and without a limit."""
        return self(self._clean(text), add_special_tokens=False)["input_ids"]

    def encode(self, text: str) -> list[int]:
        """Return the ids of ``text`` with its special tokens, and no padding."""
        return self(self._clean(text), add_special_tokens=True)["input_ids"]

    def windows(self, *, length: int, max_windows: int) -> TextWindows:
        """Return how long texts become windows of at most ``length`` tokens.

        Raises
        ------
        EncoderError
            The special tokens do not simply surround the text.
        """
        return huggingface_windows(self, length=length, max_windows=max_windows, clean=self._clean)

    @property
    def _clean(self) -> Callable[[str], str]:
        cleaning = self.cleaning
        return str if cleaning is None else lambda text: clean(text, cleaning)


def _alphabet() -> dict[int, str]:
    """Return the printable character that stands for each byte in OpenAI's merges.

    Visible characters of Latin-1 stand for themselves, the rest for characters from U+0100 on.
    """
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in visible]
    return {byte: chr(byte) for byte in visible} | {
        byte: chr(256 + i) for i, byte in enumerate(others)
    }


def _vocabulary(pairs: Sequence[Sequence[str]]) -> dict[str, int]:
    """Return the ids of all pieces: bytes, bytes that end a word, joined pieces, special tokens.

    Raises
    ------
    ValueError
        There are too few merges, or one is no pair of pieces that came before.
    """
    if len(pairs) != _N_MERGES:
        raise ValueError(f"it has {len(pairs):,} merges, expected {_N_MERGES:,}")
    letters = list(_alphabet().values())
    pieces = dict.fromkeys([*letters, *(f"{letter}</w>" for letter in letters)])
    for line, pair in enumerate(pairs, start=2):
        if len(pair) != 2 or pair[0] not in pieces or pair[1] not in pieces:
            raise ValueError(f"line {line} is no pair of known pieces")
        pieces["".join(pair)] = None
    return {piece: i for i, piece in enumerate([*pieces, _START, _END])}
