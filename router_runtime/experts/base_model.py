"""The model below all adapters: its weights, its tokenizer or processor, and its shape.

Weights are read from safetensors alone and no code of a repository is executed, so a model that
needs its own code is refused by transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

# The order matters: this makes torchvision importable, which transformers imports.
from router_runtime.weights.torch_setup import pick_device  # isort: skip

import torch
import transformers

from router_runtime.errors import ConfigError, EncoderError
from router_runtime.experts.config import BaseConfig
from router_runtime.experts.fitting import BaseShape
from router_runtime.weights.hub import model_folder

_DTYPES: Final[Mapping[str, torch.dtype]] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


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
    n_bytes : int
        Of its parameters and buffers in memory.
    """

    name: str
    model: Any
    processor: Any
    tokenizer: Any
    sees_pictures: bool
    shape: BaseShape
    end_tokens: tuple[int, ...]
    context: int
    n_bytes: int

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return torch.device(self.model.device)

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights; adapters are held in the same."""
        found: torch.dtype = self.model.dtype
        return found


def load_base(config: BaseConfig) -> BaseModel:
    """Load the base model that ``config`` describes.

    Raises
    ------
    EncoderError
        Its weights cannot be had, or are no causal or vision-language model.
    ConfigError
        It has no chat template or no token that ends an answer, or the template cannot be read.
    """
    device = pick_device(config.device)
    folder = model_folder(config.model, revision=config.revision)
    try:
        described = transformers.AutoConfig.from_pretrained(folder)
        sees = type(described) in transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
        kind: Any = transformers.AutoModelForCausalLM
        if sees:
            kind = transformers.AutoModelForImageTextToText
        model: Any = kind.from_pretrained(
            folder, dtype=_DTYPES.get(config.dtype, "auto"), use_safetensors=True
        )
        loader = transformers.AutoProcessor if sees else transformers.AutoTokenizer
        processor = loader.from_pretrained(folder)
    except Exception as error:  # damaged files make the loaders raise nearly anything
        raise EncoderError(
            f"base model '{config.model}' cannot be loaded as a causal or vision-language model: "
            f"{' '.join(str(error).split())[:300]}"
        ) from error
    model = model.to(device).eval().requires_grad_(False)
    tokenizer = getattr(processor, "tokenizer", processor)
    _give_template(config, processor, tokenizer)
    ends = _end_tokens(config, model, tokenizer)
    # Defaults of a repository, such as its temperature, would otherwise join in every answer.
    model.generation_config = generation_settings(ends)
    weights = (*model.parameters(), *model.buffers())
    return BaseModel(
        name=config.model,
        model=model,
        processor=processor,
        tokenizer=tokenizer,
        sees_pictures=sees,
        shape=_shape(config, model, described),
        end_tokens=ends,
        context=_context(described),
        n_bytes=sum(tensor.numel() * tensor.element_size() for tensor in weights),
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


def _shape(config: BaseConfig, model: Any, described: Any) -> BaseShape:
    linears, others = {}, set()
    for name, module in model.named_modules():
        if type(module) is torch.nn.Linear:
            linears[name] = (module.in_features, module.out_features)
        elif name:
            others.add(name)
    own = getattr(described, "_name_or_path", "") or ""
    row_parts = [id(part) for part in (model.get_decoder(), model.get_output_embeddings())]
    return BaseShape(
        name=config.model,
        known_as=(*config.known_as, *([own] if own and not Path(own).is_dir() else [])),
        linears=linears,
        others=frozenset(others),
        row_parts=tuple(
            name if name in linears else f"{name}."
            for name, module in model.named_modules()
            if id(module) in row_parts
        ),
    )
