"""Vectors of texts and pictures that follow from their content alone.

A text's vector is the mean direction of its words, so texts that share words are near to each
other; a picture's follows from its bytes. They mean no more than that.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np

from router_runtime.errors import QueryError
from router_runtime.pricing import Usage, estimate_tokens
from router_runtime.simulator.chat_request import picture_bytes
from router_runtime.simulator.config import SimulatedModelConfig
from router_runtime.simulator.replies import usage_json
from router_runtime.types import F32, F64, Json

_MOST_INPUTS: Final = 4096
_WORD: Final = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True)
class Embedded:
    """The body of a response, and what it is billed as."""

    body: Mapping[str, Json]
    usage: Usage


def embed(
    body: Mapping[str, Json], model_id: str, model: SimulatedModelConfig, *, seed: int
) -> Embedded:
    """Answer a request for embeddings, with NV-CLIP's mix of texts and data URIs as ``input``.

    Raises
    ------
    QueryError
        Naming the field.
    """
    if model.role != "embedding":
        raise QueryError(f"The model '{model_id}' chats and makes no embeddings.")
    inputs = _inputs(body)
    encoding = body.get("encoding_format") or "float"
    if encoding not in ("float", "base64"):
        raise QueryError("'encoding_format' must be float or base64.")
    pictures = [entry[:5].lower() == "data:" for entry in inputs]
    vectors = [
        _picture_vector(entry, at, seed, model.dimensions)
        if is_picture
        else text_vector(entry, seed=seed, dimensions=model.dimensions)
        for at, (entry, is_picture) in enumerate(zip(inputs, pictures, strict=True))
    ]
    chars = sum(
        len(entry) for entry, is_picture in zip(inputs, pictures, strict=True) if not is_picture
    )
    usage = Usage(
        input_tokens=max(1, round(estimate_tokens(chars)))
        + sum(pictures) * model.usage.image_tokens,
        output_tokens=0,
        images=sum(pictures),
    )
    reported = usage_json(usage)
    data = [
        {"object": "embedding", "index": at, "embedding": _encoded(vector, encoding)}
        for at, vector in enumerate(vectors)
    ]
    counted = {name: reported[name] for name in ("prompt_tokens", "total_tokens")}
    answer = {"object": "list", "model": model_id, "data": data, "usage": counted}
    return Embedded(answer, usage)


def text_vector(text: str, *, seed: int, dimensions: int) -> F32:
    """Return a text's unit vector, float32 of shape (dimensions,)."""
    words = _WORD.findall(text.casefold()) or [""]
    total = sum((_direction(word, seed, dimensions) for word in words), np.zeros(dimensions))
    return _unit(total)


def _inputs(body: Mapping[str, Json]) -> list[str]:
    inputs = body.get("input")
    inputs = [inputs] if isinstance(inputs, str) else inputs
    if not isinstance(inputs, list) or not 1 <= len(inputs) <= _MOST_INPUTS:
        raise QueryError(f"'input' must be text or a list of 1 to {_MOST_INPUTS} texts.")
    if not all(isinstance(entry, str) and entry for entry in inputs):
        raise QueryError("'input' may hold only texts and data URIs, none of them empty.")
    return inputs


def _picture_vector(uri: str, at: int, seed: int, dimensions: int) -> F32:
    data = picture_bytes(uri, f"input[{at}]")
    return _unit(_direction(hashlib.sha256(data).hexdigest(), seed, dimensions))


@lru_cache(maxsize=20_000)
def _direction(name: str, seed: int, dimensions: int) -> F32:
    digest = hashlib.sha256(f"{seed} {name}".encode("utf-8", "surrogatepass")).digest()
    rng = np.random.default_rng(int.from_bytes(digest, "big"))
    return rng.standard_normal(dimensions, dtype=np.float32)


def _unit(vector: F32 | F64) -> F32:
    unit: F32 = (vector / np.linalg.norm(vector)).astype(np.float32)
    return unit


def _encoded(vector: F32, encoding: str) -> Json:
    if encoding == "float":
        return [round(float(value), 8) for value in vector]
    return base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii")
