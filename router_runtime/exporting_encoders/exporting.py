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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import onnx

from router_runtime import __version__
from router_runtime.errors import EncoderError
from router_runtime.exporting_encoders import graphs, open_clip_towers, quantising
from router_runtime.exporting_encoders.quantising import Plan, WeightBits
from router_runtime.exporting_encoders.samples import Probes, made_up
from router_runtime.exporting_encoders.towers import PictureTower, TextTower
from router_runtime.prediction.encoders.base import file_digest
from router_runtime.prediction.encoders.clip import ClipEncoder
from router_runtime.prediction.encoders.clip_pixels import Preprocessing
from router_runtime.prediction.encoders.clip_tokenizer import MERGES_FILE, ClipTokenizer
from router_runtime.prediction.encoders.onnx_folder import (
    MANIFEST,
    HalfFile,
    Measured,
    OnnxManifest,
    PictureHalf,
    Precision,
    TextHalf,
    Variant,
)
from router_runtime.prediction.encoders.onnx_session import OnnxSession
from router_runtime.prediction.encoders.specs import ClipSpec, EncoderRuntime, EncoderSpec
from router_runtime.prediction.encoders.windows import Window, padded
from router_runtime.types import F32, F64

Batch: TypeAlias = npt.NDArray[np.int64] | F32
"""Token ids (n, n_tokens) or pixels (n, 3, height, width)."""

logger = logging.getLogger(__name__)

LEAST_COSINE = 0.9985
"""What int8 shall reach on every sample; blocks stay in float32 until it does.

On samples that the export did not see the least is lower by some 0.0005.
"""

_BATCH = 16
_INLINE_BYTES = 4096  # of tensors that stay in the graph's own file


@dataclass(frozen=True)
class _Half:
    """One half of an encoder on the way to a graph.

    Parameters
    ----------
    name : str
    tower : TextTower or PictureTower
    inputs : sequence of ndarray
        Batches for the graph, as they are made where it is served.
    own_inputs : sequence of ndarray
        The same as the encoder itself makes them.
    expected : ndarray of shape (n_samples, dim), float32
        What the encoder makes of the samples.
    """

    name: str
    tower: TextTower | PictureTower
    inputs: Sequence[Batch]
    own_inputs: Sequence[Batch]
    expected: F32

    def graph(self, plan: Plan = Plan(), *, observed: bool = False) -> onnx.ModelProto:
        if isinstance(self.tower, TextTower):
            return graphs.text_graph(self.tower, plan, observed=observed)
        return graphs.picture_graph(self.tower, plan, observed=observed)

    def replaced(self, tower: TextTower | PictureTower) -> _Half:
        return replace(self, tower=tower)

    def first_batch(self) -> _Half:
        rows = len(self.inputs[0])
        return replace(
            self,
            inputs=self.inputs[:1],
            own_inputs=self.own_inputs[:1],
            expected=self.expected[:rows],
        )


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
        An encoder of kind ``clip``.
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
    if not isinstance(spec, ClipSpec):
        raise EncoderError(
            f"encoders of kind '{spec.kind}' are not exported; 'clip' is. Serve this one with "
            "'engine: torch'."
        )
    on_step(f"loading {spec.model}")
    source = ClipEncoder(spec, EncoderRuntime(device="cpu", batch_size=_BATCH))
    text, merges = _text_half(source)
    picture = _picture_half(source)
    halves = _halves(source, merges, text, picture, probes or made_up())
    output.mkdir(parents=True, exist_ok=True)
    with _incoming(output) as folder:
        shutil.copyfile(merges, folder / text.merges)
        variants = {}
        for precision in dict.fromkeys(precisions):
            bits = None if precision == "fp32" else weight_bits or quantising.exact_bits()
            made = [
                _written(half, folder, precision, bits, least_cosine, on_step) for half in halves
            ]
            variants[precision] = Variant(text=made[0], picture=made[1])
        manifest = OnnxManifest(
            created_by=f"model-router {__version__}",
            spec=spec.model_dump(mode="json"),
            source_fingerprint=source.fingerprint,
            text=text,
            picture=picture,
            variants=variants,
            files={path.name: file_digest(path) for path in sorted(folder.iterdir())},
        )
        (folder / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
        target = output / _folder_name(spec, source.fingerprint)
        _replace(folder, target)
    return target, manifest


def _text_half(source: ClipEncoder) -> tuple[TextHalf, Path]:
    """Return the text half's description and the merges, having compared tokenizers."""
    merges, cleaning = source.byte_pairs()
    half = TextHalf(
        dim=source.text_dim,
        length=source.windows.length,
        max_windows=source.windows.max_windows,
        merges=MERGES_FILE,
        cleaning=cleaning,
    )
    return half, merges


def _picture_half(source: ClipEncoder) -> PictureHalf:
    config = source.preprocessing
    if config.get("mode", "RGB") != "RGB" or config.get("interpolation") == "random":
        raise EncoderError(
            f"pictures of this model are prepared in a way that is not exported ({config}). Serve "
            "it with 'engine: torch'."
        )
    return PictureHalf.of(Preprocessing.from_config(config), dim=source.image_dim)


def _halves(
    source: ClipEncoder, merges: Path, text: TextHalf, picture: PictureHalf, probes: Probes
) -> list[_Half]:
    """Return both halves with what the encoder makes of the samples."""
    texts, images = probes.texts or made_up().texts, probes.images or made_up().images
    ours = ClipTokenizer.from_merges(merges, cleaning=text.cleaning).windows(
        length=text.length, max_windows=text.max_windows
    )
    windows: list[Window] = []
    for one in texts:
        cut = ours.cut(one)
        if cut != source.windows.cut(one):
            raise EncoderError(
                "this model's tokenizer is not CLIP's own, which is the one that is exported. "
                "Serve it with 'engine: torch'."
            )
        windows += cut
    batches = [windows[i : i + _BATCH] for i in range(0, len(windows), _BATCH)]
    prepare = picture.preprocessing
    tokens = [padded(batch, pad_id=0)[0] for batch in batches]
    return [
        _Half(
            "text",
            open_clip_towers.text_tower(source.model, start_token=source.windows.prefix[0]),
            tokens,
            tokens,
            np.vstack([source.encode_windows(batch) for batch in batches]),
        ),
        _Half(
            "picture",
            open_clip_towers.picture_tower(source.model),
            _stacked([prepare(image) for image in images]),
            _stacked([one.numpy() for one in source.pixels(images)]),
            source.encode_images(images),
        ),
    ]


def _stacked(pixels: Sequence[F32]) -> list[Batch]:
    return [np.stack(pixels[i : i + _BATCH]) for i in range(0, len(pixels), _BATCH)]


def _written(
    half: _Half,
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
    model = half.graph(plan)
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
    half: _Half,
    folder: Path,
    bits: WeightBits,
    least_cosine: float,
    on_step: Callable[[str], None],
) -> tuple[_Half, Plan]:
    """Return the half, smoothed where that helps, and a plan that keeps ``least_cosine``."""
    trial = folder / "trial.onnx"

    def cosine(candidate: _Half, plan: Plan) -> float:
        return _measure(candidate, _session(candidate.graph(plan), trial)).min_cosine

    plan = Plan(bits)
    smooth = half.replaced(quantising.smoothed(half.tower, _peaks(half, trial)))
    best, reached = max(
        ((candidate, cosine(candidate, plan)) for candidate in (half, smooth)),
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


def _peaks(half: _Half, trial: Path) -> dict[tuple[int, int], F32]:
    """Return the largest output per column of every norm, over the samples."""
    session = _session(half.graph(observed=True), trial)
    found = [session.run_all({_input_name(half): batch})[1:] for batch in half.inputs]
    peaks = [np.max(arrays, axis=0) for arrays in zip(*found, strict=True)]
    return {(i // 2, 1 + i % 2): peak for i, peak in enumerate(peaks)}


def _input_name(half: _Half) -> str:
    return "ids" if isinstance(half.tower, TextTower) else "pixels"


def _measure(half: _Half, session: OnnxSession) -> Measured:
    found, own, expected = (
        rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(np.float32).tiny)
        for rows in (
            _vectors(half, session, half.inputs),
            _vectors(half, session, half.own_inputs),
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


def _vectors(half: _Half, session: OnnxSession, batches: Sequence[Batch]) -> F64:
    rows = [session.run({_input_name(half): batch}) for batch in batches]
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


def _folder_name(spec: ClipSpec, fingerprint: str) -> str:
    plain = re.sub(r"[^A-Za-z0-9]+", "-", Path(spec.model).name).strip("-").lower()
    return f"{spec.kind}-{plain}-{fingerprint[:8]}"
