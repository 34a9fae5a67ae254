"""A sample to be labelled, and the conversation that candidates and judges get to see of it."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from router_runtime.types import Image, Json
from router_training.samples import Sample

_SYSTEM_ROLES = ("system", "developer")


@dataclass(frozen=True)
class LabelSample:
    """One sample with what its scoring needs besides it.

    Parameters
    ----------
    sample : Sample
    scorers : tuple of str
        Names of scorers that the row itself asks for; empty: its data set's, or the default.
    choices : tuple of str
        The texts of a multiple choice in the order of their letters (A, B, ...); empty where the
        sample is none. The prompt holds them already, and the reference is the right letter.
    """

    sample: Sample
    scorers: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()


def chat_messages(sample: Sample, system: str | None = None) -> tuple[dict[str, Json], ...]:
    """Return the OpenAI messages that ask a sample.

    Pictures stand as data URIs of the bytes as they were received: in the place of their
    placeholders, or before the prompt where the sample is a prompt. Never resized or encoded anew,
    so that a candidate sees what it will see in service.

    Parameters
    ----------
    sample : Sample
    system : str or None
        A system prompt for conversations that have none of their own.
    """
    pictures = iter(sample.query.images)
    if sample.messages is None:
        turns = [{"role": "user", "content": _prompt_content(sample.prompt, pictures)}]
    else:
        turns = [_turn(turn, pictures) for turn in sample.messages]
    if system is not None and not any(turn.get("role") in _SYSTEM_ROLES for turn in turns):
        turns.insert(0, {"role": "system", "content": system})
    return tuple(turns)


def image_part(image: Image) -> dict[str, Json]:
    """Return a picture as a part of an OpenAI message."""
    data = base64.b64encode(image.data).decode("ascii")
    return {"type": "image_url", "image_url": {"url": f"data:{image.media_type};base64,{data}"}}


def _prompt_content(prompt: str, pictures: Iterator[Image]) -> Json:
    parts = [image_part(image) for image in pictures]
    if not parts:
        return prompt
    return [*parts, {"type": "text", "text": prompt}] if prompt else parts


def _turn(turn: Mapping[str, Any], pictures: Iterator[Image]) -> dict[str, Json]:
    content = turn.get("content")
    if not isinstance(content, list | tuple):
        return dict(turn)
    return {**turn, "content": [_part(part, pictures) for part in content]}


def _part(part: Any, pictures: Iterator[Image]) -> Json:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    if part.get("type") == "image":
        return image_part(next(pictures))
    return dict(part)
