"""Makes ``import torchvision`` work beside a PyTorch of another build.

A CPU build of PyTorch is often installed together with the torchvision wheel that was compiled for
CUDA. torchvision's compiled operators then cannot be loaded. Its transforms, the only part that
encoders use, do without them; but its import still stops at ``RuntimeError: operator
torchvision::nms does not exist``, because it attaches shape functions to two operators that the
missing library would have declared. Declaring their signatures is enough. They stay without an
implementation: calling them fails, importing does not.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import torch

_SIGNATURE = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_library: Any = torch.library.Library  # which PyTorch leaves without types
_libraries: list[Any] = []  # a declaration ends with its Library object


def make_importable() -> None:
    """Import torchvision if it is installed, declaring what its import misses.

    Where torchvision imports as it is, nothing is declared.
    """
    if importlib.util.find_spec("torchvision") is None:
        return
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "operator torchvision::" not in str(error):
            raise
        library = _library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            if not hasattr(torch.ops.torchvision, name):
                library.define(name + _SIGNATURE)
        _libraries.append(library)
        importlib.import_module("torchvision")
