"""How fast CLIP encodes without PyTorch, as ratios to open_clip measured side by side in one run.

    python tests/benchmarks/encoding.py [--check] [--json]

ViT-B/32 with random weights: speed does not depend on them. Cosines of int8 do, and are labelled
so; with real weights ``model-router check-encoder`` measures them on one's own samples. Everything
runs on one thread. Calls are timed in alternating blocks, so that a slow moment hits both sides,
the median block counts, and CPU time is measured, so that waiting for a core does not count; only a
start is measured by the clock. ``--check`` makes the exit status 1 if a target is missed.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # one thread for everything that is compared
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from encoding_parts import openvino_rows, pictures, whole
from encoding_parts.peak import operations, peak
from labelling_parts.table import Row, print_table
from safetensors.torch import save_file

from router_runtime.artifacts import Artifact, save_artifact
from router_runtime.exporting_encoders import open_clip_towers
from router_runtime.exporting_encoders.exporting import export_encoder
from router_runtime.exporting_encoders.samples import made_up
from router_runtime.prediction.calibration import Calibrator
from router_runtime.prediction.encoders import build_encoder
from router_runtime.prediction.encoders.clip import ClipEncoder
from router_runtime.prediction.encoders.onnx_encoder import OnnxEncoder
from router_runtime.prediction.encoders.onnx_folder import OnnxManifest
from router_runtime.prediction.encoders.pictures_ahead import processors
from router_runtime.prediction.encoders.specs import ClipSpec, EncoderRuntime
from router_runtime.prediction.feature_parts import AcceptedEncoder, FeatureParts
from router_runtime.prediction.features import FeatureSpec
from router_runtime.prediction.heads.network import RouterNetwork, fold

NAME = "ViT-B-32-quickgelu"
TEXT = "Compare the chart in the second picture with the numbers of the table, and explain it."
TARGETS = {("text", "fp32"): 4.0, ("text", "int8"): 10.0}
TARGETS |= {("picture", "fp32"): 1.4, ("picture", "int8"): 4.0}
LEAST_COSINE = 0.998
START_S, START_MB = 1.0, 350.0
STARTS = 3


@dataclass(frozen=True)
class Bench:
    """One model in all its forms."""

    folder: Path
    spec: ClipSpec
    source: ClipEncoder
    exported: Path
    manifest: OnnxManifest
    encoders: dict[str, OnnxEncoder]


def prepare(folder: Path) -> Bench:
    import open_clip

    torch.manual_seed(0)
    model = open_clip.create_model(NAME)
    weights = folder / "random.safetensors"
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, weights)
    spec = ClipSpec(model=NAME, pretrained=str(weights))
    output = folder / "encoders"
    _, manifest = export_encoder(spec, output, on_step=lambda step: print(step, file=sys.stderr))
    encoders = {}
    for precision in manifest.variants:
        runtime = EncoderRuntime(engine="onnx", folder=output, precision=precision)
        encoders[precision] = build_encoder(spec, runtime=runtime)
    source = ClipEncoder(spec, EncoderRuntime(device="cpu"))
    return Bench(folder, spec, source, output, manifest, encoders)


def compare(
    ours: Callable[[], object], other: Callable[[], object], *, blocks: int = 25
) -> tuple[float, float]:
    """Return the median CPU seconds of each."""
    times: tuple[list[float], list[float]] = ([], [])
    ours(), other()  # warm up
    for _ in range(blocks):
        for run, seen in ((ours, times[0]), (other, times[1])):
            started = time.process_time()
            run()
            seen.append(time.process_time() - started)
    return statistics.median(times[0]), statistics.median(times[1])


def shown(seconds: float) -> str:
    return f"{seconds * 1e3:.2f} ms"


def ratio(what: str, seconds: tuple[float, float], target: float | None = None) -> Row:
    ours, other = seconds
    return Row(what, shown(ours), shown(other), other / ours, target)


def one_by_one(bench: Bench) -> Iterator[Row]:
    """Batch 1, from ids and pixels to the vector, and the share of the machine's peak."""
    window = bench.source.windows.cut(TEXT)[0]
    padded = torch.zeros(1, bench.source.windows.length, dtype=torch.int64)
    padded[0, : len(window)] = torch.tensor(window)
    pixels = np.random.default_rng(0).normal(size=(1, 3, 224, 224)).astype(np.float32)
    tensor = torch.from_numpy(pixels)
    model = bench.source.model
    towers = (
        open_clip_towers.text_tower(model, start_token=window[0]),
        open_clip_towers.picture_tower(model),
    )
    tokens = len(window), len(towers[1].positions) + 1
    for precision, encoder in bench.encoders.items():
        bits = bench.manifest.variants[precision].text.weight_bits
        best = peak(bench.folder, None if bits == 32 else bits)
        runs = {
            "text": (partial(encoder.encode_windows, [window]), partial(model.encode_text, padded)),
            "picture": (
                partial(encoder.encode_pixels, pixels),
                partial(model.encode_image, tensor),
            ),
        }
        for (half, (ours, other)), tower, n in zip(runs.items(), towers, tokens, strict=True):
            seconds = compare(ours, other)
            what = f"{half}, {n} tokens, batch 1, {precision} against eager padded fp32"
            yield ratio(what, seconds, TARGETS[half, precision])
            rate = operations(tower, n) / seconds[0]
            what = f"  share of {best / 1e9:.0f} GOP/s, the {precision} products' peak here"
            yield Row(what, f"{rate / 1e9:.0f} GOP/s", "", rate / best)


def from_strings(bench: Bench) -> Iterator[Row]:
    """What a caller sees: a text or many, tokens included."""
    import open_clip

    tokenize = open_clip.get_tokenizer(NAME)
    model = bench.source.model
    many = list(made_up(seed=7).texts[:32])
    for precision, encoder in bench.encoders.items():
        for what, texts in (("a text", [TEXT]), ("32 texts of many lengths", many)):
            seconds = compare(
                partial(encoder.encode_texts, texts),
                lambda texts=texts: model.encode_text(tokenize(texts)),
                blocks=7 if len(texts) > 1 else 25,
            )
            yield ratio(f"{what}, tokenizer included, {precision}", seconds)
    seconds = compare(
        lambda: bench.source.encode_texts([TEXT]), lambda: model.encode_text(tokenize([TEXT]))
    )
    yield ratio("a text, tokenizer included, engine torch (cut to its length)", seconds)


def cosines(bench: Bench) -> Iterator[Row]:
    """int8 against the source on texts and pictures that the export did not see."""
    fresh = made_up(seed=99)
    encoder = bench.encoders["int8"]
    pairs = {
        "text": (encoder.encode_texts(fresh.texts), bench.source.encode_texts(fresh.texts)),
        "picture": (encoder.encode_images(fresh.images), bench.source.encode_images(fresh.images)),
    }
    for half, (ours, other) in pairs.items():
        A, B = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (ours, other))
        found = (A * B).sum(axis=1)
        what = f"least cosine of {len(found)} {half}s, int8, RANDOM weights"
        mean = f"mean {found.mean():.4f}"
        yield Row(what, mean, "", float(found.min()), LEAST_COSINE)


def starting(bench: Bench) -> Iterator[Row]:
    """From the start of the process to the first decision on a text and a picture."""
    picture = bench.folder / "picture.png"
    PIL.Image.new("RGB", (640, 480), (200, 180, 160)).save(picture)
    config = decided_by_int8(bench)
    ours = started("routed", config, picture)
    other = started("open_clip", bench.spec.pretrained, picture)
    seconds = [f"{found['seconds']:.2f} s" for found in (ours, other)]
    yield Row(
        "start to first decision, both halves, int8 (s)", *seconds, ours["seconds"], START_S, True
    )
    sizes = [f"{found['mb']:.0f} MB" for found in (ours, other)]
    yield Row("  resident memory then (MB)", *sizes, ours["mb"], START_MB, True)


def started(*arguments: object) -> dict[str, float]:
    """Return the quickest of a few runs."""
    program = Path(__file__).parent / "encoding_parts" / "starting.py"
    found = []
    for _ in range(STARTS):
        done = subprocess.run(  # noqa: S603  our own program
            [sys.executable, str(program), *map(str, arguments)],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
        found.append(json.loads(done.stdout.splitlines()[-1]))
    return min(found, key=lambda one: one["seconds"])


def decided_by_int8(bench: Bench) -> Path:
    """Write an artifact that has accepted int8, and the config that serves it."""
    torch.manual_seed(0)
    accepted = AcceptedEncoder(
        fingerprint=bench.manifest.fingerprint("int8"),
        precision="int8",
        samples=1,
        figures={},
        bounds={},
    )
    parts = FeatureParts(
        FeatureSpec(encoders=(bench.spec,), extra_columns=()),
        (bench.source.fingerprint,),
        (None,),
        fold(RouterNetwork(1024, 3, hidden_dims=(512, 256)).eval()),
    ).with_accepted(0, accepted)
    ids = ("small", "medium", "large")
    artifact = Artifact(
        ids,
        parts,
        Calibrator.identity(3),
        scored_modalities={name: ("text", "image") for name in ids},
        recommended_policy={"kind": "highest_probability"},
    )
    save_artifact(artifact, bench.folder / "artifact", created_by="benchmark", card="# card\n")
    config = bench.folder / "router.yml"
    config.write_text(
        "artifact: artifact\n"
        "encoder: {engine: onnx, folder: encoders, precision: int8, threads: 1}\n",
        encoding="utf-8",
    )
    return config


def files(_: Bench) -> Iterator[Row]:
    """Picture files to tensors."""
    return pictures.rows(compare, ratio)


def whole_decisions(bench: Bench) -> Iterator[Row]:
    """From the text to the decision, int8."""
    decided_by_int8(bench)
    configs = []
    for threads in (1, processors()):
        configs.append(bench.folder / f"whole-{threads}.yml")
        configs[-1].write_text(
            "artifact: artifact\n"
            f"encoder: {{engine: onnx, folder: encoders, precision: int8, threads: {threads}}}\n"
            "service: {batching: {cache_entries: 0}}\n",
            encoding="utf-8",
        )
    return whole.rows(*configs, Path(bench.spec.pretrained))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="exit with 1 if a target is missed")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        bench = prepare(Path(folder))
        parts = (
            *(one_by_one, from_strings, cosines, files, starting, whole_decisions),
            partial(openvino_rows.rows, compare=compare, text=TEXT),
        )
        rows = [row for part in parts for row in part(bench)]
    if arguments.json:
        print(json.dumps([asdict(row) | {"met": row.met} for row in rows], indent=2))
    else:
        print_table(rows)
    return int(arguments.check and any(row.met is False for row in rows))


if __name__ == "__main__":
    sys.exit(main())
