"""``nn_router.pth``, the published router's checkpoint: tensors and plain values, through torch."""

from __future__ import annotations

import io
import itertools
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import safetensors.numpy
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import nn

from router_runtime.errors import ArtifactError, ConfigError
from router_runtime.legacy.restricted_pickle import plain_json
from router_runtime.prediction.heads.mlp import MLPHead
from router_runtime.prediction.heads.network import RouterNetwork, fold
from router_runtime.types import Json

MAX_BYTES = 256 * 2**20
MAX_PROGRAM_BYTES = 2**20  # of the pickle inside; the weights lie beside it

_Width = Annotated[int, Field(ge=1, le=65_536)]


@dataclass(frozen=True)
class Checkpoint:
    """A network as the file holds it.

    Parameters
    ----------
    head : MLPHead
        The network, folded.
    model_names : tuple of str
        In the order of its outputs; empty when the file names none.
    config : dict
        The settings it was trained with, as JSON.
    """

    head: MLPHead
    model_names: tuple[str, ...]
    config: dict[str, Json]


class _Definition(BaseModel):
    """The values that define the network; the rest of ``config`` is about its training."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    input_dim: _Width
    output_dim: _Width
    hidden_dims: tuple[_Width, ...] = Field(max_length=32)
    model_names: tuple[str, ...] = ()


def read_checkpoint(path: Path) -> Checkpoint:
    """Read ``nn_router.pth`` with ``weights_only=True`` and fold the network.

    The network is defined by ``config.hidden_dims``, ``input_dim`` and ``output_dim``; its weights
    must fit exactly. Dropout does nothing after training.

    Raises
    ------
    ArtifactError
        If the file is too large, no such checkpoint, or asks for more than tensors and plain
        values.
    """
    content = _load(path)
    try:
        config, state = content["config"], content["model_state_dict"]
        definition = _Definition.model_validate(
            {**content, "hidden_dims": config["hidden_dims"]}, strict=False
        )
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"]))
        raise ArtifactError(f"'{path}': {where}: {problem['msg']}.") from error
    except (KeyError, TypeError) as error:
        raise ArtifactError(
            f"'{path}' is no checkpoint of the published router ({error!r}): expected "
            "model_state_dict, config.hidden_dims, input_dim and output_dim."
        ) from error
    network = _network(path, definition, state)
    return Checkpoint(
        _folded(path, network), definition.model_names, plain_json(config, source=str(path))
    )


def _load(path: Path) -> Any:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ArtifactError(f"'{path}' is larger than {MAX_BYTES} bytes and is not read.")
        return torch.load(_repacked(path), map_location="cpu", weights_only=True)
    except ArtifactError:
        raise
    except FileNotFoundError:
        raise ArtifactError(
            f"'{path}' does not exist. Name the folder with nn_router.pth."
        ) from None
    except (
        Exception
    ) as error:  # torch lets through whatever its zip, pickle and tensor readers raise
        raise ArtifactError(
            f"'{path}' cannot be read as tensors and plain values ({type(error).__name__}). It is "
            "damaged, or it holds objects; those are never loaded, because that can run code."
        ) from error


def _repacked(path: Path) -> io.BytesIO:
    """Copy the archive, so that torch unpacks exactly the members that were checked here.

    A compressed member could fill the memory, and so could a long pickle, of which one byte may
    make an object; torch limits neither, and reads what is no archive with an older reader.
    """
    if not zipfile.is_zipfile(path):
        raise ArtifactError(
            f"'{path}' is damaged, or older than PyTorch 1.6; such files are not read. Load it "
            "where you trust it, and save it again."
        )
    copy = io.BytesIO()
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(copy, "w") as target:
        members = source.infolist()
        if sum(member.file_size for member in members) > MAX_BYTES:
            raise ArtifactError(f"'{path}' unpacks to more than {MAX_BYTES} bytes; it is not read.")
        for member in members:
            program = member.filename.endswith(".pkl")
            if member.compress_type != zipfile.ZIP_STORED:
                raise ArtifactError(f"'{path}' is compressed, as torch.save never writes it.")
            if program and member.file_size > MAX_PROGRAM_BYTES:
                raise ArtifactError(
                    f"'{path}': its values beside the tensors take {member.file_size} bytes, more "
                    f"than the {MAX_PROGRAM_BYTES} that are read."
                )
            target.writestr(member.filename, source.read(member))
    copy.seek(0)
    return copy


def _network(path: Path, definition: _Definition, state: Any) -> RouterNetwork:
    if not isinstance(state, Mapping) or not all(map(_is_plain_tensor, state.values())):
        raise ArtifactError(f"'{path}': model_state_dict must hold finite dense tensors only.")
    if sum(tensor.nbytes for tensor in state.values()) > MAX_BYTES:  # they may share their memory
        raise ArtifactError(f"'{path}': its tensors take more than {MAX_BYTES} bytes.")
    # On the meta device nothing is allocated, so a false width in the file cannot fill the memory.
    with torch.device("meta"):
        network = RouterNetwork(
            definition.input_dim, definition.output_dim, hidden_dims=definition.hidden_dims
        )
    try:
        network.load_state_dict(dict(state), assign=True)
    except RuntimeError as error:
        raise ArtifactError(
            f"'{path}': the weights do not fit the network that its config defines: "
            f"{' '.join(str(error).split())}"
        ) from error
    return network.eval()


def _folded(path: Path, network: RouterNetwork) -> MLPHead:
    """Fold the network; a negative variance, or weights too large for float32, are refused."""
    with np.errstate(all="ignore"):
        head = fold(network)
    tensors = safetensors.numpy.load(head.to_files("head")["head.safetensors"])
    if not all(np.isfinite(tensor).all() for tensor in tensors.values()):
        raise ArtifactError(
            f"'{path}': its BatchNorm statistics and weights do not give finite numbers. It is "
            "damaged, or its training diverged."
        )
    return head


def _is_plain_tensor(value: Any) -> bool:
    return (
        isinstance(value, torch.Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and not value.is_nested
        and not value.is_quantized
        and not value.is_complex()
        and value.is_contiguous()  # not one number repeated by strides of 0
        and bool(torch.isfinite(value).all())
    )


def write_checkpoint(
    head: MLPHead, model_ids: Sequence[str], *, hyperparameters: Mapping[str, Json]
) -> bytes:
    """Return ``nn_router.pth`` for a head with a single network.

    Folding cannot be undone, but it need not be: each BatchNorm becomes the identity (weight 1,
    bias 0, mean 0 and a variance that makes ``variance + eps`` one) behind the folded Linear layer.

    Parameters
    ----------
    head : MLPHead
        Predicts what the file will predict.
    model_ids : sequence of str
        In column order.
    hyperparameters : mapping
        Plain values, kept in ``config`` beside the widths.

    Raises
    ------
    ConfigError
        If the head is an ensemble: the published format holds one network.
    """
    description = head.describe()
    if description["members"] != 1:
        raise ConfigError(
            f"The head is an ensemble of {description['members']} networks, and nn_router.pth "
            "holds one. Train with 'ensemble: 1', or export nothing."
        )
    hidden = [int(width) for width in description["hidden_dims"]]
    tensors = safetensors.numpy.load(head.to_files("head")["head.safetensors"])
    widths = [head.n_features, *hidden, head.n_models]
    state: dict[str, torch.Tensor] = {}
    for index, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
        weight = tensors[f"layer-{index}.weight"].reshape(inputs, outputs)
        linear, norm = f"network.{4 * index}", f"network.{4 * index + 1}"
        state[f"{linear}.weight"] = torch.tensor(weight.T.copy())
        state[f"{linear}.bias"] = torch.tensor(tensors[f"layer-{index}.bias"].reshape(outputs))
        if index < len(hidden):
            state |= {f"{norm}.{name}": value for name, value in _identity_norm(outputs).items()}
    settings = plain_json(dict(hyperparameters), source="hyperparameters")
    content = {
        "model_state_dict": state,
        "config": {"dropout": 0.0, **settings, "hidden_dims": hidden},
        "model_names": list(model_ids),
        "input_dim": head.n_features,
        "output_dim": head.n_models,
    }
    stream = io.BytesIO()
    torch.save(content, stream)
    return stream.getvalue()


def _identity_norm(width: int) -> dict[str, torch.Tensor]:
    return {
        "weight": torch.ones(width),
        "bias": torch.zeros(width),
        "running_mean": torch.zeros(width),
        "running_var": torch.full((width,), 1.0 - nn.BatchNorm1d(1).eps),
        "num_batches_tracked": torch.tensor(0),
    }
