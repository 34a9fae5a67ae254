"""``prediction/encoders/onnx_*``: what stands here needs an exported encoder."""

from __future__ import annotations

import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from pydantic import ValidationError

from router_runtime.config import EncoderRuntime, load_config
from router_runtime.errors import EncoderError
from router_runtime.prediction.encoders import build_encoder

from .conftest import TEXTS, picture

pytest.importorskip("onnxruntime")


@pytest.fixture
def copy(exported, tmp_path):
    """A copy of the exported encoder that a test may damage."""
    return shutil.copytree(exported[1], tmp_path / "copy")


def at(folder, precision="fp32", **changes):
    return EncoderRuntime(engine="onnx", folder=folder, precision=precision, **changes)


def test_a_batch_gives_what_one_by_one_gives(spec, runtime):
    encoder = build_encoder(spec, runtime=runtime())
    one_by_one = np.vstack([encoder.encode_texts([text]) for text in TEXTS])
    np.testing.assert_allclose(encoder.encode_texts(TEXTS), one_by_one, atol=1e-5)
    images = [picture(seed, size=(30 + seed, 40)) for seed in (1, 2, 3, 1, 4)]
    one_by_one = np.vstack([encoder.encode_images([image]) for image in images])
    np.testing.assert_allclose(encoder.encode_images(images), one_by_one, atol=1e-5)
    assert encoder.encode_texts([]).shape == encoder.encode_images([]).shape == (0, 32)


def test_equal_windows_are_encoded_once_and_batches_end_with_their_longest(spec, runtime):
    encoder = build_encoder(spec, runtime=runtime())
    asked = []
    run = encoder._text_graph.run

    def counting(inputs):
        asked.append(inputs["ids"].shape)
        return run(inputs)

    encoder._text_graph.run = counting
    encoder.encode_texts(["a", "a", "one two three", "b", "c", "d", "e"])
    assert asked == [(4, 5), (2, 3)]
    asked.clear()
    long = " ".join(map(str, range(100, 300)))
    encoder.encode_texts([long, long])  # three windows each
    assert asked == [(3, 77)]


def test_one_run_takes_no_more_than_is_quick(spec, runtime, monkeypatch):
    encoder = build_encoder(spec, runtime=runtime().model_copy(update={"batch_size": 64}))
    whole = encoder.encode_texts(TEXTS)
    asked = []
    run = encoder._text_graph.run

    def counting(inputs):
        asked.append(inputs["ids"].size)
        return run(inputs)

    encoder._text_graph.run = counting
    encoder.encode_texts([f"{number} " * 90 for number in range(20)])  # two windows each
    assert len(asked) > 2
    assert max(asked) <= 512
    asked.clear()
    monkeypatch.setattr("router_runtime.prediction.encoders.onnx_encoder._TOKENS", 1)
    np.testing.assert_allclose(encoder.encode_texts(TEXTS), whole, atol=1e-5)
    assert len(asked) == len(set(TEXTS))  # one window each, the equal ones once
    pixels = np.stack([encoder._preprocess(picture(seed)) for seed in range(10)])
    both = np.vstack([encoder.encode_pixels(pixels[:8]), encoder.encode_pixels(pixels[8:])])
    np.testing.assert_array_equal(encoder.encode_pixels(pixels), both)


def test_threads_may_share_an_encoder(spec, runtime):
    encoder = build_encoder(spec, runtime=runtime(threads=2))
    expected = encoder.encode_texts(["b"])
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: encoder.encode_texts(["b"]), range(20)):
            np.testing.assert_array_equal(found, expected)


def test_cpus_bind_the_session_and_not_the_caller(spec, runtime):
    before = os.sched_getaffinity(0)
    encoder = build_encoder(spec, runtime=runtime(cpus=[min(before)]))
    assert os.sched_getaffinity(0) == before
    assert encoder._text_graph._thread.call(os.sched_getaffinity, 0) == {min(before)}
    plain = build_encoder(spec, runtime=runtime())
    np.testing.assert_array_equal(encoder.encode_texts(TEXTS), plain.encode_texts(TEXTS))


def test_a_cpu_that_is_not_there_is_refused(spec, runtime):
    with pytest.raises(EncoderError, match="this process may run on"):
        build_encoder(spec, runtime=runtime(cpus=[60_000]))


@pytest.mark.parametrize("name", ["text.fp32.onnx", "picture.fp32.bin"])
def test_a_changed_or_missing_file_is_refused(spec, copy, name):
    data = (copy / name).read_bytes()
    (copy / name).write_bytes(bytes([data[0] ^ 1]) + data[1:])
    with pytest.raises(EncoderError, match="changed after it was exported"):
        build_encoder(spec, runtime=at(copy))
    (copy / name).unlink()
    with pytest.raises(EncoderError, match="cannot be read"):
        build_encoder(spec, runtime=at(copy))


def test_files_of_another_precision_are_not_read(spec, copy):
    for path in copy.glob("*.int8.*"):
        path.unlink()
    assert build_encoder(spec, runtime=at(copy)).precision == "fp32"


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.update(format_version=3),
        lambda m: m.update(files={}),
        lambda m: m["variants"]["fp32"]["text"].update(file="../elsewhere"),
        lambda m: m["spec"].update(kind="elsewhere"),
    ],
)
def test_a_damaged_manifest_is_refused(spec, copy, change):
    content = json.loads((copy / "encoder.json").read_text())
    change(content)
    (copy / "encoder.json").write_text(json.dumps(content))
    with pytest.raises(EncoderError, match="again"):
        build_encoder(spec, runtime=at(copy))


def test_a_precision_that_was_not_exported_is_named(spec, copy):
    content = json.loads((copy / "encoder.json").read_text())
    del content["variants"]["int8"]
    (copy / "encoder.json").write_text(json.dumps(content))
    with pytest.raises(EncoderError, match=r"holds no int8 \(exported: fp32\)"):
        build_encoder(spec, runtime=at(copy, "int8"))


def test_an_empty_folder_says_how_to_fill_it(spec, tmp_path):
    with pytest.raises(EncoderError, match=r"holds no exported encoder.*export-encoder"):
        build_encoder(spec, runtime=at(tmp_path))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"engine": "onnx"}, "needs 'folder'"),
        ({"engine": "onnx", "folder": "x", "device": "cuda"}, "runs on the CPU"),
        ({"folder": "x"}, "'folder' counts for 'engine: onnx' or 'openvino' alone"),
        ({"threads": 2}, "'threads' counts"),
        ({"precision": "int4"}, "precision"),
        ({"engine": "openvino"}, "'engine: openvino' needs 'folder'"),
        ({"engine": "onnx", "folder": "x", "precision": "bf16"}, "bf16' needs 'engine: openvino'"),
        ({"engine": "openvino", "folder": "x", "precision": "int8"}, "needs 'engine: onnx'"),
        ({"engine": "openvino", "folder": "x", "threads": 2, "cpus": [0]}, "needs 'threads: 1'"),
    ],
)
def test_settings_that_would_count_for_nothing_are_refused(given, message):
    with pytest.raises(ValidationError, match=message):
        EncoderRuntime(**given)


def test_a_config_names_the_folder_relative_to_itself(tmp_path):
    (tmp_path / "router.yml").write_text(
        "artifact: a\nencoder: {engine: onnx, folder: encoders, precision: int8, threads: 1}\n"
    )
    config = load_config(tmp_path / "router.yml")
    assert config.encoder.folder == (tmp_path / "encoders").resolve()
