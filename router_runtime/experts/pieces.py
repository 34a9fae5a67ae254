"""From tokens to the pieces of text that a client sees, ended by stop texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

_UNFINISHED: Final = "\ufffd"  # what half of a character decodes to
_MOST_HELD: Final = 8  # tokens; a character has at most 4 bytes, so more is no unfinished one


class Pieces:
    """Decodes one answer token by token; the pieces joined are the text decoded at once.

    Nothing is given out that might be the beginning of a stop text, or half of a character.

    Parameters
    ----------
    decode : callable
        Tokens to text, without special tokens.
    stop : sequence of str
        Texts before which the answer ends; empty ones are not allowed.

    Attributes
    ----------
    text : str
        All that was given out.
    stopped : bool
        A stop text was met; nothing follows.
    """

    def __init__(self, decode: Callable[[list[int]], str], stop: Sequence[str] = ()) -> None:
        self._decode = decode
        self._stop = tuple(stop)
        self._tokens: list[int] = []
        self._from = (
            0  # decoding begins here, some tokens back, as tokens join with their forerunner
        )
        self._read = 0  # tokens before this are in what was decoded
        self._held = ""
        self.text = ""
        self.stopped = False

    def feed(self, token: int) -> str:
        """Take the next token; return the text that can be shown now, often none."""
        if self.stopped:
            return ""
        self._tokens.append(token)
        text = self._decode(self._tokens[self._from :])
        waiting = len(self._tokens) - self._read
        if text.endswith(_UNFINISHED) and waiting < _MOST_HELD:
            return ""
        return self._pass(self._fresh(text))

    def finish(self) -> str:
        """Return what was still held back."""
        if self.stopped:
            return ""
        rest = self._fresh(self._decode(self._tokens[self._from :]))
        shown = self._pass(rest) + ("" if self.stopped else self._held)
        if not self.stopped:
            self.text += self._held
        self._held = ""
        return shown

    def _fresh(self, text: str) -> str:
        old = self._decode(self._tokens[self._from : self._read])
        self._from, self._read = self._read, len(self._tokens)
        return text[len(old) :]

    def _pass(self, fresh: str) -> str:
        waiting = self._held + fresh
        found = [at for at in (waiting.find(stop) for stop in self._stop) if at >= 0]
        if found:
            self.stopped = True
            shown, self._held = waiting[: min(found)], ""
        else:
            kept = max((_overlap(waiting, stop) for stop in self._stop), default=0)
            cut = len(waiting) - kept
            shown, self._held = waiting[:cut], waiting[cut:]
        self.text += shown
        return shown


def _overlap(text: str, stop: str) -> int:
    """Return how many characters at the end of ``text`` may be the beginning of ``stop``."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
