"""A graph taken over node by node, with others put in the place of some. Knows weights; nothing of what they become."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from training.export.onnx_graph import Array

FLOAT, FLOAT16 = TensorProto.FLOAT, TensorProto.FLOAT16


class Rewriting:
    """The nodes and weights of a new graph, on their way.

    Args:
        model: A graph of `GraphBuilder`, weights stored in either format.

    Attributes:
        constants: Values that the old graph holds, weights in float32, by name.
        joined: Names of the constants that a value is made of, one below the other.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.constants: dict[str, Array] = {}
        self.joined: dict[str, list[str]] = {}
        self._old = model
        self._nodes: list[onnx.NodeProto] = []
        self._weights = {part.name: part for part in model.graph.initializer}
        self._count = 0
        for name, part in self._weights.items():
            self.constants[name] = numpy_helper.to_array(part)
        for node in model.graph.node:
            if node.op_type == "Cast" and node.input[0] in self.constants:
                self.constants[node.output[0]] = self.constants[node.input[0]].astype(np.float32)
            if node.op_type == "Concat" and all(part in self.constants for part in node.input):
                self.joined[node.output[0]] = list(node.input)

    def parts(self, name: str) -> list[Array]:
        """The float32 weights that a value is made of, one below the other; none if it is computed."""
        found = [self.constants.get(part) for part in self.joined.get(name, [name])]
        weights = [part for part in found if part is not None and part.dtype == np.float32]
        return weights if len(weights) == len(found) else []

    def keep(self, node: onnx.NodeProto) -> None:
        """Take a node over as it is."""
        self._nodes.append(node)

    def node(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """Add a node with one output; gives the output's name."""
        self._count += 1
        name = f"new_{operator.lower()}_{self._count}"
        self.add(operator, inputs, [name], **attributes)
        return name

    def add(
        self, operator: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any
    ) -> onnx.NodeProto:
        """Add a node whose outputs have names already."""
        node = helper.make_node(operator, inputs, outputs, **attributes)
        self._nodes.append(node)
        return node

    @contextmanager
    def inside(self) -> Iterator[list[onnx.NodeProto]]:
        """Collects the nodes that are added meanwhile: they belong to a graph inside a node to come."""
        around, self._nodes = self._nodes, []
        try:
            yield self._nodes
        finally:
            self._nodes = around

    def weight(self, name: str, array: Array) -> str:
        """Store a constant, once however often it is asked for."""
        if name not in self._weights:
            self._weights[name] = numpy_helper.from_array(np.ascontiguousarray(array), name)
        return name

    def model(self, *domains: str) -> onnx.ModelProto:
        """The new graph with the old inputs and outputs, without what nothing needs.

        Args:
            domains: Sets of operators that it needs beside the standard one.
        """
        result = onnx.ModelProto()
        result.CopyFrom(self._old)
        needed = {output.name for output in result.graph.output}
        nodes: list[onnx.NodeProto] = []
        for node in reversed(self._nodes):
            if needed.intersection(node.output):
                nodes.append(node)
                needed.update(_read_by(node))
        del result.graph.node[:], result.graph.initializer[:]
        result.graph.node.extend(reversed(nodes))
        result.graph.initializer.extend(
            part for name, part in self._weights.items() if name in needed
        )
        result.opset_import.extend(helper.make_opsetid(domain, 1) for domain in domains)
        onnx.checker.check_model(result)
        return result


def _read_by(node: onnx.NodeProto) -> Iterator[str]:
    """Names of the values that a node reads, also those that the graph inside it takes from around it."""
    yield from node.input
    for attribute in node.attribute:
        for inner in attribute.g.node:
            yield from _read_by(inner)
