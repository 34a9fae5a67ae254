"""The text half of open_clip's models, read no further than each batch's longest text.

open_clip pads every text to 77 tokens. In a causal text half whose result is the end token, what
follows that token changes nothing, so most of the work is thrown away.
"""

from __future__ import annotations

from typing import Any

import torch

from router_runtime.weights import torch_setup  # noqa: F401  makes torchvision importable

# isort: split
from open_clip.transformer import TextTransformer, text_global_pool

_AT_THE_END = ("argmax", "eos")


def causal_text_tower(model: Any) -> Any:
    """Return the module that holds the model's text half, if what follows a text changes nothing.

    Parameters
    ----------
    model : open_clip.CLIP or open_clip.CustomTextCLIP
        On any device.

    Returns
    -------
    Module or None
        With ``token_embedding``, ``positional_embedding``, ``transformer``, ``ln_final`` and
        ``text_projection``; None for text halves of other kinds.
    """
    tower = getattr(model, "text", model)
    if tower is model:
        pool, known = getattr(model, "text_pool_type", None), hasattr(model, "token_embedding")
    else:
        known = type(tower) is TextTransformer and tower.cls_emb is None
        pool = getattr(tower, "pool_type", None)
    causal = getattr(tower, "attn_mask", None) is not None
    return tower if known and causal and pool in _AT_THE_END else None


def encode_cut(tower: Any, tokens: torch.Tensor) -> torch.Tensor:
    """Return what open_clip's ``encode_text`` returns for ``tokens`` padded to the full length.

    Parameters
    ----------
    tower : Module
        From ``causal_text_tower``.
    tokens : Tensor of shape (n_texts, n), int64
        n is at most the model's context length.

    Returns
    -------
    Tensor of shape (n_texts, dim)
        Equal to 1e-5: kernels add in another order for another shape.
    """
    n = tokens.shape[1]
    x = tower.token_embedding(tokens) + tower.positional_embedding[:n]
    x = tower.ln_final(tower.transformer(x, attn_mask=tower.attn_mask[:n, :n]))
    pool = getattr(tower, "text_pool_type", None) or tower.pool_type
    end = getattr(tower, "text_eos_id", None) or getattr(tower, "eos_id", None)
    pooled: torch.Tensor = text_global_pool(x, tokens, pool, eos_token_id=end)
    projection = tower.text_projection
    if isinstance(projection, torch.nn.Linear):
        pooled = projection(pooled)
    elif projection is not None:
        pooled = pooled @ projection
    return pooled
