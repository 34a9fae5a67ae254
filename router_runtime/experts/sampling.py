"""How the next token of one row is chosen."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Sampling:
    """What a request says about its answer.

    Parameters
    ----------
    max_tokens : int
    temperature : float
        0 takes the likeliest token.
    top_p : float
        Tokens are drawn from the likeliest ones that have this probability together.
    top_k : int
        And from at most so many; 0: no such bound.
    stop : tuple of str
        Texts before which the answer ends.
    seed : int or None
        Equal requests with equal seeds draw alike; None draws anew.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    stop: tuple[str, ...] = ()
    seed: int | None = None

    @property
    def greedy(self) -> bool:
        """Whether nothing is drawn."""
        return self.temperature == 0 or self.top_p == 0 or self.top_k == 1


class Chooser:
    """Draws the tokens of one row; its draws depend on no other row.

    Parameters
    ----------
    sampling : Sampling
    """

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self._generator = torch.Generator()
        if sampling.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(sampling.seed % 2**63)

    def choose(self, logits: torch.Tensor) -> int:
        """Return the next token.

        Parameters
        ----------
        logits : tensor of shape (vocabulary,)
        """
        said = self._sampling
        if said.greedy:
            return int(logits.argmax())
        scores = logits.to("cpu", torch.float32)
        scores = (scores - scores.max()) / said.temperature
        if 0 < said.top_k < len(scores):
            least = scores.topk(said.top_k).values[-1]
            scores = scores.masked_fill(scores < least, -torch.inf)
        shares = scores.softmax(-1)
        if said.top_p < 1:
            ordered, order = shares.sort(descending=True, stable=True)
            before = ordered.cumsum(-1) - ordered
            shares = torch.zeros_like(shares).scatter(
                -1, order, ordered.where(before < said.top_p, torch.zeros_like(ordered))
            )
        return int(torch.multinomial(shares, 1, generator=self._generator))
