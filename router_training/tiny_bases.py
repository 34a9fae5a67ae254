"""Tiny base models with RANDOM weights, to practise on where none can be downloaded.

Classes, tokenizers, processors and files are the real ones, so that what learns on such a folder
learns on a pretrained one by the same config. What it then reaches says that the machinery works,
and nothing about a pretrained model.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from router_runtime.weights import torch_setup  # isort: skip - makes transformers importable

import tokenizers
import torch
import transformers

_USED: Final = torch_setup
_UNTYPED: Final[Any] = transformers  # what mypy finds no types in

_SPECIAL: Final = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_MARKS: Final = (
    "<pad>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
_END, _VISION_START, _VISION_END, _IMAGE, _VIDEO = 2, 3, 4, 5, 6
_WORDS: Final = 400
_PATCH: Final = 8  # pixels a side
_TEMPLATE: Final = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for p in m['content'] %}"
    "{% if p['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ p['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_text_base(folder: str | Path, texts: Iterable[str], *, seed: int = 0) -> Path:
    """Write a DistilBERT of two layers, for ``predictor: {kind: sequence}``.

    Parameters
    ----------
    folder : path
    texts : iterable of str
        What its WordPiece tokenizer learns words from.
    seed : int
        Of the weights.

    Returns
    -------
    Path
        The folder.
    """
    inner = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token=_SPECIAL[1]))
    inner.normalizer = tokenizers.normalizers.BertNormalizer()
    inner.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    trainer = tokenizers.trainers.WordPieceTrainer(
        vocab_size=_WORDS, special_tokens=list(_SPECIAL), show_progress=False
    )
    inner.train_from_iterator(texts, trainer)
    inner.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {f"{name.strip('[]').lower()}_token": name for name in _SPECIAL}
    _UNTYPED.PreTrainedTokenizerFast(tokenizer_object=inner, **names).save_pretrained(folder)
    config = transformers.DistilBertConfig(
        vocab_size=inner.get_vocab_size(),
        dim=32,
        hidden_dim=64,
        n_layers=2,
        n_heads=2,
        max_position_embeddings=128,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        transformers.DistilBertModel(config).save_pretrained(folder)
    return Path(folder)


def write_vision_base(folder: str | Path, texts: Iterable[str], *, seed: int = 0) -> Path:
    """Write a Qwen3-VL of two layers: a base of LoRA adapters, or a frozen encoder.

    Parameters
    ----------
    folder : path
    texts : iterable of str
        What its tokenizer learns words from, beside single letters.
    seed : int
        Of the weights.

    Returns
    -------
    Path
        The folder.
    """
    rope = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [2, 3, 3]}
    reader = _byte_tokenizer(texts)
    config = transformers.Qwen3VLConfig(
        text_config={
            "vocab_size": len(reader),
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "max_position_embeddings": 1024,
            "eos_token_id": _END,
            "pad_token_id": 0,
            "bos_token_id": None,
            "initializer_range": 0.2,  # with 0.02 a model so narrow is never sure of anything
            "rope_parameters": {**rope, "mrope_interleaved": True},
        },
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "patch_size": _PATCH,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "out_hidden_size": 32,
            "deepstack_visual_indexes": [0],
            "num_position_embeddings": 64,
        },
        image_token_id=_IMAGE,
        video_token_id=_VIDEO,
        vision_start_token_id=_VISION_START,
        vision_end_token_id=_VISION_END,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        transformers.Qwen3VLForConditionalGeneration(config).save_pretrained(folder)
    pictures = transformers.Qwen2VLImageProcessor(
        patch_size=_PATCH,
        merge_size=2,
        temporal_patch_size=2,
        size={"shortest_edge": 16 * 16, "longest_edge": 64 * 64},  # pixels in all
    )
    _UNTYPED.Qwen3VLProcessor(
        image_processor=pictures,
        tokenizer=reader,
        video_processor=transformers.Qwen3VLVideoProcessor(),
        chat_template=_TEMPLATE,
    ).save_pretrained(folder)
    return Path(folder)


def _byte_tokenizer(texts: Iterable[str]) -> Any:
    inner = tokenizers.Tokenizer(tokenizers.models.BPE())
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=_WORDS,
        special_tokens=list(_MARKS),
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(texts, trainer)
    names = ("vision_bos_token", "vision_eos_token", "image_token", "video_token")
    return _UNTYPED.PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token=_MARKS[0],
        eos_token=_MARKS[_END],
        extra_special_tokens=dict(zip(names, _MARKS[3:], strict=True)),
        chat_template=_TEMPLATE,
    )
