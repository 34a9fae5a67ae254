"""BERT, RoBERTa and XLM-RoBERTa with what sentence-transformers does to their rows, as a tower."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch

from router_runtime.exporting_encoders.torch_layers import (
    array_of,
    linear_of,
    norm_of,
    refused,
    side_by_side,
)
from router_runtime.exporting_encoders.towers import (
    ACTIVATIONS,
    BidirectionalTextTower,
    Block,
    Linear,
    Pooling,
)

_HALF: Final = "text"
_KINDS: Final = ("bert", "roberta", "xlm-roberta")
_ENDS: Final[tuple[list[str], ...]] = ([], ["Dense"], ["Normalize"], ["Dense", "Normalize"])
_POOLINGS: Final[dict[str, Pooling]] = {"mean": "mean", "cls": "first"}


def text_tower(modules: Sequence[Any]) -> BidirectionalTextTower:
    """Return the tower of a SentenceTransformer's modules.

    Raises
    ------
    EncoderError
        They are not BERT or one of its kind, pooling, and perhaps a projection and normalisation.
    """
    names = [type(module).__name__ for module in modules]
    plain = [name for name in names[2:] if name in ("Dense", "Normalize")]
    if names != ["Transformer", "Pooling", *plain] or plain not in _ENDS:
        raise refused(_HALF, f"the modules {', '.join(names)}")
    model = modules[0].auto_model
    config = model.config
    if config.model_type not in _KINDS or config.is_decoder:
        raise refused(_HALF, f"a {config.model_type} model")
    if getattr(config, "position_embedding_type", "absolute") != "absolute":
        raise refused(_HALF, f"positions of type {config.position_embedding_type}")
    if config.hidden_act not in ACTIVATIONS:
        raise refused(_HALF, f"activation {config.hidden_act}")
    embeddings = model.embeddings
    positions = array_of(embeddings.position_embeddings.weight)
    if hasattr(embeddings, "token_type_embeddings"):
        positions = positions + array_of(embeddings.token_type_embeddings.weight)[0]
    return BidirectionalTextTower(
        blocks=tuple(_block(layer) for layer in model.encoder.layer),
        heads=int(config.num_attention_heads),
        activation=ACTIVATIONS[config.hidden_act],
        norm_first=False,
        embedding=array_of(embeddings.word_embeddings.weight),
        positions=positions,
        unplaced_token=None if config.model_type == "bert" else int(config.pad_token_id),
        first_norm=norm_of(embeddings.LayerNorm, half=_HALF),
        final_norm=None,
        masked=True,
        pooling=_pooling(modules[1]),
        projection=_projection(modules[2]) if "Dense" in plain else None,
        normalised="Normalize" in plain,
    )


def _pooling(module: Any) -> Pooling:
    legacy = getattr(module, "get_pooling_mode_str", None)
    mode = module.pooling_mode if legacy is None else legacy()
    if mode not in _POOLINGS:
        raise refused(_HALF, f"pooling '{mode}'")
    return _POOLINGS[mode]


def _projection(module: Any) -> Linear:
    if not isinstance(module.activation_function, torch.nn.Identity):
        raise refused(_HALF, f"activation {type(module.activation_function).__name__} at its end")
    if getattr(module, "use_residual", False):
        raise refused(_HALF, "a residual connection at its end")
    return linear_of(module.linear)


def _block(layer: Any) -> Block:
    attention = layer.attention
    inner = attention.self
    return Block(
        qkv=side_by_side([inner.query, inner.key, inner.value]),
        out=linear_of(attention.output.dense),
        norm_1=norm_of(attention.output.LayerNorm, half=_HALF),
        up=linear_of(layer.intermediate.dense),
        down=linear_of(layer.output.dense),
        norm_2=norm_of(layer.output.LayerNorm, half=_HALF),
    )
