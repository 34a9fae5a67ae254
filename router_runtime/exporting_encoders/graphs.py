"""Towers as ONNX graphs, written as they shall run.

What these do that a traced model does not: token ids of any length (positions are cut to it);
causal attention inside the attention operator, without a mask in memory; only the row that is the
result goes through the last block's MLP; sums and norms stay two operators, because ONNX Runtime's
fused one takes eight times as long on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from router_runtime.exporting_encoders.quantising import (
    Plan,
    WeightBits,
    rounded_columns,
    rounded_rows,
)
from router_runtime.exporting_encoders.towers import (
    QUICK_GELU_ALPHA,
    Activation,
    Block,
    Linear,
    Norm,
    PictureTower,
    TextTower,
    Tower,
)

_CONTRIB = "com.microsoft"
_OPSET, _CONTRIB_OPSET, _IR_VERSION = 20, 1, 9


class _Graph:
    """Nodes and constants in the order in which they run."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.parameters = 0

    def constant(self, array: npt.NDArray[Any]) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        self.parameters += int(array.size)
        return name

    def integers(self, *values: int) -> str:
        name = self.constant(np.array(values, dtype=np.int64))
        self.parameters -= len(values)
        return name

    def add(
        self, kind: str, inputs: Sequence[str], *, contrib: bool = False, **attributes: Any
    ) -> str:
        return self.add_many(kind, inputs, 1, contrib=contrib, **attributes)[0]

    def add_many(
        self,
        kind: str,
        inputs: Sequence[str],
        outputs: int,
        *,
        contrib: bool = False,
        **attributes: Any,
    ) -> list[str]:
        number = len(self.nodes)
        names = [f"v{number}_{i}" for i in range(outputs)]
        domain = _CONTRIB if contrib else ""
        self.nodes.append(
            helper.make_node(
                kind, list(inputs), names, name=f"{kind}_{number}", domain=domain, **attributes
            )
        )
        return names

    def norm(self, x: str, norm: Norm) -> str:
        inputs = [x, self.constant(norm.gain), self.constant(norm.offset)]
        return self.add("LayerNormalization", inputs, epsilon=norm.epsilon)

    def linear(self, x: str, linear: Linear, bits: WeightBits | None) -> str:
        if bits is None:
            y = self.add("MatMul", [x, self.constant(linear.weight)])
            return y if linear.bias is None else self.add("Add", [y, self.constant(linear.bias)])
        weight, scales = rounded_columns(linear.weight, bits)
        zeros = np.zeros(weight.shape[1], dtype=np.int8)
        bias = np.zeros_like(scales) if linear.bias is None else linear.bias
        inputs = [x, *(self.constant(array) for array in (weight, scales, zeros, bias))]
        return self.add("DynamicQuantizeMatMul", inputs, contrib=True)


def text_graph(tower: TextTower, plan: Plan = Plan(), *, observed: bool = False) -> onnx.ModelProto:
    """Return the graph from ``ids`` int64 (n_texts, n_tokens) to float32 (n_texts, dim).

    The first id of each row is not looked at: it is the start token.

    Parameters
    ----------
    tower : TextTower
    plan : Plan
        The token embedding is rounded with the rest, by row.
    observed : bool
        Whether the graph has, after the vectors, the peaks of every norm that ``smoothed`` needs.
    """
    graph = _Graph()
    zero, one = graph.integers(0), graph.integers(1)
    length = graph.add("Shape", ["ids"], start=1, end=2)
    ids = graph.add("Slice", ["ids", one, length, one])
    if plan.weight_bits is None:
        x = graph.add("Gather", [graph.constant(tower.embedding), ids])
    else:
        table, scales = rounded_rows(tower.embedding)
        rows = graph.add("Gather", [graph.constant(table), ids])
        factors = graph.add("Gather", [graph.constant(scales), ids])
        x = graph.add("Mul", [graph.add("Cast", [rows], to=TensorProto.FLOAT), factors])
    here = graph.add("Slice", [graph.constant(tower.positions), one, length, zero])
    x = graph.add("Add", [x, here])
    end = graph.add("ArgMax", [ids], axis=1, keepdims=1)
    count = graph.add("Shape", ["ids"], start=0, end=1)
    shape = [count, graph.integers(tower.heads, 1, tower.width // tower.heads)]
    shape_of_start = graph.add("Concat", shape, axis=0)
    starts = [
        [
            graph.add("Expand", [graph.constant(part[None, :, None]), shape_of_start])
            for part in pair
        ]
        for pair in tower.start_keys_and_values()
    ]

    def pooled(rows: str) -> str:
        row = graph.add("GatherND", [rows, end], batch_dims=1)
        return graph.add("Unsqueeze", [row, one])

    norms = _transformer(graph, x, tower, plan, pooled, starts=starts)
    given = helper.make_tensor_value_info("ids", TensorProto.INT64, ["n_texts", "n_tokens"])
    return _model(graph, "text", given, tower.dim, norms if observed else [])


def picture_graph(
    tower: PictureTower, plan: Plan = Plan(), *, observed: bool = False
) -> onnx.ModelProto:
    """Return the graph from ``pixels`` float32 (n, 3, size, size) to float32 (n, dim).

    Parameters
    ----------
    tower : PictureTower
    plan : Plan
    observed : bool
        As in ``text_graph``.
    """
    graph = _Graph()
    side, patch = tower.size // tower.patch_size, tower.patch_size
    grid = graph.add("Reshape", ["pixels", graph.integers(0, 3, side, patch, side, patch)])
    grid = graph.add("Transpose", [grid], perm=[0, 2, 4, 1, 3, 5])
    rows = graph.add("Reshape", [grid, graph.integers(0, side * side, 3 * patch * patch)])
    x = graph.linear(rows, tower.patches, plan.bits(None))
    x = graph.add("Add", [x, graph.constant(tower.positions)])
    count = graph.add("Shape", ["pixels"], start=0, end=1)
    shape = graph.add("Concat", [count, graph.integers(1, tower.width)], axis=0)
    first = graph.add("Expand", [graph.constant(tower.class_token.reshape(1, 1, -1)), shape])
    x = graph.add("Concat", [first, x], axis=1)
    if tower.first_norm is not None:
        x = graph.norm(x, tower.first_norm)

    def pooled(rows: str) -> str:
        return graph.add("Gather", [rows, graph.integers(0)], axis=1)

    norms = _transformer(graph, x, tower, plan, pooled)
    pixels = helper.make_tensor_value_info(
        "pixels", TensorProto.FLOAT, ["n_pictures", 3, tower.size, tower.size]
    )
    return _model(graph, "picture", pixels, tower.dim, norms if observed else [])


def _transformer(
    graph: _Graph,
    x: str,
    tower: Tower,
    plan: Plan,
    pooled: Callable[[str], str],
    *,
    starts: Sequence[Sequence[str]] = (),
) -> list[str]:
    """Add blocks, norm and projection; return the outputs of the blocks' norms.

    ``pooled`` takes the name of (n, rows, width) and adds what leaves the row that is the result,
    as (n, 1, width). With ``starts``, each block's keys and values of the row before the first,
    attention is causal.
    """
    norms = []
    last = len(tower.blocks) - 1
    for number, block in enumerate(tower.blocks):
        bits = plan.bits(number)
        seen = graph.norm(x, block.norm_1)
        norms.append(seen)
        start = starts[number] if starts else ()
        attended = _attention(graph, seen, block, tower.heads, bits, start)
        if number == last:  # nobody reads the other rows
            x, attended = pooled(x), pooled(attended)
        x = graph.add("Add", [x, graph.linear(attended, block.out, bits)])
        seen = graph.norm(x, block.norm_2)
        norms.append(seen)
        inner = _activated(graph, graph.linear(seen, block.up, bits), tower.activation)
        x = graph.add("Add", [x, graph.linear(inner, block.down, bits)])
    x = graph.norm(x, tower.final_norm)
    x = graph.add("Squeeze", [x, graph.integers(1)])
    if tower.projection is not None:
        x = graph.linear(x, tower.projection, None)
    graph.add("Identity", [x])
    return norms


def _attention(
    graph: _Graph,
    x: str,
    block: Block,
    heads: int,
    bits: WeightBits | None,
    start: Sequence[str],
) -> str:
    width = block.qkv.weight.shape[1] // 3
    parts = graph.add_many(
        "Split",
        [graph.linear(x, block.qkv, bits), graph.integers(width, width, width)],
        3,
        axis=-1,
    )
    inputs = [*parts, "", "", "", *start] if start else parts  # no biases and no mask
    return graph.add_many(
        "MultiHeadAttention",
        inputs,
        3 if start else 1,  # with the keys and values that follow from both
        contrib=True,
        num_heads=heads,
        unidirectional=int(bool(start)),
    )[0]


def _activated(graph: _Graph, x: str, activation: Activation) -> str:
    if activation == "quick_gelu":
        return graph.add("QuickGelu", [x], contrib=True, alpha=QUICK_GELU_ALPHA)
    return graph.add("Gelu", [x], approximate="tanh" if activation == "gelu_tanh" else "none")


def _model(
    graph: _Graph, name: str, given: onnx.ValueInfoProto, dim: int, observed: Sequence[str]
) -> onnx.ModelProto:
    outputs = [(graph.nodes[-1].output[0], [given.type.tensor_type.shape.dim[0].dim_param, dim])]
    for rows in observed:
        size = graph.add("Abs", [rows])
        outputs.append((graph.add("ReduceMax", [size, graph.integers(0, 1)], keepdims=0), [None]))
    infos = [
        helper.make_tensor_value_info(output, TensorProto.FLOAT, shape) for output, shape in outputs
    ]
    made = helper.make_graph(graph.nodes, name, [given], infos, graph.constants)
    opsets = [helper.make_opsetid("", _OPSET), helper.make_opsetid(_CONTRIB, _CONTRIB_OPSET)]
    model = helper.make_model(
        made, opset_imports=opsets, ir_version=_IR_VERSION, producer_name="model-router"
    )
    helper.set_model_props(model, {"parameters": str(graph.parameters)})
    return model


def parameters_of(model: onnx.ModelProto) -> int:
    """Return how many numbers a graph of this module holds."""
    return next(int(entry.value) for entry in model.metadata_props if entry.key == "parameters")
