"""A model's graph with its states inside: Gather, the model, a check of each row, ScatterND. Bytes in, bytes out.

The exported graph takes states and gives the next ones. The wrapped graph takes all rows of every state and the
numbers of the rows to step, and gives all rows back; run with one buffer as both, it writes the stepped rows in place
and touches no other. No ONNX Runtime here, and `onnx` is imported only when a graph is wrapped.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from service.contract import LOGITS, DType, ModelConfig, StateTensor
from service.engine.nodes import Nodes, empty, parsed

if TYPE_CHECKING:
    import onnx

Array = npt.NDArray[Any]

INITIAL, NOWHERE, FIRST = 0, 1, 2
"""Row 0 always holds the initial state, row 1 takes what nobody is to read; row 2 is the first for a session."""

ROWS = "seqserve.rows"
ASKED = "seqserve.asked"
FINITE = "seqserve.finite"

_FLOATS = ("float32", "float64")


def held(state: StateTensor) -> str:
    """Name of the input with all rows of a state, `(rows, *shape)`."""
    return f"seqserve.held.{state.input_name}"


def kept(state: StateTensor) -> str:
    """Name of the output with all rows of a state after the run."""
    return f"seqserve.kept.{state.input_name}"


def given(state: StateTensor) -> str:
    """Name of the values of chosen rows, `(B, *shape)`, in the graphs that read and write them."""
    return f"seqserve.given.{state.input_name}"


def step_graph(model: bytes, config: ModelConfig) -> bytes:
    """The model as a step over rows that it holds.

    Inputs: those of the model that are not states; `ROWS` (B,) int64, all different, or `INITIAL` to fill the batch
    up; `ASKED` (outputs,) bool, which outputs are wanted; and `held` of each state.
    Outputs: those of the model that are not states; `FINITE` (B,) bool, as `Arena.run` says; and `kept` of each state.

    States are written after all else is computed: a run that raises in the model has written nothing. What is not
    finite, and what was computed for `INITIAL`, goes to `NOWHERE`.

    A state that the model itself changes in a few places only, by a ScatterND into each row, is changed in just those
    places (`_ring`): the other values of a row are neither copied nor written.
    """
    import onnx

    proto = parsed(model)
    nodes = Nodes(proto.graph)
    rings = {s.input_name: ring for s in config.state if (ring := _ring(proto.graph, s))}
    for ring in rings.values():
        proto.graph.node.remove(ring.node)
    _drop(proto.graph.input, (s.input_name for s in config.state))
    _drop(proto.graph.output, (s.output_name for s in config.state))
    gathered = [
        onnx.helper.make_node("Gather", [held(s), ROWS], [s.input_name], axis=0)
        for s in config.state
    ]
    # Before the model's own nodes, which use them: a file lists nodes in the order they can run in.
    for node in reversed(gathered):
        proto.graph.node.insert(0, node)
    nodes.input(ROWS, "int64", ["B"])
    nodes.input(ASKED, "bool", [len(config.outputs)])
    finite = _finite(nodes, config, rings)
    nodes.output(finite, FINITE, "bool", ["B"])
    live = nodes.add("And", FINITE, nodes.cast(ROWS, "bool"))
    target = nodes.add("Where", live, ROWS, nodes.constant(np.int64(NOWHERE)))
    for state in config.state:
        nodes.input(held(state), state.dtype, ["R", *state.shape])
        ring = rings.get(state.input_name)
        where, values = (
            (_ring_places(nodes, ring, target), ring.values)
            if ring
            else (nodes.add("Unsqueeze", target, nodes.constant([1])), state.output_name)
        )
        written = nodes.add("ScatterND", held(state), where, values)
        nodes.output(written, kept(state), state.dtype, ["R", *state.shape])
    return _bytes(proto)


def read_graph(config: ModelConfig) -> bytes:
    """Copies rows out: `ROWS` (B,) and `held` of each state in, `given` of each state out."""
    nodes, proto = empty("read")
    nodes.input(ROWS, "int64", ["B"])
    for state in config.state:
        nodes.input(held(state), state.dtype, ["R", *state.shape])
        value = nodes.add("Gather", held(state), ROWS, axis=0)
        nodes.output(value, given(state), state.dtype, ["B", *state.shape])
    return _bytes(proto)


def write_graph(config: ModelConfig) -> bytes:
    """Sets rows: `ROWS` (B,), `given` and `held` of each state in, `kept` of each state out."""
    nodes, proto = empty("write")
    nodes.input(ROWS, "int64", ["B"])
    where = nodes.add("Unsqueeze", ROWS, nodes.constant([1]))
    for state in config.state:
        nodes.input(given(state), state.dtype, ["B", *state.shape])
        nodes.input(held(state), state.dtype, ["R", *state.shape])
        written = nodes.add("ScatterND", held(state), where, given(state))
        nodes.output(written, kept(state), state.dtype, ["R", *state.shape])
    return _bytes(proto)


def reset_graph(config: ModelConfig) -> bytes:
    """Sets rows to the row `INITIAL`: `ROWS` (B,) and `held` of each state in, `kept` of each state out."""
    nodes, proto = empty("reset")
    nodes.input(ROWS, "int64", ["B"])
    where = nodes.add("Unsqueeze", ROWS, nodes.constant([1]))
    source = nodes.add("Mul", ROWS, nodes.constant(np.int64(INITIAL)))
    for state in config.state:
        nodes.input(held(state), state.dtype, ["R", *state.shape])
        initial = nodes.add("Gather", held(state), source, axis=0)
        written = nodes.add("ScatterND", held(state), where, initial)
        nodes.output(written, kept(state), state.dtype, ["R", *state.shape])
    return _bytes(proto)


def trial_graph() -> bytes:
    """X + x, for x (N,) float32: to see whether a device computes."""
    nodes, proto = empty("trial")
    nodes.input("x", "float32", ["N"])
    nodes.output(nodes.add("Add", "x", "x"), "y", "float32", ["N"])
    return _bytes(proto)


@dataclass(frozen=True, slots=True)
class _Ring:
    """A state whose next value is the one before with some places of each row written over.

    Attributes:
        node: The ScatterND.
        values: What it writes; the row of the batch is the first axis.
        axes: How the numbers of the rows, (B,), are unsqueezed,
        shape: and to what shape they are then expanded, to be the first part of the places.
        parts: The other parts; all are joined on the last axis.
    """

    node: onnx.NodeProto
    values: str
    axes: str
    shape: str
    parts: tuple[str, ...]


def _ring(graph: onnx.GraphProto, state: StateTensor) -> _Ring | None:
    """The ring of a state, if it is one for certain: written by row, and by nothing else.

    Recognised by its nodes: places = Concat(Expand(Unsqueeze(Range(0, B, 1))), ...). Any other state is right too,
    but all values of its rows are written at every step.
    """
    makers = {name: node for node in graph.node for name in node.output}
    uses = sum(state.output_name in node.input for node in graph.node)
    node = makers.get(state.output_name)
    if node is None or node.op_type != "ScatterND" or node.attribute or uses:
        return None
    places = makers.get(node.input[1])
    if node.input[0] != state.input_name or places is None or places.op_type != "Concat":
        return None
    found = [places]
    for operator in ("Expand", "Unsqueeze", "Range", "Squeeze", "Shape"):
        # The limit of a Range is its second input; elsewhere it is the first that counts.
        above = found[-1].input[1 if found[-1].op_type == "Range" else 0]
        maker = makers.get(above)
        if maker is None or maker.op_type != operator:
            return None
        found.append(maker)
    _, expand, unsqueeze, *_, size = found
    attributes = {a.name: a.i for a in size.attribute}
    if attributes != {"start": 0, "end": 1} and attributes != {"end": 1}:
        return None
    return _Ring(node, node.input[2], unsqueeze.input[1], expand.input[1], tuple(places.input[1:]))


def _ring_places(nodes: Nodes, ring: _Ring, target: str) -> str:
    """The places of a ring with rows of the held state for rows of the batch."""
    rows = nodes.once("Expand", nodes.once("Unsqueeze", target, ring.axes), ring.shape)
    return nodes.once("Concat", rows, *ring.parts, axis=-1)


def _finite(nodes: Nodes, config: ModelConfig, rings: Mapping[str, _Ring]) -> str:
    """Name of a (B,) bool: whether all that counts of a row is finite.

    Zero times a value is zero, but not a number where the value is infinite or not a number; and a sum is not a
    number if one of its terms is. So the product of a row and zeros tells, in one pass and without a branch.
    """
    terms = [nodes.cast(nodes.add("Mul", ROWS, nodes.constant(np.int64(0))), "float32")]
    for state in config.state:
        if state.dtype in _FLOATS:
            ring = rings.get(state.input_name)
            value = ring.values if ring else state.output_name
            size = None if ring else math.prod(state.shape)
            terms.append(_zero_times(nodes, value, state.dtype, [0, -1], size))
    valid = _valid(nodes, config)
    nothing = nodes.constant(np.float32(0))
    for i, tensor in enumerate(config.outputs):
        if tensor.dtype in _FLOATS:
            # The graph may be told how much of these to give.
            told = tensor.name == LOGITS or tensor.name in config.ranked
            size = None if told else math.prod(tensor.shape)
            by_step = _zero_times(nodes, tensor.name, tensor.dtype, [0, 0, -1], size)
            by_step = nodes.add("Where", valid, by_step, nothing)
            by_row = nodes.add("ReduceSum", by_step, nodes.constant([1]), keepdims=0)
            asked = nodes.add("Gather", ASKED, nodes.constant([i]), axis=0)
            terms.append(nodes.add("Where", asked, by_row, nothing))
    return nodes.add("Equal", nodes.add("Sum", *terms), nothing)


def _zero_times(nodes: Nodes, value: str, dtype: DType, shape: list[int], size: int | None) -> str:
    """Sum of 0 x over the last axis of a value in this shape, float32, without that axis."""
    flat = nodes.add("Reshape", value, nodes.constant(shape))
    last = nodes.constant([len(shape) - 1])
    if size is None:
        zeros = nodes.add("Mul", flat, nodes.constant(np.zeros((), dtype)))
        return nodes.cast(nodes.add("ReduceSum", zeros, last, keepdims=0), "float32")
    product = nodes.add("MatMul", flat, nodes.constant(np.zeros((size, 1), dtype)))
    return nodes.cast(nodes.add("Squeeze", product, last), "float32")


def _valid(nodes: Nodes, config: ModelConfig) -> str:
    """Name of a (B, T) bool: which time steps are within the row's length."""
    time = nodes.add("Squeeze", nodes.add("Shape", config.inputs[0].name, start=1, end=2))
    zero, one = nodes.constant(np.int32(0)), nodes.constant(np.int32(1))
    places = nodes.add("Range", zero, nodes.cast(time, "int32"), one)
    return nodes.add("Less", places, nodes.add("Unsqueeze", config.lengths, nodes.constant([1])))


def _drop(values: Any, names: Iterable[str]) -> None:
    """Take inputs or outputs off the list of a graph."""
    gone = set(names)
    for value in [v for v in values if v.name in gone]:
        values.remove(value)


def _bytes(proto: onnx.ModelProto) -> bytes:
    content: bytes = proto.SerializeToString()
    return content
