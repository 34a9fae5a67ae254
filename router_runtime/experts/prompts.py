"""OpenAI chat messages become the tensors of one prompt, by the base model's own template."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import PIL.Image
import torch

from router_runtime.errors import QueryError, RequestError
from router_runtime.experts.base_model import BaseModel
from router_runtime.images import DEFAULT_LIMITS, ImageLimits, decode, load_image
from router_runtime.types import Json

_ROLES: Final = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
}
_TEXT_PARTS: Final = ("text", "input_text", "output_text", "refusal")
_IMAGE_PARTS: Final = ("image_url", "input_image")


@dataclass(frozen=True, eq=False)
class Prompt:
    """One row of a batch.

    Parameters
    ----------
    tensors : mapping
        What the model is called with, for a batch of one; tokens have shape (1, n_tokens).
    n_tokens : int
    """

    tensors: Mapping[str, torch.Tensor] = field(repr=False)
    n_tokens: int


class PromptMaker:
    """Makes prompts for one base model; any thread may call it.

    Parameters
    ----------
    base : BaseModel
    limits : ImageLimits
        Caps on each picture.
    """

    def __init__(self, base: BaseModel, *, limits: ImageLimits = DEFAULT_LIMITS) -> None:
        self._base = base
        self._limits = limits
        self._lock = threading.Lock()  # fast tokenizers may be borrowed by one thread at a time

    def make(self, messages: Json) -> Prompt:
        """Return the prompt of a conversation.

        Raises
        ------
        RequestError
            The messages have another shape, hold what this model does not read, or are too long.
        """
        pictures: list[PIL.Image.Image] = []
        if not isinstance(messages, list | tuple) or not messages:
            raise _refusal("'messages' must be a list of messages, one at least.")
        turns = [self._turn(at, message, pictures) for at, message in enumerate(messages)]
        return self.render(turns, pictures)

    def render(self, turns: Sequence[Json], pictures: Sequence[PIL.Image.Image]) -> Prompt:
        """Return the prompt of turns that are as the chat template wants them.

        Parameters
        ----------
        turns : sequence of mapping
            Contents are texts where the model reads text only, and else lists of parts.
        pictures : sequence of PIL.Image.Image
            One for each ``{"type": "image"}``.

        Raises
        ------
        RequestError
            They do not fit the template, or are too long.
        """
        with self._lock:
            tensors = self._tensors(turns, pictures)
        n_tokens = tensors["input_ids"].shape[1]
        if n_tokens >= self._base.context:
            raise _refusal(
                f"The messages have {n_tokens} tokens, but the model reads {self._base.context} "
                "with the answer. Send less.",
                code="context_length_exceeded",
            )
        return Prompt(tensors, n_tokens)

    def _tensors(
        self, turns: Sequence[Json], pictures: Sequence[PIL.Image.Image]
    ) -> dict[str, torch.Tensor]:
        processor, tokenizer = self._base.processor, self._base.tokenizer
        try:
            text = processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
            told = {"add_special_tokens": False, "return_tensors": "pt"}  # the template has them
            if self._base.sees_pictures:
                found = processor(text=[text], images=list(pictures) or None, **told)
            else:
                found = tokenizer([text], **told)
        except Exception as error:  # templates and processors raise nearly anything
            raise _refusal(
                "The messages do not fit the model's chat template "
                f"({type(error).__name__}). Check their roles and their order, and leave the "
                "model's own tokens out of texts."
            ) from None
        return {name: value for name, value in found.items() if isinstance(value, torch.Tensor)}

    def _turn(self, at: int, message: Json, pictures: list[PIL.Image.Image]) -> Json:
        role = message.get("role") if isinstance(message, Mapping) else None
        if role not in _ROLES:
            known = ", ".join(_ROLES)
            raise _refusal(f"messages[{at}] must have one of these roles: {known}.")
        content = message.get("content")
        if isinstance(content, str):
            content = [{"type": "text", "text": content}]
        if not isinstance(content, list) or not content:
            raise _refusal(f"messages[{at}] must have a text or a list of parts as its content.")
        parts = [self._part(at, part, pictures) for part in content]
        if self._base.sees_pictures:
            return {"role": _ROLES[role], "content": parts}
        return {"role": _ROLES[role], "content": "\n".join(part["text"] for part in parts)}

    def _part(self, at: int, part: Json, pictures: list[PIL.Image.Image]) -> dict[str, Any]:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind in _TEXT_PARTS:
            text = part.get("text", part.get("refusal"))
            if not isinstance(text, str):
                raise _refusal(f"messages[{at}] has a text part without a text.")
            return {"type": "text", "text": text}
        if kind not in _IMAGE_PARTS:
            raise _refusal(f"messages[{at}] has a part that is neither a text nor a picture.")
        if not self._base.sees_pictures:
            raise _refusal(f"messages[{at}] has a picture, but this model reads text only.")
        source = part.get("image_url")
        url = source.get("url") if isinstance(source, Mapping) else source
        if not isinstance(url, str):
            raise _refusal(f"messages[{at}] has a picture without an URL; send a data URI.")
        try:
            pictures.append(decode(load_image(url, limits=self._limits, allow_paths=False)))
        except QueryError as error:
            raise _refusal(str(error)) from None
        return {"type": "image"}


def _refusal(message: str, *, code: str = "invalid_messages") -> RequestError:
    return RequestError(message, status=400, code=code, param="messages")
