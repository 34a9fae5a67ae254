"""What encoders on PyTorch share: a torchvision that imports, the device, weights' digests.

Import this module before anything that imports torchvision (open_clip, transformers).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch

from router_runtime.errors import EncoderError
from router_runtime.types import F32, WeightsSize
from router_runtime.weights import torchvision_schemas

torchvision_schemas.make_importable()


def pick_device(name: str) -> torch.device:
    """Return the device called ``name``: ``auto`` (CUDA when there), ``cpu``, ``cuda``, ``cuda:N``.

    Other names do not reach this: ``EncoderRuntime`` refuses them.

    Raises
    ------
    EncoderError
        No such device in this machine.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise EncoderError(
            f"device '{name}' is not there: PyTorch {torch.__version__} sees "
            f"{torch.cuda.device_count()} CUDA devices. "
            "Use 'auto', 'cpu', 'cuda' or 'cuda:N'."
        )
    return device


def weights_digest(model: torch.nn.Module) -> str:
    """Return the sha256 hex digest of every parameter's and buffer's name, type, shape and bytes.

    Independent of the device and of the file format that the weights came in.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}:".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def size_of(parameters: Iterable[torch.Tensor]) -> WeightsSize:
    """Return how many numbers these are, and the bytes that they take."""
    tensors = list(parameters)
    return WeightsSize(
        parameters=sum(one.numel() for one in tensors),
        n_bytes=sum(one.numel() * one.element_size() for one in tensors),
    )


def to_numpy(vectors: torch.Tensor) -> F32:
    """Return a float32 NumPy copy in main memory."""
    array: F32 = vectors.detach().float().cpu().numpy()
    return array
