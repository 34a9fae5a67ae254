"""What tells the weights of a base model from those of another, read in a fraction of a second.

A base has many gigabytes, and a digest of all of them would be the longest part of every start. So
of every tensor the name, the type, the shape and evenly spaced samples count: fine-tuning,
quantising or another seed change nearly every number of nearly every tensor. How the tensors are
divided among files does not count.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Final

from router_runtime.errors import EncoderError

_BLOCK: Final = 4096
_BLOCKS: Final = 16
_LONGEST_HEADER: Final = 100 * 2**20  # what the safetensors library accepts


def base_digest(folder: Path) -> str:
    """Return a hex digest of the weights in a model folder.

    Raises
    ------
    EncoderError
        There are none as safetensors, or a file is damaged.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise EncoderError(f"'{folder}' has no weights as safetensors. Give a whole model.")
    found: dict[str, str] = {}
    for file in files:
        try:
            found |= _digests(file)
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise EncoderError(
                f"'{file}' is no whole safetensors file ({type(error).__name__}). Copy it again."
            ) from error
    return hashlib.sha256(json.dumps(sorted(found.items())).encode()).hexdigest()


def _digests(file: Path) -> dict[str, str]:
    """Return a digest of each tensor by name."""
    found = {}
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if length > _LONGEST_HEADER:
            raise ValueError("header too long")
        header = json.loads(stream.read(length))
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            begin, end = (8 + length + int(offset) for offset in entry["data_offsets"])
            digest = hashlib.sha256(json.dumps([entry["dtype"], entry["shape"]]).encode())
            for start in _starts(begin, end):
                size = min(_BLOCK, end - start)
                block = os.pread(stream.fileno(), size, start)
                if len(block) != size:
                    raise ValueError("file too short")
                digest.update(block)
            found[name] = digest.hexdigest()
    return found


def _starts(begin: int, end: int) -> list[int]:
    size = end - begin
    if size <= _BLOCK * _BLOCKS:
        return list(range(begin, end, _BLOCK))
    step = (size - _BLOCK) // (_BLOCKS - 1)
    return [begin + at * step for at in range(_BLOCKS)]
