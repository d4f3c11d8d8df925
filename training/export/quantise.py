"""A graph in dynamic int8: large weights as signed bytes, activations quantised as they come.

Weights are quantised by output, symmetric: w = scale_n * q with q in [-64, 64]. Not to 127: processors without VNNI add
two products of an unsigned and a signed byte in 16 bits, and 255 * 64 * 2 is what fits there. So every processor
computes the same integers, and only the last bits of the floats around them differ.

    y = x W^T:  x = s (u - z) with u in [0, 255], one s and z for all of x;  y_n = s * scale_n * sum_k (u_k - z) q_nk

An LSTM becomes ONNX Runtime's DynamicQuantizeLSTM, a product with weights MatMulInteger, and a table of embeddings is
kept in bytes and multiplied by its scale a row at a time. RNN and GRU have no such operator: theirs is a Scan over the
time steps, with the equations of ONNX inside and the inputs of all steps multiplied before it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

from training.export.onnx_graph import Array, quantised
from training.export.rewriting import FLOAT, Rewriting

LARGEST = 64
# Elements from which on a weight is worth quantising; smaller ones stay as they are stored.
SMALLEST = 2**15
# Products shorter than this stay in float32: the integers save less than their way back to floats costs.
SHORTEST = 64
_DOMAIN = "com.microsoft"
# Inputs and outputs of an RNN or GRU that has lengths and a state.
_WITH_STATE = (6, 2)


def int8(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same model in dynamic int8.

    Args:
        model: A graph of `GraphBuilder`.

    Returns:
        A graph with the same inputs, outputs and state. What it does not quantise it takes over as it is.
    """
    quantising = _Quantising(Rewriting(model))
    for node in model.graph.node:
        quantising.take(node)
    return quantising.graph.model(_DOMAIN)


def rows(weight: Array) -> tuple[Array, Array]:
    """Quantise each row of a weight (N, K).

    Returns:
        Bytes (N, K) in [-64, 64] and scales (N,) float32.
    """
    return quantised(weight, LARGEST)


class _Quantising:
    def __init__(self, graph: Rewriting) -> None:
        self.graph = graph
        self._quantised: dict[str, tuple[str, str]] = {}

    def take(self, node: onnx.NodeProto) -> None:
        """Take over a node, or put others in its place."""
        match node.op_type:
            case "LSTM":
                self._lstm(node)
            case "RNN" | "GRU" if self._is_cell(node):
                self._recurrent(node)
            case "Gather" if self._is_large(node.input[0]):
                self._gather(node)
            case "Gemm" if _transposed(node) and self._is_large(node.input[1]):
                self._gemm(node)
            case "MatMul" if self._is_large(node.input[1]):
                self._product(node.input[0], self._by_columns(node.input[1]), "", node.output[0])
            case _:
                self.graph.keep(node)

    def _is_large(self, name: str) -> bool:
        """Whether a value is a weight (N, K) that is worth quantising."""
        parts = self.graph.parts(name)
        return all(part.ndim == 2 for part in parts) and sum(p.size for p in parts) >= SMALLEST

    def _by_rows(self, name: str) -> tuple[str, str]:
        """Names of a weight's bytes (N, K) and scales (N,), stored once however often it is used."""
        graph = self.graph
        if name not in self._quantised and name in graph.joined:
            parts = [self._by_rows(part) for part in graph.joined[name]]
            stored = graph.node("Concat", *(bytes_ for bytes_, _ in parts), axis=0)
            scales = graph.node("Concat", *(scale for _, scale in parts), axis=0)
            self._quantised[name] = (stored, scales)
        elif name not in self._quantised:
            self._quantised[name] = self._store(name, *rows(graph.constants[name]))
        return self._quantised[name]

    def _by_columns(self, name: str) -> tuple[str, str]:
        """Names of bytes (K, N) and scales (N,) of a weight (K, N), or of an operator's, (1, N, K)."""
        weight = self.graph.constants[name]
        stored, scales = rows(weight[0] if weight.ndim > 2 else weight.T)
        return self._store(f"{name}.columns", stored.T, scales)

    def _store(self, name: str, stored: Array, scales: Array) -> tuple[str, str]:
        graph = self.graph
        return graph.weight(f"{name}.int8", stored), graph.weight(f"{name}.scales", scales)

    def _gather(self, node: onnx.NodeProto) -> None:
        graph, (weight, scale) = self.graph, self._by_rows(node.input[0])
        vectors = graph.node("Cast", graph.node("Gather", weight, node.input[1]), to=FLOAT)
        factors = graph.node("Gather", scale, node.input[1])
        graph.add("Mul", [vectors, self._beside(factors)], node.output)

    def _gemm(self, node: onnx.NodeProto) -> None:
        graph = self.graph
        x, name, bias = node.input
        weight, scale = self._by_rows(name)
        if graph.parts(name)[0].shape[1] >= SHORTEST:
            weight = graph.node("Transpose", weight, perm=[1, 0])
            self._product(x, (weight, scale), bias, node.output[0])
            return
        # All constants: the runtime does this once, when it loads the graph.
        floats = graph.node("Mul", graph.node("Cast", weight, to=FLOAT), self._beside(scale))
        graph.add("Gemm", [x, floats, bias], node.output, transB=1)

    def _beside(self, scale: str) -> str:
        """Scales (..., 1) for rows (..., K), from scales (...,)."""
        last = self.graph.weight("last_axis", np.array([-1]))
        return self.graph.node("Unsqueeze", scale, last)

    def _product(self, x: str, weight: tuple[str, str], bias: str, output: str) -> str:
        """The nodes that ONNX Runtime joins into one DynamicQuantizeMatMul; gives the name of its output."""
        graph = self.graph
        stored, factor, zero = (f"{output}.{part}" for part in ("int8", "factor", "zero"))
        graph.add("DynamicQuantizeLinear", [x], [stored, factor, zero])
        sums = graph.node("Cast", graph.node("MatMulInteger", stored, weight[0], zero), to=FLOAT)
        factors = graph.node("Mul", factor, weight[1])
        if bias:
            graph.add("Add", [graph.node("Mul", sums, factors), bias], [output])
        else:
            graph.add("Mul", [sums, factors], [output])
        return output

    def _lstm(self, node: onnx.NodeProto) -> None:
        """X, W, R, B, lengths, h, c, P; W and R (D, 4H, K) become bytes (D, K, 4H) with scales (D, 4H)."""
        graph = self.graph
        inputs = [*node.input, *[""] * (8 - len(node.input))]
        for place in (1, 2):
            name = inputs[place]
            directions = [rows(direction) for direction in graph.constants[name]]
            stored = np.stack([direction.T for direction, _ in directions])
            factors = np.stack([scales for _, scales in directions])
            inputs[place], scale = self._store(name, stored, factors)
            inputs += [scale, graph.weight(f"{name}.zeros", np.zeros(factors.shape, np.int8))]
        added = graph.add("DynamicQuantizeLSTM", inputs, node.output, domain=_DOMAIN)
        added.attribute.extend(node.attribute)

    def _is_cell(self, node: onnx.NodeProto) -> bool:
        """Whether an RNN or GRU is large, one way, with lengths and a state, and in the variant that torch has."""
        given = _attributes(node)
        return (
            self.graph.constants[node.input[2]].size >= SMALLEST
            and given.get("direction", b"forward") == b"forward"
            and (len(node.input), len(node.output)) == _WITH_STATE
            and (node.op_type == "RNN" or given.get("linear_before_reset") == 1)
        )

    def _recurrent(self, node: onnx.NodeProto) -> None:
        """X (T, B, K), W, R, B, lengths, h (1, B, H) to Y (T, 1, B, H) and the last state (1, B, H)."""
        graph = self.graph
        x, w, r, b, lengths, h = node.input
        y, last = node.output
        before, of_state = np.split(graph.constants[b][0], 2)
        first, second = (graph.weight(f"axis_{i}", np.array([i])) for i in range(2))
        zero, one = (graph.weight(f"number_{i}", np.array(i)) for i in range(2))
        bias = graph.weight(f"{b}.inputs", before)
        inputs = self._product(x, self._by_columns(w), bias, f"{y}.inputs")
        steps = graph.node("Squeeze", graph.node("Shape", x, start=0, end=1))
        steps = graph.node("Cast", graph.node("Range", zero, steps, one), to=TensorProto.INT32)
        ends = graph.node("Unsqueeze", lengths, second)  # (B, 1)
        old, now, step, new = (f"{y}.{part}" for part in ("old", "now", "step", "new"))
        with graph.inside() as inner:
            bias = graph.weight(f"{b}.state", of_state)
            sums = self._product(old, self._by_columns(r), bias, f"{y}.sums")
            after = self._cell(node, old, now, sums)
            # A row that has ended keeps its state.
            graph.add("Where", [graph.node("Less", step, ends), after, old], [new])
            graph.add("Identity", [new], [f"{new}.output"])
        size = graph.constants[r].shape[-1]
        vectors = [_vector(name, size) for name in (new, f"{new}.output")]
        given = [_vector(old, size), _vector(now, len(before)), _step(step)]
        body = onnx.helper.make_graph(inner, "cell", given, vectors)
        scanned = [f"{last}.flat", f"{y}.flat"]
        start = graph.node("Squeeze", h, first)
        graph.add("Scan", [start, inputs, steps], scanned, body=body, num_scan_inputs=2)
        graph.add("Unsqueeze", [scanned[0], first], [last])
        graph.add("Unsqueeze", [scanned[1], second], [y])

    def _cell(self, node: onnx.NodeProto, old: str, x: str, h: str) -> str:
        """The next state from the old one, and from W x + b and R h + b, (B, G * H) each with the gates of ONNX."""
        graph = self.graph
        if node.op_type == "RNN":
            kinds = _attributes(node).get("activations", [b"Tanh"])
            return graph.node(kinds[0].decode(), graph.node("Add", x, h))
        (update, reset, new), (of_update, of_reset, of_new) = (self._gates(part) for part in (x, h))
        update = graph.node("Sigmoid", graph.node("Add", update, of_update))
        reset = graph.node("Sigmoid", graph.node("Add", reset, of_reset))
        new = graph.node("Tanh", graph.node("Add", new, graph.node("Mul", reset, of_new)))
        # (1 - z) n + z h
        more = graph.node("Mul", update, graph.node("Sub", old, new))
        return graph.node("Add", new, more)

    def _gates(self, value: str) -> list[str]:
        names = [f"{value}.gate_{i}" for i in range(3)]
        self.graph.add("Split", [value], names, axis=-1, num_outputs=3)
        return names


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {part.name: onnx.helper.get_attribute_value(part) for part in node.attribute}


def _vector(name: str, size: int) -> onnx.ValueInfoProto:
    return onnx.helper.make_tensor_value_info(name, FLOAT, ["B", size])


def _step(name: str) -> onnx.ValueInfoProto:
    return onnx.helper.make_tensor_value_info(name, TensorProto.INT32, [])


def _transposed(node: onnx.NodeProto) -> bool:
    """Whether a Gemm is x W^T + b and no more."""
    return [(part.name, part.i) for part in node.attribute] == [("transB", 1)]
