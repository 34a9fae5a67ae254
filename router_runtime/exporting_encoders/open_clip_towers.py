"""An open_clip model as towers. Only its own transformers are read, not those of timm and others.

Whatever a model has that the towers do not describe is refused by name: an export that left it out
would be another encoder.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from router_runtime.errors import EncoderError
from router_runtime.exporting_encoders.towers import (
    Activation,
    Block,
    Linear,
    Norm,
    PictureTower,
    TextTower,
    Tower,
    folded,
)
from router_runtime.prediction.encoders.clip_text import causal_text_tower
from router_runtime.types import F32
from router_runtime.weights import torch_setup

# isort: split
# After torch_setup, which makes torchvision importable.
from open_clip import transformer as layers

__all__ = ["picture_tower", "text_tower"]


def text_tower(model: Any, *, start_token: int) -> TextTower:
    """Return the text half of an open_clip model.

    Raises
    ------
    EncoderError
        It is no causal transformer of open_clip's own that ends at the end token.
    """
    found = causal_text_tower(model)
    if found is None:
        raise _refused("text", type(getattr(model, "text", model)).__name__)
    return TextTower(
        **_shared(found.transformer, found.ln_final, found.text_projection, half="text"),
        embedding=_array(found.token_embedding.weight),
        positions=_array(found.positional_embedding),
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
        raise _refused("picture", type(visual).__name__)
    special = {
        "an attentional pooler": visual.attn_pool is not None,
        f"pool type '{visual.pool_type}'": visual.pool_type != "tok",
        "pictures that are not square": visual.image_size[0] != visual.image_size[1],
        "a bias of the patches": visual.conv1.bias is not None,
    }
    for what, there in special.items():
        if there:
            raise _refused("picture", what)
    width = visual.conv1.out_channels
    positions = _array(visual.positional_embedding)
    return PictureTower(
        **_shared(visual.transformer, visual.ln_post, visual.proj, half="picture"),
        patches=Linear(_array(visual.conv1.weight).reshape(width, -1).T),
        patch_size=int(visual.conv1.kernel_size[0]),
        size=int(visual.image_size[0]),
        class_token=_array(visual.class_embedding) + positions[0],
        positions=positions[1:],
        first_norm=None
        if isinstance(visual.ln_pre, torch.nn.Identity)
        else _norm(visual.ln_pre, half="picture"),
    )


def _shared(transformer: Any, final_norm: Any, projection: Any, *, half: str) -> dict[str, Any]:
    blocks = list(transformer.resblocks)
    for block in blocks:
        if type(block) is not layers.ResidualAttentionBlock:
            raise _refused(half, type(block).__name__)
    if isinstance(projection, torch.nn.Linear):
        projected: Linear | None = _linear(projection)
    else:
        projected = None if projection is None else Linear(_array(projection))
    tower = Tower(
        blocks=tuple(_block(block, half=half) for block in blocks),
        heads=int(blocks[0].attn.num_heads),
        activation=_activation(blocks[0].mlp.gelu, half=half),
        final_norm=_norm(final_norm, half=half),
        projection=projected,
    )
    return {name: getattr(tower, name) for name in tower.__dataclass_fields__}


def _block(block: Any, *, half: str) -> Block:
    attention = block.attn
    return Block(
        norm_1=_norm(block.ln_1, half=half),
        qkv=Linear(_array(attention.in_proj_weight).T, _array(attention.in_proj_bias)),
        out=folded(_linear(attention.out_proj), _scale(block.ls_1)),
        norm_2=_norm(block.ln_2, half=half),
        up=_linear(block.mlp.c_fc),
        down=folded(_linear(block.mlp.c_proj), _scale(block.ls_2)),
    )


def _activation(module: Any, *, half: str) -> Activation:
    if isinstance(module, layers.QuickGELU):
        return "quick_gelu"
    if type(module) is torch.nn.GELU:
        return "gelu" if module.approximate == "none" else "gelu_tanh"
    raise _refused(half, f"activation {type(module).__name__}")


def _scale(module: Any) -> F32 | None:
    return None if isinstance(module, torch.nn.Identity) else _array(module.gamma)


def _norm(module: Any, *, half: str) -> Norm:
    if not isinstance(module, torch.nn.LayerNorm):
        raise _refused(half, type(module).__name__)
    return Norm(_array(module.weight), _array(module.bias), float(module.eps))


def _linear(module: Any) -> Linear:
    bias = None if module.bias is None else _array(module.bias)
    return Linear(_array(module.weight).T, bias)


def _array(tensor: torch.Tensor) -> F32:
    return np.ascontiguousarray(torch_setup.to_numpy(tensor))


def _refused(half: str, what: str) -> EncoderError:
    return EncoderError(
        f"the {half} half of this model has {what}, which cannot be exported. Exported are "
        "open_clip's own transformers with a causal text half and a class token (ViT-B-32 and its "
        "kind); serve this one with 'engine: torch'."
    )
