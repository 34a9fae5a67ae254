"""The same exported files run by OpenVINO, in fp32 and, where the processor has it, in bfloat16."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from labelling_parts.table import Row

from encoding_parts.peak import SIDE, operations, peak
from router_runtime.exporting_encoders import open_clip_towers
from router_runtime.exporting_encoders.samples import made_up
from router_runtime.prediction.encoders import build_encoder
from router_runtime.prediction.encoders.clip import ClipEncoder
from router_runtime.prediction.encoders.onnx_encoder import OnnxEncoder
from router_runtime.prediction.encoders.openvino_session import OpenvinoSession, computes_bf16
from router_runtime.prediction.encoders.specs import ClipSpec, EncoderRuntime

LEAST_BF16 = 0.999
MANY = 32


class Bench(Protocol):
    """What is read of ``encoding.Bench``."""

    folder: Path
    spec: ClipSpec
    source: ClipEncoder
    exported: Path
    encoders: dict[str, OnnxEncoder]


Compare = Callable[[Callable[[], object], Callable[[], object]], tuple[float, float]]


def rows(bench: Bench, compare: Compare, *, text: str) -> Iterator[Row]:
    """Yield speed beside eager padded fp32 and beside ONNX Runtime, share of the peak, cosines.

    Parameters
    ----------
    compare : callable
        Times two functions side by side and returns the seconds of each.
    text : str
        The one of batch 1.
    """
    window = bench.source.windows.cut(text)[0]
    many = [bench.source.windows.cut(one)[0] for one in made_up(seed=7).texts[:MANY]]
    many.sort(key=len)
    pixels = np.random.default_rng(0).normal(size=(1, 3, 224, 224)).astype(np.float32)
    model = bench.source.model
    padded = torch.zeros(1, bench.source.windows.length, dtype=torch.int64)
    padded[0, : len(window)] = torch.tensor(window)
    eager = {
        "text": lambda: model.encode_text(padded),
        "picture": lambda: model.encode_image(torch.from_numpy(pixels)),
    }
    towers = {
        "text": open_clip_towers.text_tower(model, start_token=window[0]),
        "picture": open_clip_towers.picture_tower(model),
    }
    tokens = {"text": len(window), "picture": len(towers["picture"].positions) + 1}
    onnx = bench.encoders["fp32"]
    for precision in ("fp32", "bf16") if computes_bf16() else ("fp32",):
        runtime = EncoderRuntime(engine="openvino", folder=bench.exported, precision=precision)
        encoder = build_encoder(bench.spec, runtime=runtime)
        best = fastest_product(bench.folder, precision)
        for half in ("text", "picture"):
            ours, other = (one_of(half, one, window, pixels) for one in (encoder, onnx))
            name = f"{half}, {tokens[half]} tokens, batch 1, OpenVINO {precision}"
            seconds = compare(ours, eager[half])
            yield timed(f"{name} against eager fp32", seconds)
            rate = operations(towers[half], tokens[half]) / seconds[0]
            what = f"  share of {best / 1e9:.0f} GOP/s, OpenVINO's {precision} products' peak"
            yield Row(what, f"{rate / 1e9:.0f} GOP/s", "", rate / best)
            yield timed("  against ONNX Runtime fp32", compare(ours, other))
        yield timed(
            f"{MANY} texts of many lengths, OpenVINO {precision}, against ORT fp32",
            compare(partial(encoder.encode_windows, many), partial(onnx.encode_windows, many)),
        )
        if precision == "bf16":
            yield from cosines(bench.source, encoder)


def one_of(
    half: str, encoder: OnnxEncoder, window: Sequence[int], pixels: np.ndarray
) -> Callable[[], object]:
    """Return what encodes one text or one picture."""
    if half == "text":
        return lambda: encoder.encode_windows([tuple(window)])
    return lambda: encoder.encode_pixels(pixels)


def timed(what: str, seconds: tuple[float, float]) -> Row:
    ours, other = seconds
    return Row(what, f"{ours * 1e3:.2f} ms", f"{other * 1e3:.2f} ms", other / ours)


def cosines(source: ClipEncoder, encoder: OnnxEncoder) -> Iterator[Row]:
    """bf16 against the source on texts and pictures that the export did not see."""
    fresh = made_up(seed=99)
    pairs = {
        "text": (encoder.encode_texts(fresh.texts), source.encode_texts(fresh.texts)),
        "picture": (encoder.encode_images(fresh.images), source.encode_images(fresh.images)),
    }
    for half, pair in pairs.items():
        A, B = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in pair)
        found = (A * B).sum(axis=1)
        what = f"least cosine of {len(found)} {half}s, bf16, RANDOM weights"
        yield Row(what, f"mean {found.mean():.5f}", "", float(found.min()), LEAST_BF16)


def fastest_product(folder: Path, precision: str) -> float:
    """Return operations per second of OpenVINO on the product that ``peak`` measures."""
    peak(folder, None)  # which writes it
    session = OpenvinoSession(folder / "product-None.onnx", precision=precision, threads=1)
    x = np.random.default_rng(0).normal(size=(SIDE, SIDE)).astype(np.float32)
    best = float("inf")
    for _ in range(20):
        started = time.process_time()
        session.run({"x": x})
        best = min(best, time.process_time() - started)
    return 2 * SIDE**3 / best
