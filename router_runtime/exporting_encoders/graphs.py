"""Towers as ONNX graphs, written as they shall run.

What these do that a traced model does not: token ids of any length (positions are cut to it);
causal attention inside the attention operator, without a mask in memory; where one row is the
result, no other goes through the last block's MLP; sums and norms stay two operators, because
ONNX Runtime's fused one takes eight times as long on the CPU.
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
    AttentionPooling,
    BidirectionalTextTower,
    Block,
    CausalTextTower,
    Linear,
    Norm,
    PictureTower,
    TextTower,
    Tower,
)
from router_runtime.types import F32

_CONTRIB = "com.microsoft"
_OPSET, _CONTRIB_OPSET, _IR_VERSION = 20, 1, 9
_LEAST_LENGTH = 1e-12  # torch's, where it normalises


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
            y = self.add("MatMul", [x, self.constant(linear.plain.weight)])
            return y if linear.bias is None else self.add("Add", [y, self.constant(linear.bias)])
        if linear.divisors is not None:
            x = self.add("Mul", [x, self.constant(1 / linear.divisors)])
        if not linear.kept_rows:
            return self._rounded(x, linear.weight, linear.bias, bits)
        split = len(linear.weight) - linear.kept_rows
        sizes = self.integers(split, linear.kept_rows)
        most, kept = self.add_many("Split", [x, sizes], 2, axis=-1)
        y = self._rounded(most, linear.weight[:split], linear.bias, bits)
        exact = self.add("MatMul", [kept, self.constant(linear.weight[split:])])
        return self.add("Add", [y, exact])

    def _rounded(self, x: str, weight: F32, bias: F32 | None, bits: WeightBits) -> str:
        rounded, scales = rounded_columns(weight, bits)
        given = np.zeros_like(scales) if bias is None else bias
        matrix, factors, added = (self.constant(array) for array in (rounded, scales, given))
        inputs = [x, matrix, factors, "", added]  # a zero point of 0 would take 3 % longer
        return self.add("DynamicQuantizeMatMul", inputs, contrib=True)


def text_graph(tower: TextTower, plan: Plan = Plan(), *, observed: bool = False) -> onnx.ModelProto:
    """Return the graph from ``ids`` int64 (n_texts, n_tokens) to float32 (n_texts, dim).

    Where what fills shorter texts up is masked, the graph also takes ``lengths`` int32 (n_texts,).
    In a causal tower the first id of each row is not looked at: it is the start token.

    Parameters
    ----------
    tower : TextTower
    plan : Plan
        The token embedding is rounded with the rest, by row.
    observed : bool
        Whether the graph has, after the vectors, three peaks per column for each block: of what
        enters ``qkv``, ``up`` and ``down``.
    """
    graph = _Graph()
    given = [helper.make_tensor_value_info("ids", TensorProto.INT64, ["n_texts", "n_tokens"])]
    if isinstance(tower, CausalTextTower):
        seen = _causal_text(graph, tower, plan)
    elif isinstance(tower, BidirectionalTextTower):
        seen = _bidirectional_text(graph, tower, plan)
        if tower.masked:
            given.append(helper.make_tensor_value_info("lengths", TensorProto.INT32, ["n_texts"]))
    else:
        raise TypeError(f"no graph of a {type(tower).__name__}")
    return _model(graph, "text", given, tower.dim, seen if observed else [])


def _causal_text(graph: _Graph, tower: CausalTextTower, plan: Plan) -> list[str]:
    zero, one = graph.integers(0), graph.integers(1)
    length = graph.add("Shape", ["ids"], start=1, end=2)
    ids = graph.add("Slice", ["ids", one, length, one])
    x = _embedded(graph, ids, tower, plan)
    here = graph.add("Slice", [graph.constant(tower.positions), one, length, zero])
    x = graph.add("Add", [x, here])
    end = graph.add("ArgMax", [ids], axis=1, keepdims=1)
    count = graph.add("Shape", ["ids"], start=0, end=1)
    parts = np.concatenate([part for pair in tower.start_keys_and_values() for part in pair])
    shape = [count, graph.integers(len(parts), 1, parts.shape[1])]
    expanded = graph.add(
        "Expand", [graph.constant(parts[None, :, None]), graph.add("Concat", shape, axis=0)]
    )
    number = 2 * len(tower.blocks)
    heads = [tower.heads] * number
    each = graph.add_many("Split", [expanded, graph.integers(*heads)], number, axis=1)
    starts = [each[i : i + 2] for i in range(0, number, 2)]

    def pooled(rows: str) -> str:
        row = graph.add("GatherND", [rows, end], batch_dims=1)
        return graph.add("Unsqueeze", [row, one])

    x, seen = _blocks(graph, x, tower, plan, only=pooled, starts=starts)
    _projected(graph, graph.add("Squeeze", [x, graph.integers(1)]), tower)
    return seen


def _bidirectional_text(graph: _Graph, tower: BidirectionalTextTower, plan: Plan) -> list[str]:
    zero, one = graph.integers(0), graph.integers(1)
    length = graph.add("Shape", ["ids"], start=1, end=2)
    x = _embedded(graph, "ids", tower, plan)
    positions = graph.constant(tower.positions)
    if tower.unplaced_token is None:
        here = graph.add("Slice", [positions, zero, length, zero])
    else:
        here = graph.add("Gather", [positions, _places(graph, tower.unplaced_token)])
    x = graph.add("Add", [x, here])
    if tower.first_norm is not None:
        x = graph.norm(x, tower.first_norm)
    lengths = "lengths" if tower.masked else ""
    if tower.pooling == "mean":
        x, seen = _blocks(graph, x, tower, plan, lengths=lengths)
        shares = _shares(graph, length, lengths)
        x = graph.add("MatMul", [shares, x])
    else:
        row = graph.integers(0 if tower.pooling == "first" else -1)

        def pooled(rows: str) -> str:
            return graph.add("Gather", [rows, row], axis=1)

        x, seen = _blocks(graph, x, tower, plan, only=pooled, lengths=lengths)
    x = _projected(graph, graph.add("Squeeze", [x, one]), tower)
    if tower.normalised:
        size = graph.add("ReduceL2", [x, one])
        least = graph.constant(np.array(_LEAST_LENGTH, dtype=np.float32))
        graph.add("Div", [x, graph.add("Max", [size, least])])
    return seen


def _places(graph: _Graph, unplaced: int) -> str:
    """Add the number of each token's position, (n, n_tokens), as RoBERTa counts."""
    number = graph.integers(unplaced)
    other = graph.add("Not", [graph.add("Equal", ["ids", number])])
    counted = graph.add("Cast", [other], to=TensorProto.INT64)
    place = graph.add("Mul", [graph.add("CumSum", [counted, graph.integers(1)]), counted])
    return graph.add("Add", [place, number])


def _shares(graph: _Graph, length: str, lengths: str) -> str:
    """Add (n, 1, n_tokens): what each token's row has in the mean of its text's."""
    zero, one = graph.integers(0), graph.integers(1)
    scalars = [graph.add("Squeeze", [x, zero]) for x in (zero, length, one)]
    tokens = graph.add("Range", scalars)
    counts = graph.add("Unsqueeze", [graph.add("Cast", [lengths], to=TensorProto.INT64), one])
    inside = graph.add("Cast", [graph.add("Less", [tokens, counts])], to=TensorProto.FLOAT)
    parts = [inside, graph.add("Cast", [counts], to=TensorProto.FLOAT)]
    return graph.add("Unsqueeze", [graph.add("Div", parts), one])


def _embedded(graph: _Graph, ids: str, tower: TextTower, plan: Plan) -> str:
    if plan.weight_bits is None:
        return graph.add("Gather", [graph.constant(tower.embedding), ids])
    table, scales = rounded_rows(tower.embedding)
    rows = graph.add("Gather", [graph.constant(table), ids])
    factors = graph.add("Gather", [graph.constant(scales), ids])
    return graph.add("Mul", [graph.add("Cast", [rows], to=TensorProto.FLOAT), factors])


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
    if len(tower.first_rows):
        first = _repeated(graph, tower.first_rows, count)
        x = graph.add("Concat", [first, x], axis=1)
    if tower.first_norm is not None:
        x = graph.norm(x, tower.first_norm)
    if tower.pooling is None:

        def pooled(rows: str) -> str:
            return graph.add("Gather", [rows, graph.integers(0)], axis=1)

        x, seen = _blocks(graph, x, tower, plan, only=pooled)
    else:
        x, seen = _blocks(graph, x, tower, plan)
        x = _attention_pooled(graph, x, tower, tower.pooling, plan, count)
    _projected(graph, graph.add("Squeeze", [x, graph.integers(1)]), tower)
    pixels = helper.make_tensor_value_info(
        "pixels", TensorProto.FLOAT, ["n_pictures", 3, tower.size, tower.size]
    )
    return _model(graph, "picture", [pixels], tower.dim, seen if observed else [])


def _repeated(graph: _Graph, rows: F32, count: str) -> str:
    """Add (count, n_rows, width) of (n_rows, width)."""
    shape = graph.add("Concat", [count, graph.integers(*rows.shape)], axis=0)
    return graph.add("Expand", [graph.constant(rows[None]), shape])


def _attention_pooled(
    graph: _Graph, x: str, tower: Tower, pooling: AttentionPooling, plan: Plan, count: str
) -> str:
    bits, width = plan.bits(None), tower.width
    keys_and_values = graph.linear(x, pooling.keys_and_values, bits)
    parts = graph.add_many("Split", [keys_and_values, graph.integers(width, width)], 2, axis=-1)
    query = _repeated(graph, pooling.query[None], count)
    x = graph.add("MultiHeadAttention", [query, *parts], contrib=True, num_heads=tower.heads)
    x = graph.linear(x, pooling.out, bits)
    seen = graph.norm(x, pooling.norm)
    inner = _activated(graph, graph.linear(seen, pooling.up, bits), tower.activation)
    return graph.add("Add", [x, graph.linear(inner, pooling.down, bits)])


def _blocks(
    graph: _Graph,
    x: str,
    tower: Tower,
    plan: Plan,
    *,
    only: Callable[[str], str] | None = None,
    starts: Sequence[Sequence[str]] = (),
    lengths: str = "",
) -> tuple[str, list[str]]:
    """Add blocks and final norm; return the rows, and what enters each ``qkv``, ``up``, ``down``.

    ``only`` takes the name of (n, rows, width) and adds what leaves the row that is the result,
    as (n, 1, width). With ``starts``, each block's keys and values of the row before the first,
    attention is causal. With ``lengths`` no row sees those behind its text's end.
    """
    seen = []
    last = len(tower.blocks) - 1
    for number, block in enumerate(tower.blocks):
        bits = plan.bits(number)
        rows = graph.norm(x, block.norm_1) if tower.norm_first else x
        seen.append(rows)
        start = starts[number] if starts else ()
        attended = _attention(graph, rows, block, tower.heads, bits, start, lengths)
        if number == last and only is not None:  # nobody reads the other rows
            x, attended = only(x), only(attended)
        x = graph.add("Add", [x, graph.linear(attended, block.out, bits)])
        rows = graph.norm(x, block.norm_2 if tower.norm_first else block.norm_1)
        seen.append(rows)
        inner = _activated(graph, graph.linear(rows, block.up, bits), tower.activation)
        seen.append(inner)
        x = graph.add(
            "Add", [x if tower.norm_first else rows, graph.linear(inner, block.down, bits)]
        )
        if not tower.norm_first:
            x = graph.norm(x, block.norm_2)
    return x if tower.final_norm is None else graph.norm(x, tower.final_norm), seen


def _projected(graph: _Graph, x: str, tower: Tower) -> str:
    if tower.projection is not None:
        x = graph.linear(x, tower.projection, None)
    return graph.add("Identity", [x])


def _attention(
    graph: _Graph,
    x: str,
    block: Block,
    heads: int,
    bits: WeightBits | None,
    start: Sequence[str],
    lengths: str,
) -> str:
    width = block.qkv.weight.shape[1] // 3
    parts = graph.add_many(
        "Split",
        [graph.linear(x, block.qkv, bits), graph.integers(width, width, width)],
        3,
        axis=-1,
    )
    inputs = [*parts, "", lengths, "", *start]  # no biases
    while not inputs[-1]:
        inputs.pop()
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
    graph: _Graph,
    name: str,
    given: Sequence[onnx.ValueInfoProto],
    dim: int,
    observed: Sequence[str],
) -> onnx.ModelProto:
    rows = given[0].type.tensor_type.shape.dim[0].dim_param
    outputs = [(graph.nodes[-1].output[0], [rows, dim])]
    for rows_seen in observed:
        size = graph.add("Abs", [rows_seen])
        outputs.append((graph.add("ReduceMax", [size, graph.integers(0, 1)], keepdims=0), [None]))
    infos = [
        helper.make_tensor_value_info(output, TensorProto.FLOAT, shape) for output, shape in outputs
    ]
    made = helper.make_graph(graph.nodes, name, list(given), infos, graph.constants)
    opsets = [helper.make_opsetid("", _OPSET), helper.make_opsetid(_CONTRIB, _CONTRIB_OPSET)]
    model = helper.make_model(
        made, opset_imports=opsets, ir_version=_IR_VERSION, producer_name="model-router"
    )
    helper.set_model_props(model, {"parameters": str(graph.parameters)})
    return model


def parameters_of(model: onnx.ModelProto) -> int:
    """Return how many numbers a graph of this module holds."""
    return next(int(entry.value) for entry in model.metadata_props if entry.key == "parameters")
