"""What every head shares: numerics, the check of its input, its files, the registry of kinds."""

from __future__ import annotations

import importlib
import math
import signal
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any, Self, cast

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from router_runtime.errors import (
    ArtifactError,
    ArtifactIntegrityError,
    MissingDependencyError,
    QueryError,
)
from router_runtime.types import F32, F64, Head, Json

HEADS: dict[str, tuple[str, str]] = {
    "joined": ("router_runtime.prediction.heads.joined", "JoinedHead"),
    "knn": ("router_runtime.prediction.heads.knn", "KnnHead"),
    "logistic": ("router_runtime.prediction.heads.logistic", "LogisticHead"),
    "mlp": ("router_runtime.prediction.heads.mlp", "MLPHead"),
    "prior": ("router_runtime.prediction.heads.prior", "PriorHead"),
    "stack": ("router_runtime.prediction.heads.stack", "StackHead"),
    "xgboost": ("router_runtime.prediction.heads.xgboost", "XGBoostHead"),
}

CHUNK_ROWS = 4096
RESTORE = "Restore the artifact folder from its source, or train again."

_LOGIT_EPS = 1e-6
_MOST_LOGIT = np.array(math.log((1 - _LOGIT_EPS) / _LOGIT_EPS))
_ONE, _LEAST_LOGIT = np.ones(()), np.array(-700.0)  # as arrays: nothing to convert in a call


class HeadDescription(BaseModel):
    """The JSON that a head writes beside its files; subclasses add what their kind needs."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    kind: str
    n_features: int = Field(ge=1)
    n_models: int = Field(ge=1)


class BaseHead(ABC):
    """A head with a description; subclasses compute probabilities and write files.

    Instances hold read-only arrays and no scratch space, so that any number of threads may
    predict with one head at a time.
    """

    Description: type[HeadDescription] = HeadDescription

    def __init__(self, description: HeadDescription) -> None:
        self._description = description

    @property
    def kind(self) -> str:
        """The name under which ``load_head`` finds this class."""
        return self._description.kind

    @property
    def n_features(self) -> int:
        """Columns of ``X``."""
        return self._description.n_features

    @property
    def n_models(self) -> int:
        """Columns of ``P``."""
        return self._description.n_models

    def describe(self) -> dict[str, Json]:
        """Return JSON with ``kind`` and all that ``load_head`` needs besides the files."""
        return self._description.model_dump(mode="json")

    def predict_proba(self, X: F32) -> F64:
        """Predict the probability that each model answers well, before calibration.

        Parameters
        ----------
        X : ndarray of shape (n_queries, n_features), float32, finite
            Features made by the artifact's own feature spec.

        Returns
        -------
        ndarray of shape (n_queries, n_models), float64 in [0, 1]

        Raises
        ------
        QueryError
            ``X`` is not a finite float32 matrix with ``n_features`` columns.
        """
        check_features(X, self.n_features)
        if len(X) <= CHUNK_ROWS:
            return self._probabilities(X)
        return np.concatenate([self._probabilities(X[rows]) for rows in chunks(len(X))])

    @abstractmethod
    def _probabilities(self, X: F32) -> F64:
        """Return ``P`` for a checked ``X`` of at most ``CHUNK_ROWS`` rows."""

    def log_odds(self, X: F32) -> F64:
        """Return ``logit(P)``, float64 (n_queries, n_models), for a checked ``X`` of few rows.

        Heads that compute log odds first need not go there and back.
        """
        return logit(self._probabilities(X))

    @abstractmethod
    def to_files(self, stem: str) -> dict[str, bytes]:
        """Return the head as named files, each name starting with ``stem``."""

    @classmethod
    @abstractmethod
    def from_files(cls, description: Any, files: Mapping[str, bytes], *, stem: str) -> Self:
        """Build the head from its parsed description and the files that start with ``stem``."""


def load_head(
    description: Mapping[str, Json], files: Mapping[str, bytes], stem: str = "head"
) -> Head:
    """Build a head from what ``describe`` and ``to_files`` returned.

    Parameters
    ----------
    description : mapping
        The JSON of ``Head.describe``; ``kind`` selects the class.
    files : mapping of str to bytes
        At least the files that ``Head.to_files(stem)`` wrote; others are ignored.
    stem : str
        The stem given to ``to_files``.

    Raises
    ------
    ArtifactError
        The kind is unknown or the description malformed.
    ArtifactIntegrityError
        A file is missing or corrupt, or a tensor has another shape than described.
    MissingDependencyError
        The kind needs a package that is not installed.
    """
    kind = description.get("kind")
    if kind not in HEADS:
        known = ", ".join(sorted(HEADS))
        raise ArtifactError(f"Unknown head kind {kind!r} (known: {known}). Update model-router.")
    module, name = HEADS[kind]
    head = getattr(import_optional(module, {"xgboost": "train"}), name)
    try:
        parsed = head.Description.model_validate(dict(description))
    except ValidationError as error:
        problem = error.errors()[0]
        field = ".".join(map(str, problem["loc"]))
        raise ArtifactError(
            f"The description of the '{kind}' head is malformed at '{field}': "
            f"{problem['msg']}. {RESTORE}"
        ) from error
    return cast(Head, head.from_files(parsed, files, stem=stem))


def import_optional(module: str, extras: Mapping[str, str]) -> Any:
    """Import ``module``, explaining which extra brings an absent optional package.

    Parameters
    ----------
    module : str
        Dotted name of a module of this project.
    extras : mapping of str to str
        Optional top-level package to the extra of ``model-router`` that installs it. Any other
        import failure is a defect and passes through unchanged.

    Raises
    ------
    MissingDependencyError
        One of ``extras`` is not installed.
    """
    try:
        return import_whole(module)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in extras:
            raise
        raise MissingDependencyError(package, extras[package]) from error


def import_whole(module: str) -> ModuleType:
    """Import ``module``; a Ctrl-C meanwhile raises ``KeyboardInterrupt`` when it is imported.

    torch 2.13 ends the process with a C++ abort where the exception meets its initialisation of
    ``torch.distributed``. Handlers other than Python's own, and other threads, are left alone.
    """
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        return importlib.import_module(module)
    pressed: list[int] = []
    signal.signal(signal.SIGINT, lambda number, _: pressed.append(number))
    try:
        found = importlib.import_module(module)
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if pressed:
        raise KeyboardInterrupt
    return found


def sigmoid(Z: npt.NDArray[Any]) -> F64:
    """Return 1 / (1 + exp(-Z)) in float64, without overflow and exact to the last digits near 0."""
    return cast(F64, _ONE / (_ONE + np.exp(-np.maximum(Z, _LEAST_LOGIT, dtype=np.float64))))


def softmax(Z: npt.NDArray[Any]) -> F64:
    """Return each row's exp(Z) / sum(exp(Z)) in float64, without overflow."""
    odds = np.exp(Z - Z.max(axis=1, keepdims=True), dtype=np.float64)
    return cast(F64, odds / odds.sum(axis=1, keepdims=True))


def logit(P: npt.NDArray[Any], *, eps: float = _LOGIT_EPS) -> F64:
    """Return log(P / (1 - P)) in float64, with ``P`` first clipped to [eps, 1 - eps].

    The clip keeps a member that is certain, and wrong, from outvoting every other one.
    """
    P = np.minimum(np.maximum(P, eps, dtype=np.float64), 1.0 - eps)
    return cast(F64, np.log(P) - np.log1p(-P))


def clipped_logits(Z: npt.NDArray[Any]) -> F64:
    """Return what ``logit(sigmoid(Z))`` is, clip and all."""
    return cast(F64, np.minimum(np.maximum(Z, -_MOST_LOGIT, dtype=np.float64), _MOST_LOGIT))


def check_features(X: F32, n_features: int) -> None:
    """Refuse anything but a finite float32 matrix with ``n_features`` columns.

    Raises
    ------
    QueryError
        Saying what was expected and what came.
    """
    if not isinstance(X, np.ndarray) or X.ndim != 2 or X.dtype != np.float32:
        found = f"{X.ndim}-D {X.dtype}" if isinstance(X, np.ndarray) else type(X).__name__
        raise QueryError(f"Features must be a 2-D float32 array, not {found}.")
    if X.shape[1] != n_features:
        raise QueryError(
            f"The features have {X.shape[1]} columns and the head was fitted on {n_features}. "
            "Encode with the artifact's own feature spec."
        )
    whole = len(X) <= CHUNK_ROWS
    if not (_is_finite(X) if whole else all(_is_finite(X[rows]) for rows in chunks(len(X)))):
        row = next(row for row, features in enumerate(X) if not np.isfinite(features).all())
        raise QueryError(f"The features of query {row} contain NaN or infinity; check the encoder.")


def _is_finite(X: F32) -> bool:
    """Return whether all of ``X`` is finite; most often one sum of squares tells, without a mask.

    Finite features beyond 1e17 make it overflow; then the mask decides.
    """
    return math.isfinite(np.vdot(X, X)) or bool(np.isfinite(X).all())


def chunks(n_rows: int, size: int = CHUNK_ROWS) -> Iterator[slice]:
    """Yield slices that cover ``n_rows`` rows, so that memory does not grow with the batch."""
    return (slice(start, min(start + size, n_rows)) for start in range(0, n_rows, size))


def write_tensors(stem: str, tensors: Mapping[str, npt.NDArray[Any]]) -> dict[str, bytes]:
    """Return ``{<stem>.safetensors: bytes}``; equal tensors give equal bytes."""
    contiguous = {name: np.ascontiguousarray(tensors[name]) for name in sorted(tensors)}
    return {f"{stem}.safetensors": save_tensors(contiguous)}


def read_file(files: Mapping[str, bytes], name: str) -> bytes:
    """Return one file of an artifact.

    Raises
    ------
    ArtifactIntegrityError
        It is missing.
    """
    if name not in files:
        raise ArtifactIntegrityError(f"'{name}' is missing from the artifact. {RESTORE}")
    return files[name]


def read_tensors(
    files: Mapping[str, bytes],
    stem: str,
    shapes: Mapping[str, tuple[int | None, ...]],
    *,
    may_be_nan: frozenset[str] = frozenset(),
) -> dict[str, npt.NDArray[Any]]:
    """Read ``<stem>.safetensors`` and check it against what the description promises.

    Parameters
    ----------
    files : mapping of str to bytes
        The artifact's files.
    stem : str
        Name without the suffix.
    shapes : mapping of str to tuple
        Shape per tensor; None stands for any length, the same one wherever it occurs.
    may_be_nan : frozenset of str
        Tensors in which NaN means "missing".

    Raises
    ------
    ArtifactIntegrityError
        The file is missing or corrupt, or its tensors differ in name, shape or finiteness.
    """
    name = f"{stem}.safetensors"
    try:
        tensors = load_tensors(read_file(files, name))
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ArtifactIntegrityError(
            f"'{name}' is not a readable tensor file. {RESTORE}"
        ) from error
    if tensors.keys() != shapes.keys():
        raise ArtifactIntegrityError(
            f"'{name}' holds the tensors {sorted(tensors)}, expected {sorted(shapes)}. {RESTORE}"
        )
    for key, shape in shapes.items():
        _check_tensor(name, key, tensors[key], shape, nan=key in may_be_nan)
    free = {
        tensors[key].shape[axis]
        for key, shape in shapes.items()
        for axis, size in enumerate(shape)
        if size is None
    }
    if len(free) > 1:
        raise ArtifactIntegrityError(f"The tensors of '{name}' differ in length. {RESTORE}")
    return tensors


def _check_tensor(
    name: str, key: str, tensor: npt.NDArray[Any], shape: tuple[int | None, ...], *, nan: bool
) -> None:
    fits = tensor.ndim == len(shape) and all(
        size is None or size == found for size, found in zip(shape, tensor.shape, strict=True)
    )
    if not fits or tensor.dtype.kind != "f":
        expected = tuple("n" if size is None else size for size in shape)
        raise ArtifactIntegrityError(
            f"'{name}': tensor '{key}' is {tensor.dtype} {tensor.shape}, "
            f"expected floats of shape {expected}. {RESTORE}"
        )
    if np.isinf(tensor).any() or (not nan and np.isnan(tensor).any()):
        raise ArtifactIntegrityError(f"'{name}': tensor '{key}' is not finite. {RESTORE}")
