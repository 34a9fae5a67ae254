"""CLIP models through open_clip: text and pictures in one space.

``model`` names an architecture of open_clip, and ``pretrained`` its weights: a tag that open_clip
knows, or the path of a checkpoint. ``model: hf-hub:ORG/NAME`` takes both from a hub repository and
``model: local-dir:PATH`` from a folder; ``pretrained`` then counts for nothing, as in open_clip.

Two things that open_clip leaves to its user are done here. OpenAI's weights were trained with the
QuickGELU activation, and open_clip only warns when the architecture's own activation differs from
the tag's: the tag's is used. And a checkpoint file does not say how pictures are normalised: where
all published weights of its architecture agree, theirs is used, and open_clip's default otherwise.
"""

from __future__ import annotations

import difflib
import pickle
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from router_runtime.errors import EncoderError
from router_runtime.images import decode
from router_runtime.prediction.encoders.base import encode_distinct, fingerprint_of
from router_runtime.prediction.encoders.specs import ClipSpec, EncoderRuntime
from router_runtime.prediction.encoders.windows import (
    TextWindows,
    Window,
    huggingface_windows,
    padded,
)
from router_runtime.types import F32, Image, Json
from router_runtime.weights import hub
from router_runtime.weights.torch_setup import pick_device, size_of, to_numpy, weights_digest

# isort: split
# After torch_setup, which makes torchvision importable.
import open_clip
from open_clip.pretrained import get_pretrained_cfg, list_pretrained_tags_by_model
from open_clip.tokenizer import DEFAULT_CONTEXT_LENGTH, HFTokenizer, SimpleTokenizer, default_bpe

from router_runtime.prediction.encoders.clip_text import causal_text_tower, encode_cut

if TYPE_CHECKING:  # the tokenizer's own module needs packages of another extra
    from router_runtime.prediction.encoders.clip_tokenizer import Cleaning

_CONFIG = "open_clip_config.json"
_SAFE, _PICKLED = "open_clip_model.safetensors", "open_clip_pytorch_model.bin"
_PREPROCESSING = ("mean", "std", "interpolation", "resize_mode")
_PROBE = "a photo of 3 CATS, naïve \N{GRINNING FACE}"
_WORDS_CACHED = 1 << 18


class ClipEncoder:
    """An ``Encoder`` on an open_clip model.

    Parameters
    ----------
    spec : ClipSpec
        Architecture, weights and window rule.
    runtime : EncoderRuntime
        Device and batch size.

    Raises
    ------
    EncoderError
        The architecture or the tag is unknown, the weights cannot be had or do not fit. There is
        never a model with random weights.
    """

    kind = "clip"

    def __init__(self, spec: ClipSpec, runtime: EncoderRuntime = EncoderRuntime()) -> None:
        self._device = pick_device(runtime.device)
        self._batch_size = runtime.batch_size
        name, options = _sources(spec)
        self.model, self._preprocess = _load(name, options, self._device)
        self._tokenizer = _tokenizer(name)
        self._text_config = open_clip.get_model_config(name)["text_cfg"]
        causal = isinstance(self._tokenizer, SimpleTokenizer)
        self._cut_tower = causal_text_tower(self.model) if causal else None
        self.windows = _windows(self._tokenizer, spec.max_windows)
        self.text_dim = self.encode_windows(self.windows.cut(_PROBE)).shape[1]
        size = self.model.visual.preprocess_cfg["size"]
        height, width = (size, size) if isinstance(size, int) else size
        self.image_dim = self._encode_pixels([torch.zeros(3, height, width)]).shape[1]
        self.frozen = size_of(self.model.parameters())
        self.fingerprint = fingerprint_of(
            {
                "kind": self.kind,
                "architecture": open_clip.get_model_config(name),
                "quick_gelu": bool(options.get("force_quick_gelu")),
                "weights": weights_digest(self.model),
                "preprocessing": self.preprocessing,
                "tokenizer": [
                    type(self._tokenizer).__name__,
                    *map(list, self.windows.cut(_PROBE)),
                ],
                "windows": self.windows.describe(),
                "dims": [self.text_dim, self.image_dim],
            }
        )

    def encode_texts(self, texts: Sequence[str]) -> F32:
        return self.windows.encode(
            texts, self.encode_windows, dim=self.text_dim, batch_size=self._batch_size
        )

    def encode_images(self, images: Sequence[Image]) -> F32:
        return encode_distinct(
            images,
            lambda batch: self._encode_pixels(self.pixels(batch)),
            dim=self.image_dim,
            batch_size=self._batch_size,
            key=lambda image: image.sha256,
        )

    @torch.inference_mode()
    def encode_windows(self, windows: Sequence[Window]) -> F32:
        """Return float32 (n_windows, text_dim), each window with its special tokens."""
        if self._cut_tower is not None:
            ids, _ = padded(windows, pad_id=0)
            return to_numpy(encode_cut(self._cut_tower, torch.from_numpy(ids).to(self._device)))
        ids, _ = padded(windows, length=self.windows.length, **_padding(self._tokenizer))
        if getattr(self._tokenizer, "strip_sep_token", False):
            ids[ids == self._tokenizer.tokenizer.sep_token_id] = 0
        tokens = torch.from_numpy(ids).to(self._device)
        return to_numpy(self.model.encode_text(tokens, normalize=False))

    def pixels(self, images: Sequence[Image]) -> list[torch.Tensor]:
        """Return what the model sees of each picture: float32 (3, height, width)."""
        return [self._preprocess(decode(image)) for image in images]

    @property
    def preprocessing(self) -> dict[str, Json]:
        """How pictures are prepared, in open_clip's words."""
        return _plain(self.model.visual.preprocess_cfg)

    def byte_pairs(self) -> tuple[Path, Cleaning]:
        """Return the file of the byte-pair tokenizer's merges, and what it does to texts first.

        Raises
        ------
        EncoderError
            The tokenizer is another one.
        """
        if not isinstance(self._tokenizer, SimpleTokenizer):
            raise EncoderError(
                f"this model's tokenizer is a {type(self._tokenizer).__name__} and not CLIP's own, "
                "the one that is exported. Serve it with 'engine: torch'."
            )
        options = self._text_config.get("tokenizer_kwargs", {})
        return Path(default_bpe()), options.get("clean", "lower")

    @torch.inference_mode()
    def _encode_pixels(self, pixels: Sequence[torch.Tensor]) -> F32:
        batch = torch.stack(list(pixels)).to(self._device)
        return to_numpy(self.model.encode_image(batch, normalize=False))


def _sources(spec: ClipSpec) -> tuple[str, dict[str, Any]]:
    """Return open_clip's model name, and its options with every weight file on this machine."""
    if spec.model.startswith("hf-hub:"):
        return f"local-dir:{_hub_model(spec.model.removeprefix('hf-hub:'))}", {}
    if spec.model.startswith("local-dir:"):
        _check_folder(Path(spec.model.removeprefix("local-dir:")))
        return spec.model, {}
    name = spec.model.replace("/", "-")
    if name not in open_clip.list_models():
        raise EncoderError(
            f"open_clip has no architecture '{spec.model}'{_near(name, open_clip.list_models())}. "
            "A hub repository is written 'hf-hub:ORG/NAME', a folder 'local-dir:PATH'."
        )
    tag = get_pretrained_cfg(name, spec.pretrained) if spec.pretrained else {}
    if tag:
        checkpoint = _tag_checkpoint(name, spec.pretrained, tag["hf_hub"])
    else:
        checkpoint = _file_checkpoint(name, spec.pretrained)
        tag = {"quick_gelu": False} | _agreed_preprocessing(name)
    _check_weights(checkpoint)
    return name, {
        "pretrained": str(checkpoint),
        "force_quick_gelu": bool(tag.get("quick_gelu")),
        **{f"image_{key}": tag[key] for key in _PREPROCESSING if key in tag},
    }


def _tag_checkpoint(name: str, tag: str, location: str) -> Path:
    """Return the checkpoint of a tag, as safetensors where the repository has it."""
    repository, _, file = location.rpartition("/")
    safe = str(Path(file).with_suffix(".safetensors")) if file else _SAFE
    try:
        for candidate in dict.fromkeys((safe, file or _PICKLED)):
            path = hub.snapshot(repository, patterns=[candidate]) / candidate
            if path.is_file():
                return path
    except EncoderError as error:
        raise EncoderError(
            f"weights '{tag}' of '{name}' cannot be had: {error} For this encoder that is "
            "'pretrained: /path/to/checkpoint.safetensors'."
        ) from error
    raise EncoderError(
        f"weights '{tag}' of '{name}' cannot be had: hub repository '{repository}' holds neither "
        f"'{safe}' nor '{file or _PICKLED}'. Give 'pretrained: /path/to/checkpoint.safetensors'."
    )


def _file_checkpoint(name: str, pretrained: str) -> Path:
    path = Path(pretrained).expanduser()
    if pretrained and path.is_file():
        return path
    tags = list_pretrained_tags_by_model(name)
    if not pretrained:
        problem = "without 'pretrained' the model would have random weights"
    elif path.suffix or path.parent != Path():
        problem = f"checkpoint file '{pretrained}' does not exist"
    else:
        problem = f"'{name}' has no weights '{pretrained}'{_near(pretrained, tags)}"
    known = f"one of the tags {', '.join(tags)}" if tags else "a tag (this architecture has none)"
    raise EncoderError(
        f"{problem}. Set 'pretrained' to {known}, or to the path of a checkpoint: "
        "'pretrained: /path/to/checkpoint.safetensors'."
    )


def _agreed_preprocessing(name: str) -> dict[str, Any]:
    """Return the preprocessing that all published weights of ``name`` share, else nothing."""
    configs = [get_pretrained_cfg(name, tag) for tag in list_pretrained_tags_by_model(name)]
    shared = [{key: config.get(key) for key in _PREPROCESSING} for config in configs]
    return shared[0] if shared and all(one == shared[0] for one in shared) else {}


def _hub_model(repository: str) -> Path:
    small = ("*.json", "*.txt", "*.model")
    folder = hub.snapshot(repository, patterns=[*small, _SAFE])
    if not (folder / _SAFE).is_file():
        folder = hub.snapshot(repository, patterns=[*small, _PICKLED])
    _check_folder(folder)
    return folder


def _check_folder(folder: Path) -> None:
    """Raise unless the folder has a configuration and weights that open_clip may read."""
    if not (folder / _CONFIG).is_file():
        raise EncoderError(
            f"'{folder}' holds no '{_CONFIG}', so it is no open_clip model. For a transformers "
            "model use the encoder kind 'huggingface'."
        )
    weights = [path for path in folder.iterdir() if path.suffix in (".safetensors", ".bin", ".pth")]
    if not weights:
        raise EncoderError(
            f"'{folder}' holds a configuration but no weights. Copy '{_SAFE}' into it."
        )
    for path in weights:
        _check_weights(path)


def _check_weights(path: Path) -> None:
    """Raise unless the file can be read without running code that it contains.

    open_clip reads pickled checkpoints with ``weights_only=True`` but on some failures tries again
    without naming it; a file that does not pass here is never handed on.
    """
    if path.suffix == ".safetensors":
        return
    if path.suffix not in (".pt", ".pth", ".bin"):
        raise EncoderError(
            f"checkpoint '{path}' ends in neither .safetensors, .pt, .pth nor .bin. Convert it to "
            "safetensors."
        )
    try:
        torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, ValueError, TypeError, EOFError) as error:
        raise EncoderError(
            f"checkpoint '{path}' is refused: it is damaged, a TorchScript archive, or holds more "
            "than tensors and plain values. Save its state dict as safetensors and give that file."
        ) from error


def _load(name: str, options: Mapping[str, Any], device: torch.device) -> tuple[Any, Any]:
    try:
        model, preprocess = open_clip.create_model_from_pretrained(
            name, precision="fp32", device=device, weights_only=True, **options
        )
    except Exception as error:  # open_clip raises whatever went wrong below it
        raise EncoderError(
            f"open_clip cannot load '{options.get('pretrained', name)}' as '{name}': "
            f"{_first_line(error)}. Check that checkpoint and architecture belong together "
            "(weights trained by OpenAI need the architecture's '-quickgelu' form)."
        ) from error
    return model.eval().requires_grad_(False), preprocess


class _BoundedCache(dict[str, str]):
    """Takes entries until it is full: open_clip's tokenizer remembers every word it ever saw."""

    def __setitem__(self, key: str, value: str) -> None:
        if len(self) < _WORDS_CACHED:
            super().__setitem__(key, value)


def _tokenizer(name: str) -> Any:
    """Return open_clip's tokenizer, one of transformers being read from a folder alone."""
    text = open_clip.get_model_config(name)["text_cfg"]
    repository = text.get("hf_tokenizer_name")
    if not repository:
        tokenizer = open_clip.get_tokenizer(name)
        tokenizer.cache = _BoundedCache(tokenizer.cache)
        return tokenizer
    folder = name.removeprefix("local-dir:")
    if folder == name:
        folder = str(hub.snapshot(repository, patterns=hub.MODEL_FILES[1:]))
    try:
        return HFTokenizer(
            folder,
            context_length=text.get("context_length", DEFAULT_CONTEXT_LENGTH),
            tokenizer_mode=text.get("tokenizer_mode"),
            **text.get("tokenizer_kwargs", {}),
        )
    except Exception as error:  # transformers raises whatever went wrong below it
        raise EncoderError(
            f"the tokenizer of '{name}' cannot be loaded from '{folder}': {_first_line(error)}. "
            "Copy the tokenizer's files into that folder."
        ) from error


def _windows(tokenizer: Any, max_windows: int) -> TextWindows:
    length = tokenizer.context_length
    if isinstance(tokenizer, SimpleTokenizer):
        return TextWindows(
            tokenizer.encode,
            prefix=(tokenizer.sot_token_id,),
            suffix=(tokenizer.eot_token_id,),
            length=length,
            max_windows=max_windows,
        )
    if isinstance(tokenizer, HFTokenizer) and not tokenizer.tokenizer_mode:
        return huggingface_windows(
            tokenizer.tokenizer, length=length, max_windows=max_windows, clean=tokenizer.clean_fn
        )
    raise EncoderError(
        f"open_clip's {type(tokenizer).__name__} is not supported in this mode. Use another model."
    )


def _padding(tokenizer: Any) -> dict[str, Any]:
    if isinstance(tokenizer, HFTokenizer):
        inner = tokenizer.tokenizer
        return {"pad_id": inner.pad_token_id or 0, "side": inner.padding_side}
    return {"pad_id": 0}


def _near(name: str, known: Sequence[str]) -> str:
    found = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f" (near: {', '.join(found)})" if found else ""


def _plain(config: Mapping[str, Json]) -> dict[str, Json]:
    return {key: list(v) if isinstance(v, tuple) else v for key, v in config.items()}


def _first_line(error: Exception) -> str:
    lines: Iterator[str] = iter(str(error).splitlines())
    return next(lines, type(error).__name__).rstrip(".:")
