"""A graph that computes in float16 where a GPU gains by it: embeddings, recurrent layers and products with weights.

All else, sums over a vocabulary and normalising above all, stays in float32, and so do inputs, outputs and state:
a session may go on in the other graph. Between two float16 operators nothing is cast.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx

from training.export.rewriting import FLOAT, FLOAT16, Rewriting

_PRODUCTS = frozenset({"MatMul", "Gemm"})
_RECURRENT = frozenset({"RNN", "LSTM", "GRU"})
# They move numbers and compute none, so they take the type of what they get.
_MOVING = frozenset({"Squeeze", "Transpose", "Reshape"})
# Of a recurrent operator, the input that counts time steps.
_LENGTHS = 4
# 2^13 + 1: x f - (x f - x) is x rounded to the 11 bits of float16 (Veltkamp 1968; Dekker 1971).
_FACTOR = np.array(8193, np.float32)


def float16(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same model with its weights and its large products in float16.

    Args:
        model: A graph of `GraphBuilder`.

    Returns:
        A graph with the same inputs, outputs and state, in float32.
    """
    return _halved(model, emulated=False)


def emulated(model: onnx.ModelProto) -> onnx.ModelProto:
    """What `float16` computes, in float32 rounded to float16 where that rounds.

    For a processor: ONNX Runtime has float32 operators only there and drops the casts between them, so the graph itself
    would look more exact than it is on a GPU. Numbers beyond the range of float16 are not emulated.
    """
    return _halved(model, emulated=True)


def _halved(model: onnx.ModelProto, *, emulated: bool) -> onnx.ModelProto:
    halving = _Halving(Rewriting(model), emulated=emulated)
    for node in model.graph.node:
        halving.take(node)
    return halving.graph.model()


class _Halving:
    def __init__(self, graph: Rewriting, *, emulated: bool) -> None:
        self.graph = graph
        self._emulated = emulated
        self._halves: dict[str, str] = {}

    def take(self, node: onnx.NodeProto) -> None:
        """Take over a node, in float16 if it is one of those."""
        match node.op_type:
            case operator if operator in _RECURRENT:
                inputs = [
                    name if not name or place == _LENGTHS else self._half(name)
                    for place, name in enumerate(node.input)
                ]
                self._add(node, inputs)
            case operator if operator in _PRODUCTS and self.graph.parts(node.input[1]):
                self._add(node, [self._half(name) for name in node.input])
            case "Gather" if self.graph.parts(node.input[0]):
                self._add(node, [self._half(node.input[0]), node.input[1]])
            case operator if operator in _MOVING and node.input[0] in self._halves:
                self._add(node, [self._halves[node.input[0]], *node.input[1:]])
            case _:
                self.graph.keep(node)

    def _add(self, node: onnx.NodeProto, inputs: Sequence[str]) -> None:
        """A node in float16, and its outputs in float32 for whoever wants them so."""
        outputs = [name and f"{name}.float16" for name in node.output]
        added = self.graph.add(node.op_type, inputs, outputs)
        added.attribute.extend(node.attribute)
        for name, half in zip(node.output, outputs, strict=True):
            if not name:
                continue
            if self._emulated:
                self._halves[name] = self._rounded(half, name)
            else:
                self._halves[name] = half
                self.graph.add("Cast", [half], [name], to=FLOAT)

    def _half(self, name: str) -> str:
        """A value in float16."""
        graph = self.graph
        if name not in self._halves:
            if name in graph.constants:
                weight = graph.constants[name].astype(np.float16)
                stored = weight.astype(np.float32) if self._emulated else weight
                self._halves[name] = graph.weight(f"{name}.half", stored)
            elif name in graph.joined:
                parts = [self._half(part) for part in graph.joined[name]]
                self._halves[name] = graph.node("Concat", *parts, axis=0)
            elif self._emulated:
                self._halves[name] = self._rounded(name, f"{name}.rounded")
            else:
                self._halves[name] = graph.node("Cast", name, to=FLOAT16)
        return self._halves[name]

    def _rounded(self, value: str, name: str) -> str:
        """A float32 value with the bits of float16, under a name."""
        graph = self.graph
        spread = graph.node("Mul", value, graph.weight("rounding_factor", _FACTOR))
        graph.add("Sub", [spread, graph.node("Sub", spread, value)], [name])
        return name
