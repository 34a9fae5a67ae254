"""A router adapter on its base: requests to prompts, prompts to scores of names.

``PromptReader`` is also what training reads with, so that both put a request alike.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

# First, since it makes torchvision importable, which transformers imports.
from router_runtime.weights.torch_setup import pick_device, size_of  # isort: skip

import numpy as np
import PIL.Image
import torch

from router_runtime.config import EncoderRuntime
from router_runtime.errors import ArtifactError, ArtifactIntegrityError, RequestError
from router_runtime.experts.adapter_folder import adapter_of
from router_runtime.experts.base_model import BaseModel, load_base
from router_runtime.experts.batches import answer_tokens, score_all
from router_runtime.experts.config import BaseConfig
from router_runtime.experts.fitting import check_fit
from router_runtime.experts.pool import AdapterPool
from router_runtime.experts.prompts import Prompt, PromptMaker
from router_runtime.images import decode
from router_runtime.prediction.adapter import AdapterDescription, AdapterPrompt
from router_runtime.prediction.heads.base import RESTORE
from router_runtime.types import F64, Bool, Query, WeightsSize
from router_runtime.weights.base_digest import base_digest

_ROUTER: Final = "router"
_CUT: Final = "\N{REPLACEMENT CHARACTER}"


class PromptReader:
    """Requests to prompts of one base.

    Parameters
    ----------
    base : BaseModel
    prompt : AdapterPrompt
    labels : sequence of str
        The names that may follow.
    max_tokens : int
        Of a prompt, at most; never more than the base reads with the longest name.
    max_side : int
    """

    def __init__(
        self,
        base: BaseModel,
        prompt: AdapterPrompt,
        *,
        labels: Sequence[str],
        max_tokens: int,
        max_side: int,
    ) -> None:
        self.base = base
        self.answers = tuple(tuple(answer_tokens(base, label)) for label in labels)
        self._prompt = prompt
        self._limit = min(max_tokens, base.context - max(map(len, self.answers)))
        self._max_side = max_side
        self._make = PromptMaker(base)

    def read(self, query: Query) -> Prompt | None:
        """Return the prompt of a query; None where it shows nothing, or cannot be read.

        A prompt that is too long loses the beginning of the request's text: what is asked stands
        at its end. Pictures that are too many for the base by themselves cannot be read.

        Raises
        ------
        QueryError
            A picture does not decode.
        """
        shown = self._prompt.shown(query)
        if shown is None or (shown.images and not self.base.sees_pictures):
            return None
        pictures = [decode(image, max_side=self._max_side) for image in shown.images]
        whole = self._rendered(shown, pictures)
        if whole is not None or not shown.text:
            return whole
        least = self._rendered(replace(shown, text=""), pictures)
        if least is None:
            return None
        tokenizer = self.base.tokenizer
        tokens = tokenizer(shown.text, add_special_tokens=False)["input_ids"]
        room = self._limit - least.n_tokens
        while room > 0:
            # Where texts meet, tokens may join or part: the last ones may not fit at once.
            text = str(tokenizer.decode(tokens[-room:], skip_special_tokens=True)).lstrip(_CUT)
            cut = self._rendered(replace(shown, text=text), pictures)
            if cut is not None:
                return cut
            room -= 4
        return least

    def _rendered(self, shown: Query, pictures: Sequence[PIL.Image.Image]) -> Prompt | None:
        """Return the prompt; None where it is too long or does not fit the template."""
        asked = self._prompt.asked(shown)
        turns = [_turn("system", self._prompt.system)] if self._prompt.system else []
        turns.append(_turn("user", asked, n_pictures=len(pictures)))
        if not self.base.sees_pictures:
            turns = [{**turn, "content": turn["content"][-1]["text"]} for turn in turns]
        try:
            made = self._make.render(turns, pictures)
        except RequestError:
            return None
        return made if made.n_tokens <= self._limit else None


def _turn(role: str, text: str, *, n_pictures: int = 0) -> dict[str, Any]:
    parts: list[dict[str, str]] = [{"type": "image"}] * n_pictures
    return {"role": role, "content": [*parts, {"type": "text", "text": text}]}


class AdapterNetwork:
    """An adapter on its base.

    Parameters
    ----------
    pool : AdapterPool
        Holds the adapter, by the name ``router``.
    reader : PromptReader
    batch_size : int
        Prompts that are read together.
    """

    def __init__(self, pool: AdapterPool, reader: PromptReader, *, batch_size: int) -> None:
        self.pool = pool
        self._reader = reader
        self._batch_size = batch_size

    @property
    def frozen(self) -> WeightsSize:
        """The base, without what adapters add to it."""
        named = self.pool.base.model.named_parameters()
        return size_of(one for name, one in named if "lora_" not in name)

    def scores(self, queries: Sequence[Query]) -> tuple[F64, Bool]:
        """Return log-probabilities of the names, and which queries could be read."""
        prompts = [self._reader.read(query) for query in queries]
        known = np.array([prompt is not None for prompt in prompts], dtype=np.bool_)
        found = np.zeros((len(queries), len(self._reader.answers)))
        readable = [prompt for prompt in prompts if prompt is not None]
        if readable:
            with self.pool.using([_ROUTER], short=True):
                found[known] = score_all(
                    self.pool.base, readable, self._reader.answers, batch_size=self._batch_size
                )
        return found, known


def prompts_digest(base: BaseModel) -> str:
    """Return a hex digest of what a base makes of a conversation: template, tokens, pictures.

    Raises
    ------
    RequestError
        It cannot read one.
    """
    asked = "Which one? 12,5 \N{EURO SIGN} \N{HIRAGANA LETTER A}\n\nan_id = 'x' # Gr\xfc\xdfe"
    turns = [_turn("system", "You are a classifier."), _turn("user", asked)]
    pictures = []
    if base.sees_pictures:
        turns[1] = _turn("user", asked, n_pictures=1)
        pictures = [PIL.Image.linear_gradient("L").convert("RGB").resize((224, 160))]
    else:
        turns = [{**turn, "content": turn["content"][-1]["text"]} for turn in turns]
    made = PromptMaker(base).render(turns, pictures).tensors
    eyes = getattr(base.processor, "image_processor", None)
    told = [
        made["input_ids"].tolist(),
        made["image_grid_thw"].tolist() if "image_grid_thw" in made else None,
        [_plain(getattr(eyes, name, None)) for name in ("image_mean", "image_std")],
        base.end_tokens[0],
    ]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def _plain(values: Any) -> list[float] | None:
    return None if values is None else [float(value) for value in np.atleast_1d(values)]


def load_network(
    description: AdapterDescription, weights: bytes, *, runtime: EncoderRuntime
) -> AdapterNetwork:
    """Return the network of an artifact; its base is loaded where it is not in memory already.

    Raises
    ------
    ArtifactIntegrityError
        The base is another one than in training, or the adapter does not fit it.
    EncoderError, ConfigError
        The base cannot be had, or there is no such device.
    """
    base = load_base(
        BaseConfig(
            model=runtime.base or description.base,
            revision=None if runtime.base else description.revision,
            dtype=usable_dtype(description.dtype, pick_device(runtime.device)),
            device=runtime.device,
        )
    )
    _check_base(base, description)
    pool = AdapterPool(base, base_name="base")
    try:
        folder = adapter_of(_ROUTER, description.adapter, weights, folder=Path("the artifact"))
        # The digests say that it is the right base, by whatever name it is there.
        folder = replace(folder, base_model=None)
        check_fit(folder, base.shape)
        pool.add(folder)
    except ArtifactError as error:
        raise ArtifactIntegrityError(
            f"The router adapter cannot be used: {error} {RESTORE}"
        ) from error
    reader = PromptReader(
        base,
        description.prompt,
        labels=description.labels,
        max_tokens=description.max_tokens,
        max_side=description.max_side,
    )
    return AdapterNetwork(pool, reader, batch_size=runtime.batch_size)


def usable_dtype(dtype: str, device: torch.device) -> Any:
    """Return ``dtype``, or ``float32`` where the device computes nothing in bfloat16."""
    if dtype == "bfloat16" and device.type == "cuda":
        if not torch.cuda.is_bf16_supported(including_emulation=False):
            return "float32"
    return dtype


def _check_base(base: BaseModel, description: AdapterDescription) -> None:
    found = base_digest(base.folder)
    if found != description.base_sha256:
        raise ArtifactIntegrityError(
            f"The router adapter was trained on '{description.base}' with weights "
            f"{description.base_sha256[:12]}, but those of '{base.name}' are {found[:12]}. Give "
            "its own base with 'encoder.base', or train it on this one."
        )
    if prompts_digest(base) != description.prompts_sha256:
        raise ArtifactIntegrityError(
            f"'{base.name}' has the weights that the router adapter was trained on, but another "
            "chat template, tokenizer or picture size. Restore the files of the base, or train it "
            "again."
        )
