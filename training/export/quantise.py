"""A graph in dynamic int8: large weights as signed bytes, activations quantised as they come.

Weights are quantised by output, symmetric: w = scale_n * q with q in [-64, 64]. Not to 127: processors without VNNI add
two products of an unsigned and a signed byte in 16 bits, and 255 * 64 * 2 is what fits there. So every processor
computes the same integers, and only the last bits of the floats around them differ.

    y = x W^T:  x = s (u - z) with u in [0, 255], one s and z for all of x;  y_n = s * scale_n * sum_k (u_k - z) q_nk

An LSTM becomes ONNX Runtime's DynamicQuantizeLSTM, a product with weights MatMulInteger, and a table of embeddings is
kept in bytes and multiplied by its scale a row at a time. RNN and GRU have no such operator and stay as they are.
"""

from __future__ import annotations

import numpy as np
import onnx

from training.export.onnx_graph import Array, quantised
from training.export.rewriting import FLOAT, Rewriting

LARGEST = 64
# Elements from which on a weight is worth quantising; smaller ones stay as they are stored.
SMALLEST = 2**15
# Products shorter than this stay in float32: the integers save less than their way back to floats costs.
SHORTEST = 64
_DOMAIN = "com.microsoft"


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
            case "Gather" if self._is_large(node.input[0]):
                self._gather(node)
            case "Gemm" if _transposed(node) and self._is_large(node.input[1]):
                self._gemm(node)
            case "MatMul" if self._is_large(node.input[1]):
                weight, scale = self._by_columns(node.input[1])
                self._product(node.input[0], weight, scale, "", node.output[0])
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
        """Names of a weight's bytes (K, N) and scales (N,)."""
        stored, scales = rows(self.graph.constants[name].T)
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
            self._product(x, weight, scale, bias, node.output[0])
            return
        # All constants: the runtime does this once, when it loads the graph.
        floats = graph.node("Mul", graph.node("Cast", weight, to=FLOAT), self._beside(scale))
        graph.add("Gemm", [x, floats, bias], node.output, transB=1)

    def _beside(self, scale: str) -> str:
        """Scales (..., 1) for rows (..., K), from scales (...,)."""
        last = self.graph.weight("last_axis", np.array([-1]))
        return self.graph.node("Unsqueeze", scale, last)

    def _product(self, x: str, weight: str, scale: str, bias: str, output: str) -> None:
        """The nodes that ONNX Runtime joins into one DynamicQuantizeMatMul."""
        graph = self.graph
        stored, factor, zero = (f"{output}.{part}" for part in ("int8", "factor", "zero"))
        graph.add("DynamicQuantizeLinear", [x], [stored, factor, zero])
        sums = graph.node("Cast", graph.node("MatMulInteger", stored, weight, zero), to=FLOAT)
        factors = graph.node("Mul", factor, scale)
        if bias:
            graph.add("Add", [graph.node("Mul", sums, factors), bias], [output])
        else:
            graph.add("Mul", [sums, factors], [output])

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


def _transposed(node: onnx.NodeProto) -> bool:
    """Whether a Gemm is x W^T + b and no more."""
    return [(part.name, part.i) for part in node.attribute] == [("transB", 1)]
