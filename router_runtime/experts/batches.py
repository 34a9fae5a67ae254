"""Answering a batch: rows of different adapters, lengths and settings, token by token.

The model's own ``generate`` runs, since it knows every architecture's caches and positions. All
that concerns single rows happens where it asks for the next scores: tokens are chosen there, told,
counted, and a row that has ended gets an end token, after which ``generate`` leaves it alone.

Rows are padded on the left. Sums in floating point depend on the shape of a batch in their last
bits, so an answer is bit for bit the same for the same batch, and for any batch as far as no two
tokens are as likely as each other but for rounding.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias

import numpy as np
import torch
import transformers

from router_runtime.errors import RequestError, RouterError
from router_runtime.experts.base_model import BaseModel, generation_settings
from router_runtime.experts.pieces import Pieces
from router_runtime.experts.pool import AdapterPool
from router_runtime.experts.prompts import Prompt
from router_runtime.experts.sampling import Chooser, Sampling
from router_runtime.types import F64

_BATCH_TOKENS: Final = 16_384
"""Tokens that are read, or kept for answers to continue from, at a time while scoring."""


@dataclass(frozen=True)
class Piece:
    """Some more text of an answer."""

    text: str = field(repr=False)


@dataclass(frozen=True)
class End:
    """An answer is whole.

    Parameters
    ----------
    text : str
        All of it.
    finish_reason : str
        ``length`` where ``max_tokens`` or the context ended it.
    prompt_tokens, completion_tokens : int
        Tokens read and made; a token that ends the answer is among them.
    """

    text: str = field(repr=False)
    finish_reason: Literal["stop", "length"]
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class Failure:
    """There will be no answer, or no more of it."""

    error: RouterError


Event: TypeAlias = Piece | End | Failure
Sink: TypeAlias = Callable[[Event], None]


class Row:
    """One request in a batch.

    Parameters
    ----------
    base : BaseModel
    prompt : Prompt
    adapter : str or None
        None: the base model alone.
    sampling : Sampling
    sink : callable
        Gets the events of the answer, in the model's thread; must return at once.
    """

    def __init__(
        self,
        base: BaseModel,
        *,
        prompt: Prompt,
        adapter: str | None,
        sampling: Sampling,
        sink: Sink,
    ) -> None:
        self.prompt = prompt
        self.adapter = adapter
        self.cancelled = False
        self.ended = False
        self.limit = min(sampling.max_tokens, base.context - prompt.n_tokens)
        self._ends = base.end_tokens
        self._decode = base.tokenizer.decode
        self._sampling = sampling
        self._sink = sink
        self.begin()

    def begin(self) -> None:
        """Start from nothing, as is done again where a batch failed before its first token."""
        self.n_made = 0
        self._chooser = Chooser(self._sampling)
        self._pieces = Pieces(self._text, self._sampling.stop)

    def step(self, logits: torch.Tensor) -> int | None:
        """Choose the next token from (vocabulary,) scores; None where the row has ended."""
        if self.ended or self.cancelled:
            return None
        token = self._chooser.choose(logits)
        self.n_made += 1
        if token in self._ends:
            self._end("stop")
            return None
        self._tell(self._pieces.feed(token))
        if self._pieces.stopped:
            self._end("stop")
        elif self.n_made >= self.limit:
            self._end("length")
        return None if self.ended else token

    def fail(self, error: RouterError) -> None:
        """Tell that there will be no answer."""
        if not self.ended:
            self.ended = True
            self._sink(Failure(error))

    def _end(self, reason: Literal["stop", "length"]) -> None:
        self._tell(self._pieces.finish())
        self.ended = True
        reason = "stop" if self._pieces.stopped else reason
        self._sink(End(self._pieces.text, reason, self.prompt.n_tokens, self.n_made))

    def _tell(self, text: str) -> None:
        if text:
            self._sink(Piece(text))

    def _text(self, tokens: list[int]) -> str:
        return str(
            self._decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        )


class _Steps(transformers.LogitsProcessor):
    """Lets each row choose its token, and leaves ``generate`` only that one to take."""

    def __init__(self, rows: Sequence[Row], end_token: int, pause: Callable[[], None]) -> None:
        self._rows = rows
        self._end_token = end_token
        self._pause = pause

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self._pause()
        tokens = [row.step(scores[at]) for at, row in enumerate(self._rows)]
        chosen = [self._end_token if token is None else token for token in tokens]
        only = torch.full_like(scores, -torch.inf)
        only[range(len(chosen)), chosen] = 0.0
        return only


def answer(pool: AdapterPool, rows: Sequence[Row]) -> None:
    """Answer all rows at once; each tells its own sink.

    Raises
    ------
    RouterError
        An adapter cannot be had.
    Exception
        Whatever the model raises; rows that have not ended are then still open.
    """
    base = pool.base
    longest = max(row.limit for row in rows)
    settings = generation_settings(base.end_tokens, max_new_tokens=longest)
    steps = transformers.LogitsProcessorList(
        [_Steps(rows, base.end_tokens[0], base.attached.pause)]
    )
    with torch.inference_mode(), pool.using([row.adapter for row in rows]) as model:
        model.generate(
            **collated(base, [row.prompt for row in rows]),
            generation_config=settings,
            logits_processor=steps,
        )


def score(
    pool: AdapterPool, prompt: Prompt, *, adapter: str | None, answers: Sequence[str]
) -> list[float]:
    """Return for each text the log-probability that it is the whole answer, its end included.

    Parameters
    ----------
    pool : AdapterPool
    prompt : Prompt
    adapter : str or None
        None: the base model alone.
    answers : sequence of str
        One at least.

    Raises
    ------
    RequestError
        Prompt and answer are longer than the context.
    RouterError
        The adapter cannot be had.
    """
    base = pool.base
    tokens = [answer_tokens(base, text) for text in answers]
    if prompt.n_tokens + max(map(len, tokens)) > base.context:
        raise RequestError(
            f"Prompt and answer have more tokens than the model reads ({base.context}).",
            status=400,
            code="context_length_exceeded",
        )
    with pool.using([adapter], short=True):
        return [float(each) for each in score_all(base, [prompt], tokens)[0]]


def answer_tokens(base: BaseModel, text: str) -> list[int]:
    """Return the tokens of a whole answer, its end included."""
    found: list[int] = base.tokenizer(text, add_special_tokens=False)["input_ids"]
    return [*found, base.end_tokens[0]]


def score_all(
    base: BaseModel,
    prompts: Sequence[Prompt],
    answers: Sequence[Sequence[int]],
    *,
    batch_size: int = 8,
    model: Any = None,
) -> F64:
    """Return the log-probability of every answer to every prompt, by whatever adapter is in use.

    A prompt is read once, together with others of the same length; its answers continue from what
    the model kept of it. Nothing but the ends of answers is padded, and what follows an answer
    changes nothing of it: so no model needs to be told of padding.

    Parameters
    ----------
    base : BaseModel
    prompts : sequence of Prompt
        Shorter than the context by the longest answer.
    answers : sequence of sequence of int
        As ``answer_tokens`` makes them.
    batch_size : int
        Prompts that are read together.
    model : torch.nn.Module, optional
        What is called, where it is not ``base.model`` alone.

    Returns
    -------
    ndarray of shape (n_prompts, n_answers), float64, at most 0
    """
    found = np.zeros((len(prompts), len(answers)))
    alike: dict[tuple[int, frozenset[str]], list[int]] = {}
    for at, prompt in enumerate(prompts):
        alike.setdefault((prompt.n_tokens, frozenset(prompt.tensors)), []).append(at)
    for (length, _), places in alike.items():
        size = max(1, min(batch_size, _BATCH_TOKENS // length))
        for start in range(0, len(places), size):
            rows = places[start : start + size]
            batch = [prompts[at] for at in rows]
            found[rows] = _scored(base, batch, answers, model or base.model)
    return found


def _scored(
    base: BaseModel, prompts: Sequence[Prompt], answers: Sequence[Sequence[int]], model: Any
) -> F64:
    """Score prompts of one length."""
    n, length = len(prompts), prompts[0].n_tokens
    base.attached.forget()
    with torch.inference_mode():
        read = collated(base, prompts)
        read.pop("attention_mask", None)  # there is no padding
        told = model(**read, use_cache=True, logits_to_keep=1)
        first = told.logits[:, -1].float().log_softmax(-1)
        scores = torch.stack([first[:, tokens[0]] for tokens in answers], dim=1)
        longer = [at for at, tokens in enumerate(answers) if len(tokens) > 1]
        size = max(1, _BATCH_TOKENS // (n * length))
        for start in range(0, len(longer), size):
            some = longer[start : start + size]
            last = start + size >= len(longer)
            kept = told.past_key_values if last else copy.deepcopy(told.past_key_values)
            scores[:, some] += _continued_scores(base, kept, [answers[at] for at in some], n, model)
    return np.asarray(scores.double().cpu())


def _continued_scores(
    base: BaseModel, kept: Any, answers: Sequence[Sequence[int]], n: int, model: Any
) -> torch.Tensor:
    """Return (n_prompts, n_answers) of all tokens but the first; changes ``kept``."""
    longest = max(map(len, answers)) - 1
    fed = torch.full((len(answers), longest), base.end_tokens[0])
    wanted = torch.full((len(answers), longest), -1)
    for at, tokens in enumerate(answers):
        fed[at, : len(tokens) - 1] = torch.tensor(tokens[:-1])
        wanted[at, : len(tokens) - 1] = torch.tensor(tokens[1:])
    kept.batch_repeat_interleave(len(answers))
    fed = fed.repeat(n, 1).to(base.device)
    wanted = wanted.repeat(n, 1).to(base.device)
    logits = model(input_ids=fed, past_key_values=kept, use_cache=True).logits.float()
    each = logits.log_softmax(-1).gather(-1, wanted.clamp(min=0)[..., None])[..., 0]
    said: torch.Tensor = each.where(wanted >= 0, torch.zeros_like(each)).sum(-1)
    return said.view(n, len(answers))


def continued(prompt: Prompt, tokens: Sequence[int]) -> Prompt:
    """Return a prompt that ends with these tokens."""
    tensors = dict(prompt.tensors)
    for name, tensor in prompt.tensors.items():
        if tensor.shape == (1, prompt.n_tokens):
            added = torch.zeros((1, len(tokens)), dtype=tensor.dtype)
            if name == "input_ids":
                added[0] = torch.tensor(tokens)
            elif name == "attention_mask":
                added[0] = 1
            tensors[name] = torch.cat([tensor, added], dim=1)
    return Prompt(tensors, prompt.n_tokens + len(tokens))


def collated(base: BaseModel, prompts: Sequence[Prompt], *, left: bool = True) -> dict[str, Any]:
    """Return one batch: what has an entry per token is padded on one side, the rest joined."""
    length = max(prompt.n_tokens for prompt in prompts)
    batch = {}
    for name in dict.fromkeys(name for prompt in prompts for name in prompt.tensors):
        per_token = any(
            name in prompt.tensors and prompt.tensors[name].shape == (1, prompt.n_tokens)
            for prompt in prompts
        )
        filler = base.end_tokens[0] if name == "input_ids" else 0
        parts = []
        for prompt in prompts:
            part = prompt.tensors.get(name)
            if per_token:
                if part is None:
                    part = torch.zeros_like(prompt.tensors["input_ids"])
                lacking = length - prompt.n_tokens
                padding = (lacking, 0) if left else (0, lacking)
                part = torch.nn.functional.pad(part, padding, value=filler)
            if part is not None:
                parts.append(part)
        batch[name] = torch.cat(parts).to(base.device)
    return batch
