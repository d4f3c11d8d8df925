"""A Transformer encoder as plain nodes; the arithmetic and the state are those of `training.models.transformer`.

The ring is written by one ScatterND per tensor, whose rows are the last positions of the chunk only: what a step costs
besides attention is the copy of the state that every graph without a state of its own must make.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from onnx import TensorProto
from torch import nn

from training.export.onnx_graph import Array, GraphBuilder, array
from training.models.transformer import Block, TransformerEncoder

# Exponentials of it are zero; an infinity would be one subtraction away from not a number.
_HIDDEN = -1e30


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Values that all layers share.

    Attributes:
        cosine: (B, 1, T, D).
        sine: (B, 1, T, D), negative in the first half of D.
        hidden: What to add to scores, 0 or a large negative number: (B, 1, T, W + T), bidirectional (B, 1, 1, T).
        writes: Where the chunk goes in the ring; none if bidirectional.
    """

    cosine: str
    sine: str
    hidden: str
    writes: _Writes | None


@dataclass(frozen=True, slots=True)
class _Writes:
    """The last S = min(T, W) positions of each row's ring after the chunk.

    Attributes:
        slots: Where each goes: indices (B, N, S, 3) into a ring (B, N, W, D).
        steps: Where each comes from: indices (B, N, S, 3) into a chunk (B, N, T, D).
        fresh: Whether it is of this chunk, (B, 1, S, 1); a chunk shorter than S leaves the others as they are.
    """

    slots: str
    steps: str
    fresh: str


def encode(
    graph: GraphBuilder, encoder: TransformerEncoder, x: str, lengths: str, states: Sequence[str]
) -> tuple[str, list[str]]:
    """Run every layer.

    Args:
        graph: Where to.
        encoder: Trained weights.
        x: Name of the features (B, T, E).
        lengths: Name of the valid positions of each row (B,) int32.
        states: Names of the states before, in the order of `encoder.states`.

    Returns:
        Names of the features (B, T, D) and of the states after.
    """
    lengths = graph.node("Cast", lengths, to=TensorProto.INT64)
    lengths = graph.node("Unsqueeze", lengths, graph.constant([1]))  # (B, 1)
    x = graph.node("Mul", x, _number(graph, encoder.width_in**0.5))
    if isinstance(encoder.input, nn.Linear):
        x = _linear(graph, "input", encoder.input, x)
    *rings, count = states or ("",)
    chunk = _chunk(graph, encoder, x, lengths, count)
    after: list[str] = []
    for i, block in enumerate(encoder.blocks):
        assert isinstance(block, Block)
        x, written = _block(graph, f"blocks.{i}", block, x, chunk, rings[2 * i : 2 * i + 2])
        after += written
    x = _norm(graph, "norm", encoder.norm, x)
    if count:
        after.append(_folded(graph, encoder, graph.node("Add", count, lengths)))
    return x, after


def _chunk(
    graph: GraphBuilder, encoder: TransformerEncoder, x: str, lengths: str, count: str
) -> _Chunk:
    time = graph.node("Shape", x, start=1, end=2)
    places = _range(graph, time)  # (T,)
    if not count:
        position = graph.node("Unsqueeze", places, graph.constant([0]))
        visible = graph.node("Less", places, lengths)  # (B, T)
        visible = graph.node("Unsqueeze", visible, graph.constant([1, 2]))
        return _Chunk(*_rotation(graph, encoder, position), _bias(graph, visible), None)
    position = graph.node("Add", count, places)  # (B, T)
    old, new = _visible(graph, encoder.config.window, count, places)
    new = graph.node("Expand", new, graph.node("Concat", _batch(graph, x), time, time, axis=0))
    visible = graph.node("Unsqueeze", graph.node("Concat", old, new, axis=2), graph.constant([1]))
    writes = _writes(graph, encoder, x, count, lengths)
    return _Chunk(*_rotation(graph, encoder, position), _bias(graph, visible), writes)


def _rotation(graph: GraphBuilder, encoder: TransformerEncoder, positions: str) -> tuple[str, str]:
    """Cosine and signed sine (B, 1, T, D) for positions (B, T)."""
    turns = graph.constant(encoder.turns.cpu().numpy())
    places = graph.node("Unsqueeze", positions, graph.constant([1, 3]))
    part = graph.node("Mod", graph.node("Mul", places, turns), graph.constant(encoder.period))
    part = graph.node("Cast", part, to=TensorProto.FLOAT)
    angles = graph.node("Mul", part, _number(graph, math.tau / encoder.period))
    return graph.node("Cos", angles), graph.node("Sin", angles)


def _visible(graph: GraphBuilder, window: int, count: str, places: str) -> tuple[str, str]:
    """Which slots (B, T, W) and which time steps (T, T) each query sees."""
    width, one = graph.constant(window), graph.constant(1)
    # How far each slot lies before the chunk, (B, W); Mod of integers has the sign of the divisor.
    gap = graph.node("Sub", count, graph.constant(np.arange(1, window + 1)))
    age = graph.node("Add", graph.node("Mod", gap, width), one)
    filled = graph.node("LessOrEqual", age, count)
    query = graph.node("Unsqueeze", places, graph.constant([1]))  # (T, 1)
    distance = graph.node("Add", graph.node("Unsqueeze", age, graph.constant([1])), query)
    near = graph.node("Less", distance, width)
    old = graph.node("And", near, graph.node("Unsqueeze", filled, graph.constant([1])))
    ahead = graph.node("Sub", query, places)
    past = graph.node("GreaterOrEqual", ahead, graph.constant(0))
    return old, graph.node("And", past, graph.node("Less", ahead, width))


def _bias(graph: GraphBuilder, visible: str) -> str:
    return graph.node("Where", visible, _number(graph, 0.0), _number(graph, _HIDDEN))


def _writes(
    graph: GraphBuilder, encoder: TransformerEncoder, x: str, count: str, lengths: str
) -> _Writes:
    """The S last positions of each row have S different slots, so no two rows are written to one."""
    window, heads = graph.constant([encoder.config.window]), encoder.config.heads
    size = graph.node("Min", graph.node("Shape", x, start=1, end=2), window)
    first = graph.node("Sub", lengths, size)
    steps = graph.node("Add", first, _range(graph, size))  # (B, S), negative before the chunk
    slots = graph.node("Mod", graph.node("Add", steps, count), window)
    batch = _batch(graph, x)
    shape = graph.node("Concat", batch, graph.constant([heads]), size, graph.constant([1]), axis=0)

    def indices(last: str) -> str:
        row = graph.node("Unsqueeze", _range(graph, batch), graph.constant([1, 2, 3]))
        head = graph.constant(np.arange(heads).reshape(1, heads, 1, 1))
        place = graph.node("Unsqueeze", last, graph.constant([1, 3]))
        parts = [graph.node("Expand", part, shape) for part in (row, head, place)]
        return graph.node("Concat", *parts, axis=3)

    zero = graph.constant(0)
    fresh = graph.node("GreaterOrEqual", steps, zero)
    return _Writes(
        slots=indices(slots),
        steps=indices(graph.node("Max", steps, zero)),
        fresh=graph.node("Unsqueeze", fresh, graph.constant([1, 3])),
    )


def _block(
    graph: GraphBuilder, name: str, block: Block, x: str, chunk: _Chunk, rings: Sequence[str]
) -> tuple[str, list[str]]:
    """One layer over x (B, T, N * D), and its rings after the chunk."""
    z = _norm(graph, f"{name}.attention_norm", block.attention_norm, x)
    z = _linear(graph, f"{name}.query_key_value", block.query_key_value, z)
    query, key, value = _heads(graph, block, z, chunk)
    read = _attention(graph, query, (key, value), chunk.hidden, rings)
    read = graph.node("Transpose", read, perm=[0, 2, 1, 3])
    read = graph.node("Reshape", read, graph.constant([0, 0, block.output.in_features]))
    x = graph.node("Add", x, _linear(graph, f"{name}.output", block.output, read))
    z = _norm(graph, f"{name}.feedforward_norm", block.feedforward_norm, x)
    z = graph.node("Gelu", _linear(graph, f"{name}.expand", block.expand, z))
    x = graph.node("Add", x, _linear(graph, f"{name}.contract", block.contract, z))
    if chunk.writes is None:
        return x, []
    new = (key, value)
    return x, [_written(graph, *pair, chunk.writes) for pair in zip(rings, new, strict=True)]


def _heads(graph: GraphBuilder, block: Block, z: str, chunk: _Chunk) -> list[str]:
    """Query, scaled and rotated, key, rotated, and value, each (B, N, T, D), from z (B, T, 3 * N * D)."""
    head_size = block.output.in_features // block.heads
    z = graph.node("Reshape", z, graph.constant([0, 0, 3 * block.heads, head_size]))
    z = graph.node("Transpose", z, perm=[0, 2, 1, 3])
    sizes = graph.constant([2 * block.heads, block.heads])
    both, value = graph.nodes("Split", z, sizes, outputs=2, axis=1)
    first, second = graph.nodes("Split", both, outputs=2, axis=3, num_outputs=2)
    across = graph.node("Mul", graph.node("Concat", second, first, axis=3), chunk.sine)
    both = graph.node("Add", graph.node("Mul", both, chunk.cosine), across)
    query, key = graph.nodes("Split", both, outputs=2, axis=1, num_outputs=2)
    return [graph.node("Mul", query, _number(graph, head_size**-0.5)), key, value]


def _attention(
    graph: GraphBuilder, query: str, new: tuple[str, str], hidden: str, rings: Sequence[str]
) -> str:
    """What each query reads (B, N, T, D) from the rings, if any, and from the chunk: one softmax over both."""

    def scores(keys: str) -> str:
        return graph.node("MatMul", query, graph.node("Transpose", keys, perm=[0, 1, 3, 2]))

    key, value = new
    if not rings:
        weights = graph.node("Softmax", graph.node("Add", scores(key), hidden), axis=-1)
        return graph.node("MatMul", weights, value)
    # Two products and a joined row of scores are cheaper than joining the keys and the values.
    old_keys, old_values = rings
    both = graph.node("Concat", scores(old_keys), scores(key), axis=3)
    weights = graph.node("Softmax", graph.node("Add", both, hidden), axis=-1)
    window = graph.node("Shape", old_keys, start=2, end=3)
    time = graph.node("Shape", key, start=2, end=3)
    sizes = graph.node("Concat", window, time, axis=0)
    past, present = graph.nodes("Split", weights, sizes, outputs=2, axis=3)
    read = graph.node("MatMul", past, old_values)
    return graph.node("Add", read, graph.node("MatMul", present, value))


def _written(graph: GraphBuilder, ring: str, new: str, writes: _Writes) -> str:
    """The ring (B, N, W, D) after new (B, N, T, D) went in."""
    fresh = graph.node("GatherND", new, writes.steps)
    kept = graph.node("GatherND", ring, writes.slots)
    rows = graph.node("Where", writes.fresh, fresh, kept)
    return graph.node("ScatterND", ring, writes.slots, rows)


def _folded(graph: GraphBuilder, encoder: TransformerEncoder, count: str) -> str:
    window = graph.constant(encoder.config.window)
    beyond = graph.node("Max", graph.node("Sub", count, window), graph.constant(0))
    place = graph.node("Mod", beyond, graph.constant(encoder.period))
    return graph.node("Add", graph.node("Min", count, window), place)


def _linear(graph: GraphBuilder, name: str, layer: nn.Linear, x: str) -> str:
    x = graph.node("MatMul", x, graph.weight(f"{name}.weight", array(layer.weight).T))
    return graph.node("Add", x, graph.weight(f"{name}.bias", array(layer.bias)))


def _norm(graph: GraphBuilder, name: str, norm: nn.LayerNorm, x: str) -> str:
    weight = graph.weight(f"{name}.weight", array(norm.weight))
    bias = graph.weight(f"{name}.bias", array(norm.bias))
    return graph.node("LayerNormalization", x, weight, bias, axis=-1, epsilon=norm.eps)


def _batch(graph: GraphBuilder, x: str) -> str:
    return graph.node("Shape", x, start=0, end=1)


def _range(graph: GraphBuilder, size: str) -> str:
    """0 .. size - 1, for a size (1,)."""
    end = graph.node("Squeeze", size)
    return graph.node("Range", graph.constant(0), end, graph.constant(1))


def _number(graph: GraphBuilder, value: float) -> str:
    constant: Array = np.array(value, np.float32)
    return graph.constant(constant)
