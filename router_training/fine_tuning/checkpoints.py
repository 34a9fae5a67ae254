"""Where an interrupted fine-tuning continues: tensors and JSON, the JSON written last."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from router_runtime.errors import RouterError
from router_runtime.types import Json

_STATE = "checkpoint.json"
_FORMAT = 1


@dataclass(frozen=True, eq=False)
class Saved:
    """A checkpoint as it was written.

    Parameters
    ----------
    tensors : mapping
    values : mapping
        Plain values.
    """

    tensors: Mapping[str, torch.Tensor]
    values: Mapping[str, Json]


class Checkpoints:
    """The newest checkpoint of one fine-tuning, in a folder of its own.

    Parameters
    ----------
    folder : Path
        Made when first written.
    inputs : str
        Digest of all that the fine-tuning depends on; a checkpoint of other inputs is not read.
    """

    def __init__(self, folder: Path, *, inputs: str) -> None:
        self._folder = folder
        self._inputs = inputs

    def read(self) -> Saved | None:
        """Return the newest checkpoint; None where there is none of these inputs.

        Raises
        ------
        RouterError
            It is damaged.
        """
        try:
            state = json.loads((self._folder / _STATE).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise self._damaged(error) from error
        if not isinstance(state, dict) or state.get("format") != _FORMAT:
            return None
        if state.get("inputs") != self._inputs:
            return None
        try:
            tensors = load_tensors((self._folder / Path(state["tensors"]).name).read_bytes())
            return Saved(tensors, state["values"])
        except (OSError, KeyError, TypeError, SafetensorError) as error:
            raise self._damaged(error) from error

    def write(self, tensors: Mapping[str, torch.Tensor], values: Mapping[str, Json]) -> None:
        """Replace the checkpoint; whenever the process dies, the old or the new one is whole.

        Raises
        ------
        RouterError
            The folder cannot be written.
        """
        name = f"tensors-{values['step']}.safetensors"
        state = {"format": _FORMAT, "inputs": self._inputs, "tensors": name, "values": values}
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            alone = {key: t.detach().cpu().contiguous().clone() for key, t in tensors.items()}
            self._put(name, save_tensors(alone))
            self._put(_STATE, json.dumps(state).encode())
            for file in self._folder.glob("tensors-*.safetensors"):
                if file.name != name:
                    file.unlink(missing_ok=True)
        except OSError as error:
            raise RouterError(
                f"Checkpoints cannot be kept in '{self._folder}': {error.strerror or error}."
            ) from error

    def remove(self) -> None:
        """Forget the checkpoint: the fine-tuning is finished and kept elsewhere."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _put(self, name: str, content: bytes) -> None:
        temporary = self._folder / f".{name}"
        temporary.write_bytes(content)
        os.replace(temporary, self._folder / name)

    def _damaged(self, error: Exception) -> RouterError:
        return RouterError(
            f"The checkpoint in '{self._folder}' is damaged ({type(error).__name__}). Delete that "
            "folder to start again."
        )
