"""Fit the embedded encoder: document frequencies, a projection, means and deviations.

Only training texts and pictures may come in here; whatever else came would leak into every vector.
Labels play no part.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix
from sklearn.utils.extmath import randomized_svd

from router_runtime.errors import DataError
from router_runtime.prediction.encoders.embedded import (
    EmbeddedEncoder,
    State,
    state_layout,
    text_views,
    weighted_ngrams,
)
from router_runtime.prediction.encoders.ngrams import count_ngrams
from router_runtime.prediction.encoders.pixels import describe_picture
from router_runtime.prediction.encoders.specs import EmbeddedSpec
from router_runtime.prediction.encoders.surface import surface_features
from router_runtime.types import F32, F64, Image, Int

logger = logging.getLogger(__name__)

MAX_TEXTS = 20_000
MAX_IMAGES = 20_000

_NEGLIGIBLE = 1e-4  # of the largest singular value, or of a feature's mean
_ROUNDING = 1e-4  # below any real difference between 8-bit pictures
_Item = TypeVar("_Item")


def fit_embedded(
    texts: Sequence[str],
    images: Sequence[Image],
    *,
    spec: EmbeddedSpec,
    seed: int,
) -> EmbeddedEncoder:
    """Fit the embedded encoder to training texts and pictures.

    Repeated texts and pictures count once, so that a prompt asked of a thousand pictures does not
    take all components. Of more than ``MAX_TEXTS`` distinct texts or ``MAX_IMAGES`` distinct
    pictures, a random sample of that size is used; this bounds time and memory (about 50 KB for a
    text of 250 words, 1 GB at the limit). Components that the data cannot support (fewer texts than
    components, few distinct pictures) and features that never vary become zeros in every vector.

    Parameters
    ----------
    texts : sequence of str
        Training texts; empty ones are allowed. None at all makes every text's vector zero.
    images : sequence of Image
        Training pictures; none at all makes every picture's vector zero.
    spec : EmbeddedSpec
        Dimensions.
    seed : int
        Of the samples and of the randomised singular value decomposition (Halko, Martinsson and
        Tropp, SIAM Review 2011). Equal input and seed give equal bits on the same machine.

    Returns
    -------
    EmbeddedEncoder
        Ready for use; its ``state`` and ``spec`` are what an artifact keeps.

    Raises
    ------
    DataError
        There is neither a text nor a picture.
    QueryError
        A picture does not decode.
    """
    if not texts and not images:
        raise DataError("The embedded encoder has no training text or picture to fit on.")
    rng = np.random.default_rng(seed)
    some_texts = _sample(texts, key=lambda text: text, at_most=MAX_TEXTS, rng=rng)
    some_images = _sample(images, key=lambda image: image.sha256, at_most=MAX_IMAGES, rng=rng)
    state: State = {
        name: np.zeros(shape, dtype=dtype) for name, (shape, dtype) in state_layout(spec).items()
    }
    state["fitted_on"][:] = len(some_texts), len(some_images)
    if some_texts:
        _fit_texts(state, some_texts, spec=spec, seed=seed)
    if some_images:
        _fit_images(state, some_images, spec=spec, seed=seed)
    logger.info("Fitted on %d texts and %d pictures.", len(some_texts), len(some_images))
    return EmbeddedEncoder(spec, state)


def _sample(
    items: Sequence[_Item],
    *,
    key: Callable[[_Item], str],
    at_most: int,
    rng: np.random.Generator,
) -> list[_Item]:
    distinct = list({key(item): item for item in items}.values())
    if len(distinct) <= at_most:
        return distinct
    chosen = np.sort(rng.choice(len(distinct), size=at_most, replace=False))
    return [distinct[index] for index in chosen]


def _fit_texts(state: State, texts: Sequence[str], *, spec: EmbeddedSpec, seed: int) -> None:
    """Fill the text half: n-grams from whole texts and ends alike, document frequency from whole.

    The frequency is smoothed, ``ln((1 + n) / (1 + df)) + 1``, so that n-grams never seen weigh most
    and those of every text still weigh 1.
    """
    views = [text_views(text, max_chars=spec.max_chars) for text in texts]
    wholes = [count_ngrams(whole, hash_bits=spec.hash_bits) for whole, _ in views]
    tails = [count_ngrams(tail, hash_bits=spec.hash_bits) for whole, tail in views if tail != whole]
    occupied = np.concatenate([buckets for buckets, _ in wholes])
    document_frequency = np.bincount(occupied, minlength=1 << spec.hash_bits)
    idf = (np.log((1 + len(texts)) / (1 + document_frequency)) + 1).astype(np.float32)
    state["idf"][:] = idf
    rows = _sparse_rows(wholes + tails, idf=idf)
    directions, _ = _leading_directions(rows, n_components=spec.text_components, seed=seed)
    state["projection"][:, : directions.shape[1]] = directions
    _fit_scale(state, "surface", np.array([surface_features(whole) for whole, _ in views]))


def _sparse_rows(counts: Sequence[tuple[Int, F32]], *, idf: F32) -> csr_matrix:
    ends = np.cumsum([0, *(len(buckets) for buckets, _ in counts)])
    columns = np.concatenate([buckets for buckets, _ in counts]).astype(np.int32)
    values = np.concatenate(
        [weighted_ngrams(buckets, frequencies, idf=idf) for buckets, frequencies in counts]
    )
    return csr_matrix((values, columns, ends), shape=(len(counts), len(idf)))


def _fit_images(state: State, images: Sequence[Image], *, spec: EmbeddedSpec, seed: int) -> None:
    """Fill the picture half; scores on the thumbnail's principal components have total variance 1.

    They are half whitened: deviations shrink to their square roots, so that details count beside
    the overall brightness without being blown up to pure noise. A network on such scores predicted
    better than on plain ones.
    """
    described = [describe_picture(image, thumbnail_side=spec.thumbnail_side) for image in images]
    _fit_scale(state, "pixel", np.array([statistics for statistics, _ in described]))
    thumbnails = np.array([thumbnail for _, thumbnail in described], dtype=np.float64)
    mean = thumbnails.mean(axis=0)
    directions, strengths = _leading_directions(
        thumbnails - mean, n_components=spec.thumbnail_components, seed=seed
    )
    total = np.sum(strengths) / len(images)  # variance of what the next line leaves
    directions *= np.sqrt(1.0 / (strengths * max(total, _ROUNDING)))
    state["thumbnail_mean"][:] = mean
    state["thumbnail_projection"][:, : directions.shape[1]] = directions


def _leading_directions(rows: csr_matrix | F64, *, n_components: int, seed: int) -> tuple[F64, F64]:
    """Return the right singular vectors that are more than rounding, and their singular values.

    Returns
    -------
    directions : ndarray, float64 (n_columns, n_found)
        Orthonormal columns, strongest first; ``n_found <= n_components``.
    strengths : ndarray, float64 (n_found,)
        Singular values.
    """
    _, strengths, directions = randomized_svd(
        rows, n_components=min(n_components, *rows.shape), n_iter=4, random_state=seed
    )
    kept = strengths > max(_NEGLIGIBLE * strengths[0], _ROUNDING)
    return directions[kept].T.astype(np.float64), strengths[kept].astype(np.float64)


def _fit_scale(state: State, name: str, features: F64) -> None:
    mean, deviation = features.mean(axis=0), features.std(axis=0)
    varies = deviation > _NEGLIGIBLE * np.maximum(np.abs(mean), 1e-3)
    gain: npt.NDArray[np.float64] = np.zeros_like(deviation)
    gain[varies] = 1.0 / deviation[varies]
    state[f"{name}_mean"][:] = mean
    state[f"{name}_gain"][:] = gain
