"""CLIP, SigLIP and DINOv2 of transformers as towers."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
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
    Activation,
    AttentionPooling,
    BidirectionalTextTower,
    Block,
    CausalTextTower,
    Linear,
    PictureTower,
    TextTower,
    folded,
)
from router_runtime.types import F32

KINDS: Final = ("clip", "siglip", "dinov2", "dinov2_with_registers")
_OLD_END_OF_CLIP: Final = 2  # in old configurations; transformers then takes the highest id


def text_tower(model: Any, *, start_and_end: tuple[int, ...]) -> TextTower:
    """Return the text half of a CLIP or SigLIP model.

    Parameters
    ----------
    model : transformers.CLIPModel or SiglipModel
    start_and_end : tuple of int
        The special tokens around every text.

    Raises
    ------
    EncoderError
        It has something that the towers do not describe.
    """
    kind = _kind(model, "text")
    half = model.text_model
    embeddings = half.embeddings
    table = array_of(embeddings.token_embedding.weight)
    shared: dict[str, Any] = {
        "blocks": tuple(_block(layer, "text") for layer in half.encoder.layers),
        "heads": int(half.config.num_attention_heads),
        "activation": _activation(half.config.hidden_act, "text"),
        "final_norm": norm_of(half.final_layer_norm, half="text"),
        "embedding": table,
        "positions": array_of(embeddings.position_embedding.weight),
    }
    if kind == "siglip":
        return BidirectionalTextTower(
            **shared,
            projection=linear_of(half.head),
            first_norm=None,
            masked=False,
            pooling="last",
            normalised=False,
        )
    end = half.config.eos_token_id
    highest = len(table) - 1
    if len(start_and_end) != 2 or (end != _OLD_END_OF_CLIP and end != highest):
        raise refused("text", f"special tokens {start_and_end} and the end {end} of {highest}")
    projection = linear_of(model.text_projection)
    return CausalTextTower(**shared, projection=projection, start_token=start_and_end[0])


def picture_tower(model: Any, *, size: int) -> PictureTower:
    """Return the picture half.

    Parameters
    ----------
    model : transformers.CLIPModel, SiglipModel, Dinov2Model or Dinov2WithRegistersModel
    size : int
        Side of the prepared pictures in pixels.

    Raises
    ------
    EncoderError
        It has something that the towers do not describe.
    """
    kind = _kind(model, "picture")
    if kind == "clip":
        return _clip_pictures(model)
    if kind == "siglip":
        return _siglip_pictures(model.vision_model)
    return _dinov2_pictures(model, size)


def _clip_pictures(model: Any) -> PictureTower:
    half = model.vision_model
    embeddings = half.embeddings
    positions = array_of(embeddings.position_embedding.weight)
    return PictureTower(
        **_patches(embeddings.patch_embedding, positions[1:]),
        blocks=tuple(_block(layer, "picture") for layer in half.encoder.layers),
        heads=int(half.config.num_attention_heads),
        activation=_activation(half.config.hidden_act, "picture"),
        final_norm=norm_of(half.post_layernorm, half="picture"),
        projection=linear_of(model.visual_projection),
        size=int(half.config.image_size),
        first_rows=(array_of(embeddings.class_embedding) + positions[0])[None],
        first_norm=norm_of(half.pre_layrnorm, half="picture"),
    )


def _siglip_pictures(half: Any) -> PictureTower:
    if not half.use_head:
        raise refused("picture", "no pooling head")
    embeddings, head = half.embeddings, half.head
    attention = head.attention
    joint, biases = array_of(attention.in_proj_weight).T, array_of(attention.in_proj_bias)
    width = len(joint)
    query = Linear(joint[:, :width], biases[:width])
    return PictureTower(
        **_patches(embeddings.patch_embedding, array_of(embeddings.position_embedding.weight)),
        blocks=tuple(_block(layer, "picture") for layer in half.encoder.layers),
        heads=int(half.config.num_attention_heads),
        activation=_activation(half.config.hidden_act, "picture"),
        final_norm=norm_of(half.post_layernorm, half="picture"),
        projection=None,
        size=int(half.config.image_size),
        first_rows=np.zeros((0, width), np.float32),
        first_norm=None,
        pooling=AttentionPooling(
            query=query.apply(array_of(head.probe)[0, 0].astype(np.float64)).astype(np.float32),
            keys_and_values=Linear(joint[:, width:], biases[width:]),
            out=linear_of(attention.out_proj),
            norm=norm_of(head.layernorm, half="picture"),
            up=linear_of(head.mlp.fc1),
            down=linear_of(head.mlp.fc2),
        ),
    )


@torch.inference_mode()
def _dinov2_pictures(model: Any, size: int) -> PictureTower:
    embeddings, config = model.embeddings, model.config
    patches = embeddings.patch_embeddings.projection
    side = size // int(patches.kernel_size[0])
    rows = torch.zeros(1, 1 + side * side, config.hidden_size)
    positions = array_of(embeddings.interpolate_pos_encoding(rows, size, size)[0])
    first = [array_of(embeddings.cls_token)[0] + positions[:1]]
    if hasattr(embeddings, "register_tokens"):
        first.append(array_of(embeddings.register_tokens)[0])
    return PictureTower(
        **_patches(patches, positions[1:]),
        blocks=tuple(_dinov2_block(layer) for layer in model.encoder.layer),
        heads=int(config.num_attention_heads),
        activation=_activation(config.hidden_act, "picture"),
        final_norm=norm_of(model.layernorm, half="picture"),
        projection=None,
        size=size,
        first_rows=np.vstack(first),
        first_norm=None,
    )


def _patches(convolution: Any, positions: F32) -> dict[str, Any]:
    """Return the matrix of the patches; its bias is added with the positions."""
    weight = array_of(convolution.weight)
    if convolution.bias is not None:
        positions = positions + array_of(convolution.bias)
    return {
        "patches": Linear(weight.reshape(len(weight), -1).T),
        "patch_size": int(convolution.kernel_size[0]),
        "positions": positions,
    }


def _block(layer: Any, half: str) -> Block:
    attention = layer.self_attn
    return Block(
        norm_1=norm_of(layer.layer_norm1, half=half),
        qkv=side_by_side([attention.q_proj, attention.k_proj, attention.v_proj]),
        out=linear_of(attention.out_proj),
        norm_2=norm_of(layer.layer_norm2, half=half),
        up=linear_of(layer.mlp.fc1),
        down=linear_of(layer.mlp.fc2),
    )


def _dinov2_block(layer: Any) -> Block:
    mlp, attention = layer.mlp, layer.attention
    if not hasattr(mlp, "fc1"):
        raise refused("picture", f"a {type(mlp).__name__}")
    if hasattr(attention, "attention"):  # before transformers 5.10
        inner, out = attention.attention, attention.output.dense
        parts = [inner.query, inner.key, inner.value]
    else:
        parts, out = [attention.q_proj, attention.k_proj, attention.v_proj], attention.o_proj
    return Block(
        norm_1=norm_of(layer.norm1, half="picture"),
        qkv=side_by_side(parts),
        out=folded(linear_of(out), array_of(layer.layer_scale1.lambda1)),
        norm_2=norm_of(layer.norm2, half="picture"),
        up=linear_of(mlp.fc1),
        down=folded(linear_of(mlp.fc2), array_of(layer.layer_scale2.lambda1)),
    )


def _activation(name: str, half: str) -> Activation:
    if name not in ACTIVATIONS:
        raise refused(half, f"activation {name}")
    return ACTIVATIONS[name]


def _kind(model: Any, half: str) -> str:
    kind: str = model.config.model_type
    if kind not in KINDS:
        raise refused(half, f"a {kind} model")
    return kind
