"""The encoder that needs no download and no torch: hashed n-grams, statistics, a thumbnail.

Text becomes ``[n-grams of the whole text | n-grams of its end | surface features]``. The n-grams
(words of order 1 and 2, characters of order 3 to 5) are hashed, weighted by a fitted inverse
document frequency and reduced by a fitted projection: latent semantic analysis (Deerwester et al.,
JASIS 1990) without a vocabulary. The end, ``TAIL_CHARS`` characters, is projected a second time on
its own, because prompts that share instructions and examples differ only in the question, which
stands last. A picture becomes ``[statistics | reduced thumbnail]``.

On real routing data this equals a small pretrained sentence encoder, at a fraction of its time.
``router_training.fit_embedded`` fits the state; this module only applies it.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from router_runtime.errors import EncoderError
from router_runtime.prediction.encoders.ngrams import count_ngrams
from router_runtime.prediction.encoders.pixels import PIXEL_NAMES, describe_picture
from router_runtime.prediction.encoders.specs import EmbeddedSpec
from router_runtime.prediction.encoders.surface import SURFACE_NAMES, surface_features
from router_runtime.types import F32, F64, Image, Int, WeightsSize

State: TypeAlias = dict[str, npt.NDArray[Any]]

ALGORITHM = 2  # raise it whenever the same spec and state would give other vectors
TAIL_CHARS = 500
_CLIP = 4.0  # standard deviations
_HALF_ROOT = np.sqrt(0.5)


def clip_text(text: str, *, max_chars: int) -> str:
    """Shorten a text to ``max_chars``: its first quarter's worth and its last three quarters'.

    The start tells the kind of task, the end asks the question; the middle is left out.
    """
    if len(text) <= max_chars:
        return text
    head = max_chars // 4
    return text[:head] + text[len(text) - (max_chars - head) :]


def text_views(text: str, *, max_chars: int) -> tuple[str, str]:
    """Return what is hashed: the shortened text, and its last ``TAIL_CHARS`` characters."""
    clipped = clip_text(text, max_chars=max_chars)
    return clipped, clipped[-TAIL_CHARS:]


def weighted_ngrams(buckets: Int, frequencies: F32, *, idf: F32) -> F32:
    """Weigh term frequencies by ``idf``; words and characters each get Euclidean norm 1.

    Without that, characters, ten times as many, would drown the words. Shapes are those of
    ``count_ngrams``; a text without words keeps its characters at norm 1.
    """
    weights: F32 = frequencies * idf[buckets]
    first_character = buckets.searchsorted(len(idf) // 2)
    for part in (weights[:first_character], weights[first_character:]):
        part /= max(_norm(part), np.float32(1e-12))
    return weights


def state_layout(spec: EmbeddedSpec) -> dict[str, tuple[tuple[int, ...], type[np.generic]]]:
    """Return shape and dtype of every array of the state, by name.

    ``*_gain`` is one over the standard deviation of a feature, or 0 where it never varied;
    ``fitted_on`` counts the distinct texts and pictures that the fit saw.
    """
    buckets, pixels = 1 << spec.hash_bits, spec.thumbnail_side**2
    return {
        "idf": ((buckets,), np.float32),
        "projection": ((buckets, spec.text_components), np.float16),
        "surface_mean": ((len(SURFACE_NAMES),), np.float32),
        "surface_gain": ((len(SURFACE_NAMES),), np.float32),
        "pixel_mean": ((len(PIXEL_NAMES),), np.float32),
        "pixel_gain": ((len(PIXEL_NAMES),), np.float32),
        "thumbnail_mean": ((pixels,), np.float32),
        "thumbnail_projection": ((pixels, spec.thumbnail_components), np.float16),
        "fitted_on": ((2,), np.int64),
    }


class EmbeddedEncoder:
    """Apply a fitted state; see the module for what the vectors mean.

    Each vector depends on its own text or picture alone, to the bit: sums run in a fixed order and
    not through BLAS, whose order depends on the number of threads. Serving therefore sees what
    training saw.

    The state holds no text and no picture. Hashed buckets keep no vocabulary, though someone who
    guesses a phrase can see whether its buckets were frequent. The thumbnail's mean and principal
    components show what training pictures have in common (a usual layout, say); where all of them
    are nearly the same picture, that is the picture, at ``thumbnail_side`` pixels.

    The fingerprint covers ``ALGORITHM``, spec and state, not the versions of Pillow and NumPy: a
    JPEG that another decoder reads a shade differently is no reason to refuse an artifact.

    A state that was fitted without pictures has zero gains and components: every picture then
    becomes a zero vector of the same dimension.

    Parameters
    ----------
    spec : EmbeddedSpec
        Dimensions and the truncation rule.
    state : mapping of str to ndarray
        As ``state_layout(spec)`` says.

    Raises
    ------
    EncoderError
        An array is missing, unknown, of another shape or dtype, or not finite.
    """

    kind = "embedded"

    def __init__(self, spec: EmbeddedSpec, state: Mapping[str, npt.NDArray[Any]]) -> None:
        self.spec = spec
        self._state = _checked_state(spec, state)
        self._projection = self._state["projection"].astype(np.float32)
        self._thumbnail_projection = self._state["thumbnail_projection"].astype(np.float32)
        self._fingerprint = _fingerprint(spec, self._state)

    @property
    def text_dim(self) -> int:
        return 2 * self.spec.text_components + len(SURFACE_NAMES)

    @property
    def image_dim(self) -> int:
        return len(PIXEL_NAMES) + self.spec.thumbnail_components

    @property
    def fingerprint(self) -> str:
        return self._fingerprint

    @property
    def frozen(self) -> WeightsSize:
        """Nothing: all of it is fitted."""
        return WeightsSize()

    @property
    def state(self) -> State:
        """The arrays that, with the spec, are this encoder; ready for safetensors."""
        return dict(self._state)

    def encode_texts(self, texts: Sequence[str]) -> F32:
        """Return float32 (n_texts, text_dim).

        The projected n-grams of a text have norm 1 in all (0 when it has none that training
        shared), and so, for an average text, have the surface features.
        """
        vectors = np.zeros((len(texts), self.text_dim), dtype=np.float32)
        for vector, text in zip(vectors, texts, strict=True):
            self._fill_text(vector, text)
        return vectors

    def encode_images(self, images: Sequence[Image]) -> F32:
        """Return float32 (n_images, image_dim); a repeated picture is decoded once.

        Statistics and reduced thumbnail each have a mean square norm of about 1 on the pictures
        seen in training.

        Raises
        ------
        QueryError
            A picture does not decode.
        """
        vectors = np.zeros((len(images), self.image_dim), dtype=np.float32)
        filled: dict[str, F32] = {}
        for vector, image in zip(vectors, images, strict=True):
            if image.sha256 in filled:
                vector[:] = filled[image.sha256]
            else:
                self._fill_image(vector, image)
                filled[image.sha256] = vector
        return vectors

    def _fill_text(self, vector: F32, text: str) -> None:
        k = self.spec.text_components
        whole, tail = text_views(text, max_chars=self.spec.max_chars)
        vector[:k] = self._projected(whole)
        vector[k : 2 * k] = vector[:k] if tail == whole else self._projected(tail)
        vector[2 * k :] = self._standardised("surface", surface_features(whole))

    def _projected(self, text: str) -> F32:
        idf: F32 = self._state["idf"]
        buckets, frequencies = count_ngrams(text, hash_bits=self.spec.hash_bits)
        weights = weighted_ngrams(buckets, frequencies, idf=idf)
        point = np.einsum("i,ij->j", weights, self._projection[buckets])
        norm = _norm(point)
        return point * np.float32(_HALF_ROOT / norm) if norm > 1e-6 else np.zeros_like(point)

    def _fill_image(self, vector: F32, image: Image) -> None:
        n = len(PIXEL_NAMES)
        statistics, thumbnail = describe_picture(image, thumbnail_side=self.spec.thumbnail_side)
        vector[:n] = self._standardised("pixel", statistics)
        centred = thumbnail - self._state["thumbnail_mean"]
        vector[n:] = np.einsum("i,ij->j", centred, self._thumbnail_projection)

    def _standardised(self, name: str, values: F64) -> F32:
        """Return z-scores within +-4, over the root of how many vary: norm 1 on average."""
        gain: F32 = self._state[f"{name}_gain"]
        scores = (values - self._state[f"{name}_mean"]) * gain
        bounded = np.minimum(np.maximum(scores, -_CLIP), _CLIP)
        varying = max(int(np.count_nonzero(gain)), 1)
        return np.asarray(bounded / math.sqrt(varying), dtype=np.float32)


def _norm(values: F32) -> np.float32:
    return np.float32(np.sqrt(np.add.reduce(values * values)))


def _checked_state(spec: EmbeddedSpec, state: Mapping[str, npt.NDArray[Any]]) -> State:
    layout = state_layout(spec)
    if unknown := sorted(set(state) - set(layout)):
        raise EncoderError(f"The embedded encoder's state has an unknown array '{unknown[0]}'.")
    for name, (shape, dtype) in layout.items():
        if name not in state:
            raise EncoderError(
                f"The embedded encoder's state lacks the array '{name}'. Fit the encoder again."
            )
        array = state[name]
        if array.shape != shape or array.dtype != dtype:
            raise EncoderError(
                f"The embedded encoder's array '{name}' is {array.dtype} {array.shape}; its spec "
                f"asks for {np.dtype(dtype)} {shape}. Fit the encoder again with this spec."
            )
        if not np.isfinite(array).all():
            raise EncoderError(
                f"The embedded encoder's array '{name}' holds values that are not finite. Fit the "
                "encoder again."
            )
    return {name: _frozen(state[name]) for name in layout}


def _frozen(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    copy = np.array(array, order="C")
    copy.flags.writeable = False
    return copy


def _fingerprint(spec: EmbeddedSpec, state: State) -> str:
    digest = hashlib.sha256(
        json.dumps({"algorithm": ALGORITHM, "spec": spec.model_dump()}, sort_keys=True).encode()
    )
    for name, array in state.items():
        digest.update(name.encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
