"""Recurrent operators as the few operators of one time step: products, sums and gates. Bytes in, bytes out.

On a GPU a runtime's LSTM, GRU and RNN are cuDNN's, made for long sequences: every call sets up descriptors and copies
the lengths. For a chunk of one time step the cell itself is a product and a few sums. A graph made here is for such
chunks only, with every row one time step long. `onnx` is imported only when it is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from service.engine.nodes import Nodes, parsed

if TYPE_CHECKING:
    import onnx

Array = npt.NDArray[Any]


def step_cells(model: bytes) -> bytes | None:
    """The model with its recurrent operators as cells of one time step.

    Taken apart are operators of one direction with the usual activations, constant weights and given states; of GRUs
    those with `linear_before_reset = 1`, which is what PyTorch computes. Others stay as they are.

    Returns:
        The graph, for T = 1 only; None when there is nothing in it to take apart.
    """
    import onnx

    proto = parsed(model)
    constants = _constants(proto.graph)
    before = [onnx.NodeProto.FromString(node.SerializeToString()) for node in proto.graph.node]
    del proto.graph.node[:]
    nodes = Nodes(proto.graph, "cell.")
    for node in before:
        if _usual(node, constants):
            _CELLS[node.op_type](nodes, node, constants)
        else:
            proto.graph.node.append(node)
    if len(proto.graph.node) == len(before):
        return None
    content: bytes = proto.SerializeToString()
    return content


def _constants(graph: onnx.GraphProto) -> dict[str, Array]:
    """Values of initializers, and of those that are stored in another number format, by name."""
    from onnx import numpy_helper

    found = {tensor.name: tensor for tensor in graph.initializer}
    values = {name: numpy_helper.to_array(tensor) for name, tensor in found.items()}
    for node in graph.node:
        if node.op_type == "Cast" and node.input[0] in values:
            values[node.output[0]] = values[node.input[0]].astype(np.float32)
    return values


def _usual(node: onnx.NodeProto, constants: Mapping[str, Array]) -> bool:
    from onnx import helper

    if node.op_type not in _CELLS:
        return False
    states = 2 if node.op_type == "LSTM" else 1
    inputs = [*node.input, *[""] * 8][:8]
    given = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    given.pop("hidden_size")
    if node.op_type == "RNN":
        given["activations"] = given.get("activations", [b"Tanh"]) not in ([b"Tanh"], [b"Relu"])
    return (
        # Weights and bias; then, after the lengths, the states; no peepholes.
        all(name in constants for name in inputs[1:4])
        and all(inputs[5 : 5 + states])
        and not any(inputs[5 + states :])
        and given.pop("direction", b"forward") == b"forward"
        and given.pop("linear_before_reset", 0) == (node.op_type == "GRU")
        # Whatever else there is, of clipping, layout or activations, is not the usual.
        and not any(given.values())
    )


class _Weights:
    """Constants of an operator of one direction, transposed: w (D, G H), r (H, G H), biases (G H,)."""

    def __init__(self, node: onnx.NodeProto, constants: Mapping[str, Array]) -> None:
        w, r, bias = (constants[name][0] for name in node.input[1:4])
        self.hidden = r.shape[1]
        self.w, self.r = np.ascontiguousarray(w.T), np.ascontiguousarray(r.T)
        self.bias_w, self.bias_r = np.split(bias, 2)


def _joined(nodes: Nodes, node: onnx.NodeProto, weights: _Weights) -> str:
    """All gates before their functions, x W + h R + b, (B, G H), in one product."""
    x, h = (_squeezed(nodes, node.input[i]) for i in (0, 5))
    both = nodes.constant(np.concatenate([weights.w, weights.r]))
    bias = nodes.constant(weights.bias_w + weights.bias_r)
    return nodes.add("Gemm", nodes.add("Concat", x, h, axis=1), both, bias)


def _lstm(nodes: Nodes, node: onnx.NodeProto, constants: Mapping[str, Array]) -> None:
    """LSTM: c' = f c + i tanh(g), h' = o tanh(c'); gates in the order i, o, f, g (Hochreiter 1997)."""
    weights = _Weights(node, constants)
    size = weights.hidden
    gates = nodes.split(_joined(nodes, node, weights), [3 * size, size], 1)
    i, o, f = nodes.split(nodes.add("Sigmoid", gates[0]), [size] * 3, 1)
    kept = nodes.add("Mul", f, _squeezed(nodes, node.input[6]))
    new = nodes.add("Mul", i, nodes.add("Tanh", gates[1]))
    c = nodes.add("Add", kept, new)
    _finish(nodes, node, [nodes.add("Mul", o, nodes.add("Tanh", c)), c])


def _gru(nodes: Nodes, node: onnx.NodeProto, constants: Mapping[str, Array]) -> None:
    """GRU: h' = n + z (h - n), n = tanh(x W_n + b_n + r (h R_n + d_n)); gates z, r, n (Cho et al. 2014 v3)."""
    weights = _Weights(node, constants)
    size = weights.hidden
    x, h = (_squeezed(nodes, node.input[i]) for i in (0, 5))
    from_x = nodes.add("Gemm", x, nodes.constant(weights.w), nodes.constant(weights.bias_w))
    from_h = nodes.add("Gemm", h, nodes.constant(weights.r), nodes.constant(weights.bias_r))
    gates_x, new_x = nodes.split(from_x, [2 * size, size], 1)
    gates_h, new_h = nodes.split(from_h, [2 * size, size], 1)
    z, r = nodes.split(nodes.add("Sigmoid", nodes.add("Add", gates_x, gates_h)), [size, size], 1)
    n = nodes.add("Tanh", nodes.add("Add", new_x, nodes.add("Mul", r, new_h)))
    away = nodes.add("Mul", z, nodes.add("Sub", h, n))
    _finish(nodes, node, [nodes.add("Add", n, away)])


def _rnn(nodes: Nodes, node: onnx.NodeProto, constants: Mapping[str, Array]) -> None:
    """RNN: h' = f(x W + h R + b), f = tanh or max(0, .) (Elman 1990)."""
    from onnx import helper

    given = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    function = given.get("activations", [b"Tanh"])[0].decode()
    _finish(nodes, node, [nodes.add(function, _joined(nodes, node, _Weights(node, constants)))])


def _squeezed(nodes: Nodes, value: str) -> str:
    """(1, B, N) as (B, N); refused by the runtime for more than one time step."""
    return nodes.once("Squeeze", value, nodes.constant([0]))


def _finish(nodes: Nodes, node: onnx.NodeProto, states: list[str]) -> None:
    """Give the outputs of the operator: y (1, 1, B, H) and the states (1, B, H)."""
    for name, value, axes in zip(
        node.output, [states[0], *states], [[0, 1], [0], [0]], strict=False
    ):
        if name:
            nodes.named(name, "Unsqueeze", value, nodes.constant(axes))


_CELLS = {"LSTM": _lstm, "GRU": _gru, "RNN": _rnn}
