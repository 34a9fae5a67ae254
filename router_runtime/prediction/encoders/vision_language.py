"""Frozen vision-language models of transformers: one vector for text and pictures seen together.

A query is put to the model as a user's turn of its own chat template, the pictures before the text,
and nothing is generated: the hidden states of the prompt are pooled. The model sees what an expert
on the same base would see, so that "the third entry" and the screen it is on meet before any head.

Weights are read from safetensors only and code of a repository is never run. The layer that would
score words is dropped. Rows of a batch are padded on the right, where no causal model looks, and
batches are bounded by the tokens in them; a query has the same vector in any batch but for
rounding (1e-6 in float32, some 1e-3 in bfloat16).

A text cannot speak the model's control tokens: where it spells one, a space stands instead. A
template that asks for today's date is always told the same one.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import PIL.Image
import torch

from router_runtime.errors import EncoderError
from router_runtime.images import decode, dimensions
from router_runtime.prediction.encoders.base import (
    absent_half,
    encode_distinct,
    fingerprint_of,
    well_formed,
)
from router_runtime.prediction.encoders.huggingface import folder_digest, load_model, loaded
from router_runtime.prediction.encoders.specs import EncoderRuntime, VisionLanguageSpec
from router_runtime.prediction.encoders.windows import bounded, spans
from router_runtime.types import F32, Image, Json, Query
from router_runtime.weights import hub
from router_runtime.weights.torch_setup import pick_device, size_of, to_numpy

# isort: split
# After torch_setup, which makes torchvision importable.
from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor

BATCH_TOKENS: Final = 16_384
"""Tokens of one batch, padding included: what bounds memory whatever the batch size."""

_QUARTERS: Final = 4  # of a long text the first is kept, and three at the end
_PIXELS_PER_TOKEN: Final = 28 * 28  # about; Qwen2-VL's, and fewer than Qwen3-VL's
_LEAST_SIDE: Final = 16  # of smaller pictures, processors mistake rows for colours
_MOST_ASPECT: Final = 64  # Qwen's processor refuses 200
_CLOCK: Final = "{%- macro strftime_now(format) -%}1 January 2025{%- endmacro -%}"
_PROMPT: Final = "pictures, text, generation prompt; 1"  # raise when equal queries read otherwise


@dataclass(frozen=True)
class _Row:
    """A query as the model reads it; ``tokens`` is about how many."""

    prompt: str
    images: tuple[Image, ...]
    tokens: int

    @property
    def key(self) -> tuple[str, ...]:
        return (self.prompt, *(image.sha256 for image in self.images))


class VisionLanguageEncoder:
    """A ``JointEncoder`` on a vision-language model.

    Parameters
    ----------
    spec : VisionLanguageSpec
        Model, pooling, layer and bounds.
    runtime : EncoderRuntime
        Device and batch size.

    Raises
    ------
    EncoderError
        The model cannot be had, lacks weights, a processor or a chat template, has no such layer,
        or does not read pictures and text as one sequence of tokens.
    """

    kind = "vision-language"
    text_dim = 0
    image_dim = 0

    def __init__(
        self, spec: VisionLanguageSpec, runtime: EncoderRuntime = EncoderRuntime()
    ) -> None:
        self._spec = spec
        self._batch_size = runtime.batch_size
        self._device = pick_device(runtime.device)
        self._lock = threading.Lock()  # neither tokenizers nor these models are for several threads
        folder = hub.model_folder(spec.model, revision=spec.revision)
        self._processor = loaded(AutoProcessor, folder, spec.model)
        # The form that depends least on what is installed; see the encoder of kind 'huggingface'.
        self._processor.image_processor = loaded(
            AutoImageProcessor, folder, spec.model, backend="pil"
        )
        self._tokenizer = _prepared_tokenizer(self._processor, spec.model)
        self._control = _control_tokens(self._processor, self._tokenizer)
        whole = load_model(
            folder,
            name=spec.model,
            unused=("lm_head.",),
            auto=AutoModelForImageTextToText,
            dtype="auto" if spec.dtype == "auto" else getattr(torch, spec.dtype),
        )
        self._model = whole.base_model.to(self._device)
        self._least_tokens, self.joint_dim = self._probe()
        self.frozen = size_of(self._model.parameters())
        self.fingerprint = fingerprint_of(
            {
                "kind": self.kind,
                "files": folder_digest(folder),
                "dtype": str(self._model.dtype),
                "prompt": _PROMPT,
                "dims": [self.joint_dim],
                **_rule(spec),
            }
        )

    def encode_texts(self, texts: Sequence[str]) -> F32:
        return absent_half(len(texts))

    def encode_images(self, images: Sequence[Image]) -> F32:
        return absent_half(len(images))

    def encode_queries(self, queries: Sequence[Query]) -> F32:
        """Return float32 (n_queries, joint_dim), finite.

        Raises
        ------
        QueryError
            A picture does not decode.
        """
        rows = [self._row(query) for query in queries]
        out = np.empty((len(rows), self.joint_dim), dtype=np.float32)
        for seen in (True, False):  # many processors take pictures for every row of a batch or none
            places = [at for at, row in enumerate(rows) if bool(row.images) == seen]
            out[places] = encode_distinct(
                [rows[at] for at in places],
                self._encode,
                dim=self.joint_dim,
                batch_size=self._batch_size,
                key=lambda row: row.key,
                size=lambda row: row.tokens,
                budget=BATCH_TOKENS,
            )
        return out

    def _row(self, query: Query) -> _Row:
        sizes = [dimensions(image) for image in query.images]
        with self._lock:
            text, tokens = self._cut(query.text)
            parts: list[Json] = [{"type": "image"} for _ in query.images]
            if text:
                parts.append({"type": "text", "text": text})
            prompt = self._prompt([{"role": "user", "content": parts}])
        pixels = min(sum(width * height for width, height in sizes), self._spec.max_pixels)
        tokens += pixels // _PIXELS_PER_TOKEN + self._least_tokens * max(1, len(sizes))
        return _Row(prompt, query.images, tokens)

    def _cut(self, text: str) -> tuple[str, int]:
        """Return the text without control tokens, its middle left out if too long, and its size."""
        rule = {"capacity": self._spec.max_text_tokens // _QUARTERS, "max_windows": _QUARTERS}
        text = self._control.sub(" ", bounded(well_formed(text), **rule))
        ids = self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        kept = spans(len(ids), **rule)
        if len(kept) > 1:
            head, tail = ids[: kept[0][1]], ids[kept[1][0] :]
            text = "\n".join(
                self._tokenizer.decode(part, clean_up_tokenization_spaces=False)
                for part in (head, tail)
            )
        return text, sum(stop - start for start, stop in kept)

    def _prompt(self, turns: list[Json]) -> str:
        try:
            return str(
                self._processor.apply_chat_template(
                    turns, tokenize=False, add_generation_prompt=True
                )
            )
        except Exception as error:  # templates raise nearly anything
            raise self._refusal("chat template", error) from error

    def _encode(self, rows: Sequence[_Row]) -> F32:
        pictures = [self._pictures(row.images) for row in rows]
        with self._lock:
            states, mask = self._states([row.prompt for row in rows], pictures)
        return to_numpy(_POOL[self._spec.pooling](states.float(), mask.bool()))

    def _pictures(self, images: Sequence[Image]) -> list[PIL.Image.Image]:
        share = self._spec.max_pixels // max(1, len(images))
        return [_fitted(decode(image), share) for image in images]

    @torch.inference_mode()
    def _states(
        self, prompts: Sequence[str], pictures: Sequence[Sequence[PIL.Image.Image]]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return hidden states (n_rows, n_tokens, dim) and the mask of what is not padding."""
        try:
            made = self._processor(
                text=list(prompts),
                images=[list(some) for some in pictures] if pictures[0] else None,
                padding=True,
                add_special_tokens=False,  # the template has them
                return_tensors="pt",
            )
        except Exception as error:  # processors raise nearly anything
            raise self._refusal("processor", error) from error
        inputs = {
            name: value.to(self._device, self._model.dtype if value.is_floating_point() else None)
            for name, value in made.items()
            if isinstance(value, torch.Tensor)
        }
        if self._spec.layer == -1:
            states = self._model(**inputs, use_cache=False).last_hidden_state
        else:
            told = self._model(**inputs, use_cache=False, output_hidden_states=True)
            states = told.hidden_states[self._spec.layer]
        return states, inputs["attention_mask"]

    def _probe(self) -> tuple[int, int]:
        """Return the tokens of a query with a small picture, and the width of their states."""
        name, grey = self._spec.model, PIL.Image.new("RGB", (64, 64), (128, 128, 128))
        prompt = self._prompt(
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "a"}]}]
        )
        try:
            states, mask = self._states([prompt], [[grey]])
        except (AttributeError, KeyError, TypeError) as error:
            raise self._refusal("base model", error) from error
        except IndexError as error:
            raise EncoderError(
                f"'{name}' has no hidden states of layer {self._spec.layer}. Give a layer between "
                "0 and its number of layers, or count from the end with -1, -2 and so on."
            ) from error
        if states.shape[:2] != mask.shape:
            raise self._refusal("base model")
        return int(states.shape[1]), int(states.shape[2])

    def _refusal(self, part: str, error: Exception | None = None) -> EncoderError:
        reason = f" ({type(error).__name__})" if error else ""
        return EncoderError(
            f"the {part} of '{self._spec.model}' cannot take a turn of pictures and text{reason}. "
            "Use an instruction-tuned vision-language model whose pictures are tokens beside those "
            "of the text, such as Qwen/Qwen3-VL-2B-Instruct."
        )


def _rule(spec: VisionLanguageSpec) -> dict[str, Json]:
    """Return what of the spec changes vectors, beside the model."""
    return spec.model_dump(include={"pooling", "layer", "max_text_tokens", "max_pixels"})


def _prepared_tokenizer(processor: Any, name: str) -> Any:
    """Return the processor's tokenizer, and have both pad on the right and use one template."""
    tokenizer = getattr(processor, "tokenizer", None)
    template = getattr(processor, "chat_template", None) or getattr(
        tokenizer, "chat_template", None
    )
    if isinstance(template, dict):
        template = template.get("default")
    if tokenizer is None or not template:
        raise EncoderError(
            f"'{name}' comes without a {'chat template' if tokenizer else 'tokenizer'}. Use a "
            "vision-language model that was tuned to follow instructions."
        )
    processor.chat_template = _CLOCK + template if "strftime_now" in template else template
    tokenizer.padding_side = "right"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _control_tokens(processor: Any, tokenizer: Any) -> re.Pattern[str]:
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    places = (getattr(processor, f"{kind}_token", None) for kind in ("image", "video", "audio"))
    found = {str(token.content) for token in added if token.special}
    found |= {*map(str, tokenizer.all_special_tokens), *(str(p) for p in places if p)}
    longest_first = sorted(found - {""}, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


def _fitted(picture: PIL.Image.Image, pixels: int) -> PIL.Image.Image:
    """Return the picture with at most about ``pixels``, and with sides that processors can take."""
    width, height = picture.size
    scale = min(1.0, (pixels / (width * height)) ** 0.5)
    size = [max(_LEAST_SIDE, round(side * scale)) for side in (width, height)]
    size = [min(side, min(size) * _MOST_ASPECT) for side in size]
    if tuple(size) == picture.size:
        return picture
    return picture.resize((size[0], size[1]), PIL.Image.Resampling.BICUBIC)


def _mean(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    kept = torch.where(mask[:, :, None], states, 0.0)
    return kept.sum(dim=1) / mask.sum(dim=1, keepdim=True)


def _last(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    places = torch.arange(mask.shape[1], device=mask.device)
    last = torch.where(mask, places, -1).amax(dim=1)
    return states[torch.arange(len(mask), device=mask.device), last]


_POOL: Final = {"mean": _mean, "last": _last}
