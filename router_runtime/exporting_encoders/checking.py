"""Compare an exported encoder with the one that an artifact was trained with, on a user's samples.

What counts is what is decided: features are compared because they show where a difference comes
from, probabilities because thresholds act on them, and decisions because they are what is served.
Everything behind the features (head, calibration, novelty, costs, policy) is the artifact's own and
the same for both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from router_runtime.artifacts import Artifact, load_artifact, rewrite_predictor
from router_runtime.config import EncoderRuntime, RuntimeConfig
from router_runtime.errors import ConfigError
from router_runtime.model_router import ModelRouter
from router_runtime.prediction.encoders.onnx_folder import ServedPrecision, exported_fingerprints
from router_runtime.prediction.feature_parts import AcceptedEncoder, ExportedEncoder
from router_runtime.prediction.features import EmbeddingGenerator
from router_runtime.types import F32, F64, Encoder, Json, Query

_Z = 1.959963984540054  # of a two-sided 95 % interval


@dataclass(frozen=True)
class Bounds:
    """What an encoder must keep to be accepted.

    Parameters
    ----------
    min_cosine : float
        Of every sample's vector, per encoder and half.
    mean_dp : float
        Mean absolute difference of P.
    changed : float
        Share of samples that are decided otherwise. The upper end of the 95 % interval must stay
        below it, so that few samples cannot pass: with none changed, 0.05 needs 73 of them.
    """

    min_cosine: float = 0.98
    mean_dp: float = 0.01
    changed: float = 0.05


@dataclass(frozen=True)
class HalfFigures:
    """How alike one half's vectors are."""

    encoder: str
    half: str
    samples: int
    mean_cosine: float
    min_cosine: float


@dataclass(frozen=True)
class Comparison:
    """What was found.

    Parameters
    ----------
    samples : int
    halves : tuple of HalfFigures
        Of the halves that the samples use.
    mean_dp, max_dp : float
        Absolute differences of P over samples and models.
    mean_dp_interval : (float, float)
        95 % of the mean over samples, by the normal approximation.
    changed : int
        Samples whose first model differs.
    changed_interval : (float, float)
        95 % of the share (Wilson).
    bounds : Bounds
    encoders : tuple of (int, str, str)
        Numbers, fingerprints and precisions of the exported encoders.
    """

    samples: int
    halves: tuple[HalfFigures, ...]
    mean_dp: float
    max_dp: float
    mean_dp_interval: tuple[float, float]
    changed: int
    changed_interval: tuple[float, float]
    bounds: Bounds
    encoders: tuple[tuple[int, str, str], ...]

    def figures(self) -> dict[str, Json]:
        """Return what was found, as JSON."""
        told = asdict(self)
        return {key: told[key] for key in told if key not in ("samples", "bounds", "encoders")}

    @property
    def failures(self) -> list[str]:
        """What does not keep its bound, in words; empty where all do."""
        found = [
            f"the least cosine of {half.encoder} {half.half} is {half.min_cosine:.4f}, below "
            f"{self.bounds.min_cosine:g}"
            for half in self.halves
            if half.min_cosine < self.bounds.min_cosine
        ]
        if self.mean_dp > self.bounds.mean_dp:
            found.append(f"the mean |dP| is {self.mean_dp:.4f}, above {self.bounds.mean_dp:g}")
        if self.changed_interval[1] > self.bounds.changed:
            found.append(
                f"up to {self.changed_interval[1]:.1%} of decisions may change, more than "
                f"{self.bounds.changed:.1%} ({self.changed} of {self.samples} did; with none "
                f"changed {samples_needed(self.bounds.changed)} samples are enough)"
            )
        return found


def compare(
    folder: Path,
    queries: Sequence[Query],
    runtime: EncoderRuntime,
    *,
    config: RuntimeConfig | None = None,
    policy: str | None = None,
    bounds: Bounds = Bounds(),
) -> Comparison:
    """Decide ``queries`` with the encoders of training and with the exported ones.

    Parameters
    ----------
    folder : Path
        The artifact's.
    queries : sequence of Query
    runtime : EncoderRuntime
        The exported encoders.
    config : RuntimeConfig, optional
        Candidates, prices and policies to decide with; the artifact's own when omitted.
    policy : str, optional
    bounds : Bounds

    Raises
    ------
    ConfigError
        No encoder of the artifact is replaced.
    ArtifactError, EncoderError, MissingDependencyError
        One of the two cannot be had.
    """
    artifact = load_artifact(folder)
    settled = config or RuntimeConfig(artifact=folder)
    settled = settled.model_copy(
        update={"artifact": folder, "encoder": reference_runtime(artifact, runtime)}
    )
    router = ModelRouter.from_config(settled)
    exported = artifact.feature_parts.build_encoders(runtime, unchecked=True)
    replaced = [i for i, encoder in enumerate(exported) if isinstance(encoder, ExportedEncoder)]
    before = router.features(queries)
    generator = EmbeddingGenerator(artifact.features, exported)
    after = generator.encode(queries)
    if before is None:
        raise ConfigError(f"Artifact '{folder}' has no features; there is nothing to check.")
    dP = np.abs(
        router.probabilities_from_features(before) - router.probabilities_from_features(after)
    )
    first, second = (router.decide_batch(queries, X=X, policy=policy) for X in (before, after))
    changed = sum(a.model_id != b.model_id for a, b in zip(first, second, strict=True))
    n = len(queries)
    return Comparison(
        samples=n,
        halves=tuple(_halves(exported, before, after, replaced)),
        mean_dp=float(dP.mean()),
        max_dp=float(dP.max()),
        mean_dp_interval=_mean_interval(dP.mean(axis=1)),
        changed=changed,
        changed_interval=wilson(changed, n),
        bounds=bounds,
        encoders=tuple(
            (number, encoder.fingerprint, encoder.precision)
            for number, encoder in enumerate(exported)
            if isinstance(encoder, ExportedEncoder)
        ),
    )


def record(folder: Path, comparison: Comparison) -> str:
    """Write the accepted encoders into the artifact's manifest; returns the new artifact id.

    Raises
    ------
    ConfigError
        A bound does not hold.
    ArtifactError
        The manifest cannot be written, or the artifact was replaced meanwhile.
    """
    if comparison.failures:
        raise ConfigError(f"Not accepted: {'; '.join(comparison.failures)}.")
    artifact = load_artifact(folder)
    parts = artifact.feature_parts
    for number, fingerprint, precision in comparison.encoders:
        accepted = AcceptedEncoder(
            fingerprint=fingerprint,
            precision=precision,
            samples=comparison.samples,
            figures=comparison.figures(),
            bounds=asdict(comparison.bounds),
        )
        parts = parts.with_accepted(number, accepted)
    return rewrite_predictor(replace(artifact, parts=parts), folder).artifact_id


def reference_runtime(artifact: Artifact, runtime: EncoderRuntime) -> EncoderRuntime:
    """Return what builds the encoders of training: PyTorch, or the folder where it was that."""
    recorded = set(artifact.encoder_fingerprints)
    if runtime.folder is not None:
        for precision, fingerprint in exported_fingerprints(runtime.folder):
            if fingerprint in recorded:
                return _serving(runtime, precision)
    kept = {"device", "batch_size", "url", "api_key_env", "timeout_s"}
    return EncoderRuntime(**runtime.model_dump(include=kept))


def _serving(runtime: EncoderRuntime, precision: ServedPrecision) -> EncoderRuntime:
    """Return what serves another precision from the same folder."""
    if precision == "bf16":
        return runtime.model_copy(
            update={"engine": "openvino", "precision": precision, "cpus": None}
        )
    engine = "onnx" if precision == "int8" else runtime.engine
    return runtime.model_copy(update={"engine": engine, "precision": precision})


def wilson(successes: int, n: int) -> tuple[float, float]:
    """Return the 95 % Wilson interval of a share."""
    share, z2 = successes / n, _Z * _Z
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    reach = _Z * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return max(0.0, middle - reach), min(1.0, middle + reach)


def samples_needed(changed: float) -> int:
    """Return how many samples show, when none changes, that at most that share does."""
    return math.ceil(_Z * _Z * (1 - changed) / changed)


def _mean_interval(values: F64) -> tuple[float, float]:
    mean = float(values.mean())
    spread = float(values.std(ddof=1)) if len(values) > 1 else float("inf")
    reach = _Z * spread / math.sqrt(len(values))
    return max(0.0, mean - reach), mean + reach


def _halves(
    encoders: Sequence[Encoder], before: F32, after: F32, replaced: Sequence[int]
) -> list[HalfFigures]:
    figures = []
    column = 0
    for number, encoder in enumerate(encoders):
        joint = getattr(encoder, "joint_dim", 0)
        dims = {"text": encoder.text_dim, "picture": encoder.image_dim, "joint": joint}
        for half, dim in dims.items():
            columns = slice(column, column + dim)
            column += dim
            rows = np.linalg.norm(before[:, columns], axis=1) > 0
            if number in replaced and dim and rows.any():
                cosines = _cosines(before[rows, columns], after[rows, columns])
                figures.append(
                    HalfFigures(
                        encoder=encoder.kind,
                        half=half,
                        samples=len(cosines),
                        mean_cosine=float(cosines.mean()),
                        min_cosine=float(cosines.min()),
                    )
                )
    return figures


def _cosines(A: F32, B: F32) -> F64:
    A64, B64 = A.astype(np.float64), B.astype(np.float64)
    lengths = np.linalg.norm(A64, axis=1) * np.linalg.norm(B64, axis=1)
    cosines: F64 = (A64 * B64).sum(axis=1) / np.where(lengths > 0, lengths, 1)
    return cosines
