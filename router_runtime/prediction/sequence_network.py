"""The transformer of a ``sequence`` predictor: built from its configuration, never from code.

``make_network`` is also what training fine-tunes, so that both read a text alike.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from tokenizers import Tokenizer

from router_runtime.config import EncoderRuntime
from router_runtime.errors import ArtifactIntegrityError
from router_runtime.prediction.heads.base import RESTORE
from router_runtime.prediction.sequence import SequenceDescription
from router_runtime.types import F64, Json
from router_runtime.weights.torch_setup import pick_device

# isort: split
# After torch_setup, which makes torchvision importable.
from transformers import AutoConfig, AutoModelForSequenceClassification


class SequenceNetwork:
    """A network and its tokenizer.

    Parameters
    ----------
    model : torch.nn.Module
        A transformers model for sequence classification; put into evaluation mode.
    tokenizer : Reader
    device : torch.device
    batch_size : int
        Texts per pass; each batch is as long as its longest text.
    """

    def __init__(
        self, model: torch.nn.Module, tokenizer: Reader, *, device: torch.device, batch_size: int
    ) -> None:
        self.model = model.to(device).eval()
        self._tokenizer = tokenizer
        self._device = device
        self._batch_size = batch_size

    def logits(self, texts: Sequence[str]) -> F64:
        """Return float64 (n_texts, n_labels)."""
        found = []
        with torch.inference_mode():
            for start in range(0, len(texts), self._batch_size):
                batch = self._tokenizer.read(texts[start : start + self._batch_size])
                out = self.model(**{name: t.to(self._device) for name, t in batch.items()})
                found.append(out.logits.double().cpu().numpy())
        return np.concatenate(found)


class Reader:
    """Texts to padded batches of token ids.

    Parameters
    ----------
    tokenizer : bytes
        JSON of a ``tokenizers.Tokenizer``.
    max_tokens : int
        Longer texts lose their start: the question stands last in what is routed on.
    pad_id : int

    Raises
    ------
    ValueError
        The JSON is no tokenizer's.
    """

    def __init__(self, tokenizer: bytes, *, max_tokens: int, pad_id: int) -> None:
        try:
            self._tokenizer = Tokenizer.from_str(tokenizer.decode("utf-8"))
        except Exception as error:  # the library raises plain Exception
            raise ValueError(f"the tokenizer cannot be read ({error})") from error
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(max_tokens, direction="left")
        self._pad_id = pad_id

    @property
    def n_tokens(self) -> int:
        """Size of the vocabulary, with all that was added to it."""
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))

    def read(self, texts: Sequence[str]) -> dict[str, torch.Tensor]:
        """Return ``input_ids`` and ``attention_mask``, int64 (n_texts, longest text)."""
        rows = [encoding.ids for encoding in self._tokenizer.encode_batch(list(texts))]
        longest = max(1, *map(len, rows))
        ids = torch.full((len(rows), longest), self._pad_id, dtype=torch.long)
        mask = torch.zeros((len(rows), longest), dtype=torch.long)
        for at, row in enumerate(rows):
            ids[at, : len(row)] = torch.tensor(row, dtype=torch.long)
            mask[at, : len(row)] = 1
        return {"input_ids": ids, "attention_mask": mask}


def make_network(config: Mapping[str, Json]) -> torch.nn.Module:
    """Return a network with random weights.

    Raises
    ------
    ValueError
        transformers knows no such architecture, or it needs code of its own.
    """
    content = dict(config)
    if "auto_map" in content:
        raise ValueError("the network's configuration asks for code from elsewhere (auto_map)")
    kind = content.pop("model_type", None)
    try:
        settled = AutoConfig.for_model(kind, **content)
        auto: Any = AutoModelForSequenceClassification
        model: torch.nn.Module = auto.from_config(settled)
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        raise ValueError(f"no classifier can be made of the type {kind!r:.60}: {error}") from error
    return model


def write_weights(model: torch.nn.Module) -> bytes:
    """Return all weights as safetensors; tensors that share memory are written each by itself."""
    state = model.state_dict()
    return save_tensors({name: state[name].detach().cpu().contiguous().clone() for name in state})


def read_weights(model: torch.nn.Module, weights: bytes) -> None:
    """Fill a network with weights, all of them and no others.

    Raises
    ------
    ValueError
        They are of another network, or not finite.
    """
    try:
        state = load_tensors(weights)
        model.load_state_dict(state, strict=True)
    except (SafetensorError, RuntimeError, KeyError) as error:
        first = " ".join(str(error).split())[:200]
        raise ValueError(f"the weights are not those of this network ({first})") from error
    for name, tensor in state.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"weight '{name}' is not finite")


def pad_id_of(config: Mapping[str, Json]) -> int:
    """Return the token that fills short texts; what it is does not matter behind the mask."""
    pad = config.get("pad_token_id")
    return pad if isinstance(pad, int) else 0


def load_network(
    description: SequenceDescription, weights: bytes, tokenizer: bytes, *, runtime: EncoderRuntime
) -> SequenceNetwork:
    """Return the network of an artifact.

    Raises
    ------
    ArtifactIntegrityError
        Configuration, weights and tokenizer do not fit each other.
    EncoderError
        There is no such device.
    """
    device = pick_device(runtime.device)
    try:
        model: Any = make_network(description.config)
        n_labels = int(model.config.num_labels)
        if n_labels != len(description.labels):
            raise ValueError(f"it has {n_labels} outputs for {len(description.labels)} labels")
        read_weights(model, weights)
        reader = Reader(
            tokenizer, max_tokens=description.max_tokens, pad_id=pad_id_of(description.config)
        )
        vocabulary = int(model.get_input_embeddings().weight.shape[0])
        if reader.n_tokens > vocabulary:
            raise ValueError(
                f"its tokenizer knows {reader.n_tokens} tokens and the network {vocabulary}"
            )
    except (ValueError, json.JSONDecodeError) as error:
        raise ArtifactIntegrityError(
            f"The sequence classifier '{description.base}' cannot be built: {error}. {RESTORE}"
        ) from error
    return SequenceNetwork(model, reader, device=device, batch_size=runtime.batch_size)
