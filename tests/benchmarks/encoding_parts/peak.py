"""How fast this machine multiplies matrices, and how many products an encoding is.

The peak is the best of several runs of ONNX Runtime on one large product, of the same precision and
with the same number of threads: what a graph could reach that was nothing but such products.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from router_runtime.exporting_encoders.quantising import WeightBits, rounded_columns
from router_runtime.exporting_encoders.towers import PictureTower, TextTower
from router_runtime.prediction.encoders.onnx_session import OnnxSession

SIDE = 1024


def peak(folder: Path, bits: WeightBits | None) -> float:
    """Return operations per second of a product of two (1024, 1024) matrices."""
    rng = np.random.default_rng(0)
    weight, x = (rng.normal(size=(SIDE, SIDE)).astype(np.float32) for _ in range(2))
    constants, domain, kind = {"w": weight}, "", "MatMul"
    if bits is not None:
        rounded, scales = rounded_columns(weight, bits)
        constants = {"w": rounded, "s": scales}
        domain, kind = "com.microsoft", "DynamicQuantizeMatMul"
    node = helper.make_node(kind, ["x", *constants], ["y"], domain=domain)
    shape = [SIDE, SIDE]
    graph = helper.make_graph(
        [node],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [onnx.numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    path = folder / f"product-{bits}.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), str(path))
    session = OnnxSession(path, threads=1)
    best = float("inf")
    for _ in range(100):
        started = time.process_time()
        session.run({"x": x})
        best = min(best, time.process_time() - started)
    return 2 * SIDE**3 / best


def operations(tower: TextTower | PictureTower, tokens: int) -> int:
    """Return the operations of one encoding's weight products; attention itself is left out.

    A text's start token costs nothing, and of the last block only one row is read.
    """
    total = 0
    rows = tokens if isinstance(tower, PictureTower) else tokens - 1
    last = len(tower.blocks) - 1
    for number, block in enumerate(tower.blocks):
        total += rows * block.qkv.weight.size
        read = 1 if number == last else rows
        total += read * sum(one.weight.size for one in (block.out, block.up, block.down))
    if isinstance(tower, PictureTower):
        total += (rows - 1) * tower.patches.weight.size
    return 2 * (total + (0 if tower.projection is None else tower.projection.weight.size))
