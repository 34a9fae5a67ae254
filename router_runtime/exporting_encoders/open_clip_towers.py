"""An open_clip model as towers: its own transformers, not those of timm and others."""

from __future__ import annotations

from typing import Any

import torch

from router_runtime.exporting_encoders.torch_layers import array_of, linear_of, norm_of, refused
from router_runtime.exporting_encoders.towers import (
    Activation,
    Block,
    CausalTextTower,
    Linear,
    PictureTower,
    Tower,
    folded,
)
from router_runtime.prediction.encoders.clip_text import causal_text_tower
from router_runtime.types import F32

# isort: split
# After clip_text, which makes torchvision importable.
from open_clip import transformer as layers

__all__ = ["picture_tower", "text_tower"]


def text_tower(model: Any, *, start_token: int) -> CausalTextTower:
    """Return the text half of an open_clip model.

    Raises
    ------
    EncoderError
        It is no causal transformer of open_clip's own that ends at the end token.
    """
    found = causal_text_tower(model)
    if found is None:
        raise refused("text", type(getattr(model, "text", model)).__name__)
    return CausalTextTower(
        **_shared(found.transformer, found.ln_final, found.text_projection, half="text"),
        embedding=array_of(found.token_embedding.weight),
        positions=array_of(found.positional_embedding),
        start_token=start_token,
    )


def picture_tower(model: Any) -> PictureTower:
    """Return the picture half of an open_clip model.

    Raises
    ------
    EncoderError
        It is no vision transformer of open_clip's own whose class token is the result.
    """
    visual = model.visual
    if type(visual) is not layers.VisionTransformer:
        raise refused("picture", type(visual).__name__)
    special = {
        "an attentional pooler": visual.attn_pool is not None,
        f"pool type '{visual.pool_type}'": visual.pool_type != "tok",
        "pictures that are not square": visual.image_size[0] != visual.image_size[1],
        "a bias of the patches": visual.conv1.bias is not None,
    }
    for what, there in special.items():
        if there:
            raise refused("picture", what)
    width = visual.conv1.out_channels
    positions = array_of(visual.positional_embedding)
    return PictureTower(
        **_shared(visual.transformer, visual.ln_post, visual.proj, half="picture"),
        patches=Linear(array_of(visual.conv1.weight).reshape(width, -1).T),
        patch_size=int(visual.conv1.kernel_size[0]),
        size=int(visual.image_size[0]),
        first_rows=(array_of(visual.class_embedding) + positions[0])[None],
        positions=positions[1:],
        first_norm=None
        if isinstance(visual.ln_pre, torch.nn.Identity)
        else norm_of(visual.ln_pre, half="picture"),
    )


def _shared(transformer: Any, final_norm: Any, projection: Any, *, half: str) -> dict[str, Any]:
    blocks = list(transformer.resblocks)
    for block in blocks:
        if type(block) is not layers.ResidualAttentionBlock:
            raise refused(half, type(block).__name__)
    if isinstance(projection, torch.nn.Linear):
        projected: Linear | None = linear_of(projection)
    else:
        projected = None if projection is None else Linear(array_of(projection))
    tower = Tower(
        blocks=tuple(_block(block, half=half) for block in blocks),
        heads=int(blocks[0].attn.num_heads),
        activation=_activation(blocks[0].mlp.gelu, half=half),
        final_norm=norm_of(final_norm, half=half),
        projection=projected,
    )
    return {name: getattr(tower, name) for name in tower.__dataclass_fields__}


def _block(block: Any, *, half: str) -> Block:
    attention = block.attn
    return Block(
        norm_1=norm_of(block.ln_1, half=half),
        qkv=Linear(array_of(attention.in_proj_weight).T, array_of(attention.in_proj_bias)),
        out=folded(linear_of(attention.out_proj), _scale(block.ls_1)),
        norm_2=norm_of(block.ln_2, half=half),
        up=linear_of(block.mlp.c_fc),
        down=folded(linear_of(block.mlp.c_proj), _scale(block.ls_2)),
    )


def _activation(module: Any, *, half: str) -> Activation:
    if isinstance(module, layers.QuickGELU):
        return "quick_gelu"
    if type(module) is torch.nn.GELU:
        return "gelu" if module.approximate == "none" else "gelu_tanh"
    raise refused(half, f"activation {type(module).__name__}")


def _scale(module: Any) -> F32 | None:
    return None if isinstance(module, torch.nn.Identity) else array_of(module.gamma)
