"""Export an encoder: read it, write its graphs, measure them against it, keep them.

Every graph is compared with the encoder that it came from before the folder exists, on the same
texts and pictures and from the same start (text, picture file) to the same end (vector). What was
found is in the manifest, and decides whether the export may stand for the original.
"""

from __future__ import annotations

import logging
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx

from router_runtime import __version__
from router_runtime.errors import EncoderError
from router_runtime.exporting_encoders import graphs, outliers, quantising
from router_runtime.exporting_encoders.halves import Batch, Half, Source
from router_runtime.exporting_encoders.quantising import Plan, WeightBits
from router_runtime.exporting_encoders.samples import Probes, made_up
from router_runtime.exporting_encoders.towers import TextTower
from router_runtime.prediction.encoders.base import file_digest
from router_runtime.prediction.encoders.onnx_folder import (
    MANIFEST,
    HalfFile,
    Measured,
    OnnxManifest,
    Precision,
    Variant,
)
from router_runtime.prediction.encoders.onnx_session import OnnxSession
from router_runtime.prediction.encoders.specs import EncoderSpec
from router_runtime.prediction.heads.base import import_whole
from router_runtime.types import F32, F64

logger = logging.getLogger(__name__)

LEAST_COSINE = 0.9985
"""What int8 shall reach on every sample; blocks stay in float32 until it does.

On samples that the export did not see the least is lower by some 0.0005.
"""

_READERS = {
    "clip": "router_runtime.exporting_encoders.open_clip_source",
    "huggingface": "router_runtime.exporting_encoders.transformers_source",
    "sentence": "router_runtime.exporting_encoders.sentence_source",
}
_INLINE_BYTES = 4096  # of tensors that stay in the graph's own file


def export_encoder(
    spec: EncoderSpec,
    output: Path,
    *,
    precisions: Sequence[Precision] = ("fp32", "int8"),
    probes: Probes | None = None,
    weight_bits: WeightBits | None = None,
    least_cosine: float = LEAST_COSINE,
    on_step: Callable[[str], None] = logger.info,
) -> tuple[Path, OnnxManifest]:
    """Write an encoder's graphs into a folder of its own below ``output``.

    Parameters
    ----------
    spec : EncoderSpec
        An encoder of kind ``clip``, ``huggingface`` or ``sentence``.
    output : Path
        A folder of exported encoders, made when absent. An earlier export of the same spec is
        replaced.
    precisions : sequence of {"fp32", "int8"}
    probes : Probes, optional
        Texts and pictures to measure on; made-up ones when omitted.
    weight_bits : {7, 8}, optional
        Of int8; default: the most that this machine's processor multiplies exactly.
    least_cosine : float
        Least cosine of int8 on every sample.
    on_step : callable
        Told what is being done.

    Returns
    -------
    folder : Path
    manifest : OnnxManifest

    Raises
    ------
    EncoderError
        The encoder cannot be had, or has something that is not exported.
    """
    if spec.kind not in _READERS:
        raise EncoderError(
            f"encoders of kind '{spec.kind}' are not exported; those of {', '.join(_READERS)} are. "
            "Serve this one with 'engine: torch'."
        )
    on_step(f"loading {getattr(spec, 'model', spec.kind)}")
    default = made_up()
    settled = default if probes is None else probes.or_else(default)
    source: Source = import_whole(_READERS[spec.kind]).read(spec, settled)
    output.mkdir(parents=True, exist_ok=True)
    with _incoming(output) as folder:
        if source.text is not None and source.words is not None:
            _put(source.words, folder / source.text.words)
        variants = {}
        for precision in dict.fromkeys(precisions):
            bits = None if precision == "fp32" else weight_bits or quantising.exact_bits()
            made = {
                half.name: _written(half, folder, precision, bits, least_cosine, on_step)
                for half in source.halves
            }
            variants[precision] = Variant(text=made.get("text"), picture=made.get("picture"))
        manifest = OnnxManifest(
            created_by=f"model-router {__version__}",
            spec=spec.model_dump(mode="json"),
            source_fingerprint=source.fingerprint,
            text=source.text,
            picture=source.picture,
            variants=variants,
            files={path.name: file_digest(path) for path in sorted(folder.iterdir())},
        )
        (folder / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
        target = output / _folder_name(spec, source.fingerprint)
        _replace(folder, target)
    return target, manifest


def _graph(half: Half, plan: Plan = Plan(), *, observed: bool = False) -> onnx.ModelProto:
    if isinstance(half.tower, TextTower):
        return graphs.text_graph(half.tower, plan, observed=observed)
    return graphs.picture_graph(half.tower, plan, observed=observed)


def _written(
    half: Half,
    folder: Path,
    precision: Precision,
    bits: WeightBits | None,
    least_cosine: float,
    on_step: Callable[[str], None],
) -> HalfFile:
    """Write one graph; of int8 the best that was found."""
    path = folder / f"{half.name}.{precision}.onnx"
    plan = Plan(bits)
    on_step(f"{half.name} {precision}")
    if bits is not None:
        half, plan = _best_rounding(half, folder, bits, least_cosine, on_step)
    model = _graph(half, plan)
    _save(model, path)
    measured = _measure(half, OnnxSession(path, threads=1))
    return HalfFile(
        file=path.name,
        data=path.with_suffix(".bin").name,
        parameters=graphs.parameters_of(model),
        weight_bits=bits or 32,
        fp32_blocks=tuple(sorted(plan.fp32_blocks)),
        measured=measured,
    )


def _best_rounding(
    half: Half,
    folder: Path,
    bits: WeightBits,
    least_cosine: float,
    on_step: Callable[[str], None],
) -> tuple[Half, Plan]:
    """Return the half, smoothed where that helps, and a plan that keeps ``least_cosine``."""
    trial = folder / "trial.onnx"

    def cosine(candidate: Half, plan: Plan) -> float:
        return _measure(candidate, _session(_graph(candidate, plan), trial)).min_cosine

    plan = Plan(bits)
    ease = quantising.smoothed if half.tower.norm_first else outliers.eased
    candidates = [half, half.replaced(ease(half.tower, _peaks(half, trial)))]
    best, reached = max(
        ((candidate, cosine(candidate, plan)) for candidate in candidates),
        key=lambda pair: pair[1],
    )
    if reached < least_cosine:
        count = len(best.tower.blocks)
        on_step(f"{half.name} int8 reaches a cosine of {reached:.4f}; looking for what costs most")
        few = best.first_batch()
        losses = [
            1 - cosine(few, Plan(bits, frozenset(range(count)) - {block})) for block in range(count)
        ]
        for block in quantising.worst_first(losses):
            plan = Plan(bits, plan.fp32_blocks | {block})
            reached = cosine(best, plan)
            if reached >= least_cosine:
                break
    trial.unlink()
    trial.with_suffix(".bin").unlink()
    on_step(f"{half.name} int8: least cosine {reached:.4f}, {len(plan.fp32_blocks)} blocks fp32")
    return best, plan


def _peaks(half: Half, trial: Path) -> dict[tuple[int, int], F32]:
    """Return the peaks that ``graphs.text_graph`` explains, over the samples."""
    session = _session(_graph(half, observed=True), trial)
    found = [session.run_all(batch)[1:] for batch in half.inputs]
    peaks = [np.max(arrays, axis=0) for arrays in zip(*found, strict=True)]
    return {(i // 3, 1 + i % 3): peak for i, peak in enumerate(peaks)}


def _measure(half: Half, session: OnnxSession) -> Measured:
    found, own, expected = (
        rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(np.float32).tiny)
        for rows in (
            _vectors(session, half.inputs),
            _vectors(session, half.own_inputs),
            half.expected.astype(np.float64),
        )
    )
    cosines = (found * expected).sum(axis=1)
    return Measured(
        samples=len(cosines),
        max_abs_difference=float(np.abs(own - expected).max()),
        mean_cosine=float(cosines.mean()),
        min_cosine=float(cosines.min()),
    )


def _vectors(session: OnnxSession, batches: Sequence[Batch]) -> F64:
    rows = [session.run(batch) for batch in batches]
    return np.vstack(rows).astype(np.float64)


def _session(model: onnx.ModelProto, path: Path) -> OnnxSession:
    _save(model, path)
    return OnnxSession(path, threads=1)


def _save(model: onnx.ModelProto, path: Path) -> None:
    """Write the graph, and its numbers to the file of the same name that ends in ``.bin``."""
    data = path.with_suffix(".bin")
    data.unlink(missing_ok=True)  # onnx would append
    onnx.save_model(
        model,
        str(path),
        save_as_external_data=True,
        all_tensors_to_one_file=True,
        location=data.name,
        size_threshold=_INLINE_BYTES,
    )
    data.touch(0o644)  # onnx may have found no tensor that large
    data.chmod(0o644)


@contextmanager
def _incoming(output: Path) -> Iterator[Path]:
    """Yield a folder beside the one to be, which is gone afterwards unless it was moved."""
    folder = Path(tempfile.mkdtemp(prefix=".incoming-", dir=output))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _replace(folder: Path, target: Path) -> None:
    """Move a complete folder to its place; an older one there goes away afterwards."""
    folder.chmod(0o755)
    with _incoming(target.parent) as aside:
        if target.exists():
            target.rename(aside / "old")
        folder.rename(target)


def _put(words: Path | bytes, target: Path) -> None:
    target.write_bytes(words if isinstance(words, bytes) else words.read_bytes())


def _folder_name(spec: EncoderSpec, fingerprint: str) -> str:
    name = getattr(spec, "model", spec.kind)
    plain = re.sub(r"[^A-Za-z0-9]+", "-", Path(name).name).strip("-").lower()
    return f"{spec.kind}-{plain}-{fingerprint[:8]}"
