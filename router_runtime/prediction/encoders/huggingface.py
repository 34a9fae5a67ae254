"""Models of transformers: CLIP, SigLIP and SigLIP 2 for text and pictures, DINOv2 for pictures.

Loaded from a local folder or the snapshot of a hub id. Weights are read from safetensors only, and
code that comes with a model is never run.

A picture's DINOv2 vector is the class token of the last layer after its norm, which is what the
published linear evaluations of the model use. Pictures are prepared by the model's own processor in
its Pillow form: the torchvision form gives slightly different pixels, and which one transformers
picks would depend on what is installed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import PIL.Image
import torch

from router_runtime.errors import EncoderError
from router_runtime.images import decode
from router_runtime.prediction.encoders.base import (
    absent_half,
    encode_distinct,
    files_digest,
    fingerprint_of,
)
from router_runtime.prediction.encoders.specs import EncoderRuntime, HuggingFaceSpec
from router_runtime.prediction.encoders.windows import (
    TextWindows,
    Window,
    huggingface_windows,
    padded,
)
from router_runtime.types import F32, Image
from router_runtime.weights import hub
from router_runtime.weights.torch_setup import pick_device, size_of, to_numpy

# isort: split
# After torch_setup, which makes torchvision importable.
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

_CLASS_TOKEN = ("dinov2", "dinov2_with_registers")


class HuggingFaceEncoder:
    """An ``Encoder`` on a transformers model.

    Parameters
    ----------
    spec : HuggingFaceSpec
        Model, revision and window rule.
    runtime : EncoderRuntime
        Device and batch size.

    Raises
    ------
    EncoderError
        The model cannot be had, lacks weights, or is of an unsupported type.
    """

    kind = "huggingface"

    def __init__(self, spec: HuggingFaceSpec, runtime: EncoderRuntime = EncoderRuntime()) -> None:
        folder = hub.model_folder(spec.model, revision=spec.revision)
        self._device = pick_device(runtime.device)
        self._batch_size = runtime.batch_size
        self.model = load_model(folder, name=spec.model).to(self._device)
        self.processor = loaded(AutoImageProcessor, folder, spec.model, backend="pil")
        self._class_token = self.model.config.model_type in _CLASS_TOKEN
        if not self._class_token and not (
            hasattr(self.model, "get_text_features") and hasattr(self.model, "get_image_features")
        ):
            raise EncoderError(
                f"'{spec.model}' is a {self.model.config.model_type} model. Supported are models "
                f"with a text and a picture tower (CLIP, SigLIP) and {', '.join(_CLASS_TOKEN)}; "
                "for text alone use the encoder kind 'sentence'."
            )
        self.windows = None if self._class_token else self._text_windows(folder, spec)
        self.text_dim = 0
        if self.windows:
            self.text_dim = self.encode_windows(self.windows.cut("a")).shape[1]
        grey = PIL.Image.new("RGB", (64, 64), (128, 128, 128))
        self.image_dim = self.encode_pixels(self._prepared([grey])).shape[1]
        self.frozen = size_of(self.model.parameters())
        self.fingerprint = fingerprint_of(
            {
                "kind": self.kind,
                "files": folder_digest(folder),
                "windows": self.windows.describe() if self.windows else None,
                "picture": "class token" if self._class_token else "image features",
                "dims": [self.text_dim, self.image_dim],
            }
        )

    def encode_texts(self, texts: Sequence[str]) -> F32:
        if self.windows is None:
            return absent_half(len(texts))
        return self.windows.encode(
            texts, self.encode_windows, dim=self.text_dim, batch_size=self._batch_size
        )

    def encode_images(self, images: Sequence[Image]) -> F32:
        return encode_distinct(
            images,
            lambda batch: self.encode_pixels(self.pixels(batch)),
            dim=self.image_dim,
            batch_size=self._batch_size,
            key=lambda image: image.sha256,
        )

    def _text_windows(self, folder: Path, spec: HuggingFaceSpec) -> TextWindows:
        self.tokenizer = loaded(AutoTokenizer, folder, spec.model)
        return huggingface_windows(
            self.tokenizer,
            length=self.model.config.text_config.max_position_embeddings,
            max_windows=spec.max_windows,
        )

    @torch.inference_mode()
    def encode_windows(self, windows: Sequence[Window]) -> F32:
        """Return float32 (n_windows, text_dim).

        All are padded to the model's full length, as SigLIP was trained.
        """
        ids, mask = padded(
            windows,
            pad_id=self.tokenizer.pad_token_id or 0,
            length=self.model.config.text_config.max_position_embeddings,
            side=self.tokenizer.padding_side,
        )
        inputs = {"input_ids": torch.from_numpy(ids).to(self._device)}
        if "attention_mask" in self.tokenizer.model_input_names:
            inputs["attention_mask"] = torch.from_numpy(mask).to(self._device)
        return to_numpy(_pooled(self.model.get_text_features(**inputs)))

    def pixels(self, images: Sequence[Image]) -> torch.Tensor:
        """Return what the model sees of each picture: float32 (n_images, 3, height, width)."""
        return self._prepared([decode(image) for image in images])

    def _prepared(self, pictures: Sequence[PIL.Image.Image]) -> torch.Tensor:
        pixels: torch.Tensor = self.processor(images=list(pictures), return_tensors="pt")[
            "pixel_values"
        ]
        return pixels

    @torch.inference_mode()
    def encode_pixels(self, pixels: torch.Tensor) -> F32:
        """Return float32 (n_pictures, image_dim) of prepared pictures."""
        pixels = pixels.to(self._device)
        if self._class_token:
            return to_numpy(self.model(pixel_values=pixels).last_hidden_state[:, 0])
        return to_numpy(_pooled(self.model.get_image_features(pixel_values=pixels)))


def load_model(
    folder: Path,
    *,
    name: str,
    unused: tuple[str, ...] = (),
    auto: Any = AutoModel,
    dtype: torch.dtype | Literal["auto"] = torch.float32,
) -> Any:
    """Return the folder's model in evaluation mode, with every weight from the files.

    Parameters
    ----------
    folder : Path
        Where the model lies.
    name : str
        What error messages call it.
    unused : tuple of str
        Weights whose names begin so may be missing: the caller does not use what they make.
    auto : class
        Of transformers; which kind of model.
    dtype : torch.dtype or "auto"
        ``auto`` is what the files hold.

    Raises
    ------
    EncoderError
        There are no safetensors, they lack weights (transformers would fill these with random
        numbers), or the model needs code that the folder brings.
    """
    model, report = loaded(
        auto,
        folder,
        name,
        use_safetensors=True,
        dtype=dtype,
        output_loading_info=True,
    )
    if missing := sorted(key for key in report["missing_keys"] if not key.startswith(unused)):
        raise EncoderError(
            f"the weights of '{name}' lack {len(missing)} tensors of a "
            f"{model.config.model_type} model, such as '{missing[0]}'; they would be random. "
            "Use a complete checkpoint."
        )
    return model.eval().requires_grad_(False)


def folder_digest(folder: Path) -> str:
    """Return the digest of everything in a model's folder that can change its output."""
    files = {path for pattern in hub.MODEL_FILES for path in folder.rglob(pattern)}
    used = [p for p in files if p.relative_to(folder).parts[0] not in hub.OTHER_RUNTIMES]
    return files_digest(used, root=folder)


def loaded(auto: Any, folder: Path, name: str, **options: Any) -> Any:
    """Return what ``auto``, a class of transformers, makes of the folder.

    Raises
    ------
    EncoderError
        Whatever transformers raised; ``name`` is what the message calls the model.
    """
    try:
        return auto.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, **options
        )
    except Exception as error:  # transformers raises whatever went wrong below it
        reason = next(iter(str(error).splitlines()), type(error).__name__).rstrip(".:")
        raise EncoderError(
            f"'{name}' cannot be loaded from '{folder}': {reason}. It must be a complete model "
            "that transformers knows, with safetensors weights and without code of its own."
        ) from error


def _pooled(output: Any) -> torch.Tensor:
    """Return the projected vectors: transformers 4 returns them bare, 5 within an output object."""
    vectors: torch.Tensor = output if isinstance(output, torch.Tensor) else output.pooler_output
    return vectors
