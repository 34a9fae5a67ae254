"""The model below all adapters: its weights, its tokenizer or processor, and its shape.

Weights are read from safetensors alone and no code of a repository is executed, so a model that
needs its own code is refused by transformers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

# The order matters: this makes torchvision importable, which transformers imports.
from router_runtime.weights.torch_setup import pick_device  # isort: skip

import torch
import transformers

from router_runtime.errors import ConfigError, EncoderError
from router_runtime.experts.attaching import Attachment
from router_runtime.experts.config import BaseConfig
from router_runtime.experts.fitting import BaseShape
from router_runtime.experts.shared import Weights, load_weights, weights_of
from router_runtime.weights.hub import model_folder


@dataclass(frozen=True, eq=False)
class BaseModel:
    """A loaded base model.

    Parameters
    ----------
    name : str
        As configured.
    model : transformers.PreTrainedModel
    processor : transformers processor or tokenizer
        Has the chat template.
    tokenizer : transformers tokenizer
    sees_pictures : bool
    shape : BaseShape
    end_tokens : tuple of int
        Tokens that end an answer.
    context : int
        Tokens of prompt and answer together.
    folder : Path
        Of its files.
    weights : Weights
        Kept here so that others who load the same find them.
    """

    name: str
    model: Any
    processor: Any
    tokenizer: Any
    sees_pictures: bool
    shape: BaseShape
    end_tokens: tuple[int, ...]
    context: int
    folder: Path
    weights: Weights

    @property
    def n_bytes(self) -> int:
        """Of its parameters and buffers in memory."""
        return self.weights.n_bytes

    @property
    def attached(self) -> Attachment:
        """The adapters on these weights, of all pools, and whose turn it is."""
        return self.weights.attached

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return torch.device(self.model.device)

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights; adapters are held in the same."""
        found: torch.dtype = self.model.dtype
        return found


def load_base(config: BaseConfig, *, own: bool = False) -> BaseModel:
    """Load the base model that ``config`` describes.

    Parameters
    ----------
    config : BaseConfig
    own : bool
        Have weights that are nobody else's, to change them; otherwise those that are in memory
        already are used.

    Raises
    ------
    EncoderError
        Its weights cannot be had, or are no causal or vision-language model.
    ConfigError
        It has no chat template or no token that ends an answer, or the template cannot be read.
    """
    device = pick_device(config.device)
    folder = model_folder(config.model, revision=config.revision)
    load = load_weights if own else weights_of
    weights = load(folder, name=config.model, dtype=config.dtype, device=device)
    loader: Any = transformers.AutoTokenizer
    if weights.sees_pictures:
        loader = transformers.AutoProcessor
    try:
        processor = loader.from_pretrained(folder)
    except Exception as error:  # damaged files make the loaders raise nearly anything
        raise EncoderError(
            f"base model '{config.model}' comes without a tokenizer or processor that can be "
            f"loaded: {' '.join(str(error).split())[:300]}"
        ) from error
    tokenizer = getattr(processor, "tokenizer", processor)
    _give_template(config, processor, tokenizer)
    ends = _end_tokens(config, weights.model, tokenizer)
    # Defaults of a repository, such as its temperature, would otherwise join in every answer.
    weights.model.generation_config = generation_settings(ends)
    stated = getattr(weights.described, "_name_or_path", "") or ""
    known_as = (*config.known_as, *([stated] if stated and not Path(stated).is_dir() else []))
    return BaseModel(
        name=config.model,
        model=weights.model,
        processor=processor,
        tokenizer=tokenizer,
        sees_pictures=weights.sees_pictures,
        shape=replace(weights.shape, name=config.model, known_as=known_as),
        end_tokens=ends,
        context=_context(weights.described),
        folder=folder,
        weights=weights,
    )


def generation_settings(ends: tuple[int, ...], *, max_new_tokens: int | None = None) -> Any:
    """Return what transformers' ``generate`` is told; it draws nothing by itself."""
    make: Any = transformers.GenerationConfig  # which has no types
    return make(
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=list(ends),
        pad_token_id=ends[0],
    )


def _give_template(config: BaseConfig, processor: Any, tokenizer: Any) -> None:
    if config.chat_template is not None:
        try:
            template = Path(config.chat_template).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"'base.chat_template': '{config.chat_template}' cannot be read: {error}"
            ) from error
        processor.chat_template = tokenizer.chat_template = template
    if not processor.chat_template:
        processor.chat_template = tokenizer.chat_template
    if not processor.chat_template:
        raise ConfigError(
            f"base model '{config.model}' comes without a chat template. Give one with "
            "'base.chat_template', a Jinja file."
        )


def _end_tokens(config: BaseConfig, model: Any, tokenizer: Any) -> tuple[int, ...]:
    stated = model.generation_config.eos_token_id
    found = list(stated) if isinstance(stated, list | tuple) else [stated]
    ends = dict.fromkeys(int(e) for e in (*found, tokenizer.eos_token_id) if e is not None)
    if not ends:
        raise ConfigError(
            f"base model '{config.model}' names no token that ends an answer (eos_token_id). Add "
            "it to its generation_config.json."
        )
    return tuple(ends)


def _context(described: Any) -> int:
    text = described.get_text_config()
    return int(getattr(text, "max_position_embeddings", None) or 2**20)
