"""What is fine-tuned: a pretrained transformer with a new classifier on top, and its tokenizer."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from router_runtime.errors import ConfigError
from router_runtime.prediction.sequence_network import Reader, pad_id_of
from router_runtime.types import Json
from router_runtime.weights import hub

# isort: split
# After the runtime's module, which makes torchvision importable.
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging as _logging

logging: Any = _logging  # untyped

_FAILED = (OSError, ValueError, KeyError, TypeError, RuntimeError, AttributeError, SafetensorError)


@dataclass(frozen=True, eq=False)
class Base:
    """A network to fine-tune.

    Parameters
    ----------
    name : str
        Without its folder's path.
    config : mapping
        As transformers writes it.
    model : torch.nn.Module
        With a fresh classifier of as many outputs as there are labels.
    tokenizer : bytes
        JSON of the ``tokenizers`` library.
    """

    name: str
    config: dict[str, Json]
    model: torch.nn.Module
    tokenizer: bytes


def load_base(name: str, *, labels: Sequence[str], max_tokens: int, seed: int) -> Base:
    """Return a pretrained transformer with a classifier for ``labels``.

    Parameters
    ----------
    name : str
        Local folder or hub id.
    labels : sequence of str
    max_tokens : int
        As long a text as it is going to read.
    seed : int
        Of the classifier's weights.

    Raises
    ------
    EncoderError
        It is not on this machine and cannot be downloaded.
    ConfigError
        It is no such model: weights only as a pickle, of another network or too few, a tokenizer
        that knows more tokens, texts that are too short, code that would have to be run.
    """
    folder = hub.model_folder(name)
    short = Path(name).name if Path(name).is_dir() else name
    _check_files(folder, short)
    with torch.random.fork_rng(devices=[]), _quiet():
        torch.manual_seed(seed)
        config, model, tokenizer = _load(folder, short, labels)
    base = Base(short, config, model, tokenizer)
    _check_reads(base, max_tokens)
    return base


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers from telling that the classifier is new, which is the point."""
    level, shown = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()


def _check_files(folder: Path, name: str) -> None:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"Base model '{name}' has no readable config.json ({type(error).__name__}). Give the "
            "folder or hub id of a transformers model."
        ) from error
    if "auto_map" in config:
        raise ConfigError(
            f"Base model '{name}' asks for code of its own (auto_map), which is never run. Take "
            "one whose architecture transformers knows."
        )
    if not any(folder.glob("*.safetensors")):
        raise ConfigError(
            f"Base model '{name}' has no weights as safetensors. Pickled weights are not read; "
            "convert them first."
        )


def _load(folder: Path, name: str, labels: Sequence[str]) -> tuple[dict[str, Json], Any, bytes]:
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    numbered = dict(enumerate(labels))
    try:
        settled = AutoConfig.from_pretrained(
            folder,
            num_labels=len(labels),
            id2label=numbered,
            label2id={label: at for at, label in numbered.items()},
            **options,
        )
        model, loading = AutoModelForSequenceClassification.from_pretrained(
            folder,
            config=settled,
            use_safetensors=True,
            output_loading_info=True,
            dtype=torch.float32,
            **options,
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, use_fast=True, **options)
        text = tokenizer.backend_tokenizer.to_str()
    except _FAILED as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)[:200].rstrip(".:")
        raise ConfigError(
            f"Base model '{name}' cannot be fine-tuned as a classifier: {reason}. Take a "
            "transformers model with a sequence classification class and a fast tokenizer."
        ) from error
    inner = f"{model.base_model_prefix}."
    if lacking := sorted(key for key in loading["missing_keys"] if key.startswith(inner)):
        raise ConfigError(
            f"The weights of base model '{name}' are of another network: {len(lacking)} tensors of "
            f"its '{settled.model_type}' are missing, '{lacking[0]}' the first. Give a whole model."
        )
    content = json.loads(settled.to_json_string(use_diff=False))
    # Names of the machine and the version it was read by say nothing of the network.
    for key in ("_name_or_path", "transformers_version", "auto_map"):
        content.pop(key, None)
    return content, model, text.encode()


def _check_reads(base: Base, max_tokens: int) -> None:
    reader = Reader(base.tokenizer, max_tokens=max_tokens, pad_id=pad_id_of(base.config))
    vocabulary = int(base.model.get_input_embeddings().weight.shape[0])  # type: ignore[operator]
    if reader.n_tokens > vocabulary:
        raise ConfigError(
            f"The tokenizer of base model '{base.name}' knows {reader.n_tokens} tokens and its "
            f"network {vocabulary}. They belong to different models."
        )
    try:
        with torch.inference_mode():
            base.model.eval()(**reader.read(["a " * max_tokens]))
    except (RuntimeError, IndexError, ValueError) as error:
        raise ConfigError(
            f"Base model '{base.name}' cannot read {max_tokens} tokens (its configuration says "
            f"{base.config.get('max_position_embeddings')}). Lower max_tokens."
        ) from error
