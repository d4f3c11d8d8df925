"""The step graph of a sentiment model."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper
from torch import nn

from training.export.encoders import encode
from training.export.onnx_graph import GraphBuilder, Storage, TableStorage, array
from training.sentiment.model import AttentionPooling, MaxPooling, SentimentModel


def step_graph(
    model: SentimentModel, storage: Storage, tables: TableStorage = None
) -> onnx.ModelProto:
    """The graph `y, state' = f_W(state, x)` of the service's contract for sentiment models.

    Args:
        model: Trained weights.
        storage: Number format of the weights in the file.
        tables: That of the embedding, if it is another.

    Returns:
        A model with inputs tokens (B, T), lengths (B,) and the states, and outputs scores (B, T, labels) and the next
        states.
    """
    graph = GraphBuilder(storage)
    tokens = graph.input("tokens", "int64", ["B", "T"])
    lengths = graph.input("lengths", "int32", ["B"])
    vectors = graph.look_up("embedding", array(model.embedding.weight), tokens, tables)
    x = encode(graph, model.encoder, vectors, lengths)
    valid = _valid(graph, tokens, lengths)
    pooling = model.pooling
    pool = _pool_max if isinstance(pooling, MaxPooling) else _pool_attention
    pooled = pool(graph, pooling, x, valid, whole=model.whole)
    features = pooled if model.whole else graph.node("Concat", x, pooled, axis=-1)
    scores = _linear(graph, "head", model.head, features)
    scores = (
        graph.node("Softmax", scores, axis=-1) if model.exclusive else graph.node("Sigmoid", scores)
    )
    labels = model.head.out_features
    if model.whole:
        shape = graph.node("Concat", graph.node("Shape", tokens), graph.constant([labels]), axis=0)
        scores = graph.node("Expand", scores, shape)
    graph.output(scores, "scores", "float32", ["B", "T", labels])
    return graph.model("sentiment")


def _valid(graph: GraphBuilder, tokens: str, lengths: str) -> str:
    """Whether a position belongs to the text, (B, T, 1) bool."""
    time = graph.node("Gather", graph.node("Shape", tokens), graph.constant(1))
    positions = graph.node("Range", graph.constant(0), time, graph.constant(1))
    ends = graph.node(
        "Unsqueeze", graph.node("Cast", lengths, to=TensorProto.INT64), graph.constant([1])
    )
    inside = graph.node("Less", positions, ends)
    return graph.node("Unsqueeze", inside, graph.constant([2]))


def _number(graph: GraphBuilder, value: float) -> str:
    return graph.constant(np.full((), value, np.float32))


def _pool_max(graph: GraphBuilder, pooling: nn.Module, x: str, valid: str, *, whole: bool) -> str:
    """See `MaxPooling`: up to each position (B, T, D), of the whole text (B, 1, D)."""
    assert isinstance(pooling, MaxPooling)
    masked = graph.node("Where", valid, x, _number(graph, 0))
    if whole:
        return graph.node("Relu", graph.node("ReduceMax", masked, graph.constant([1])))
    (before,) = _inputs(graph, pooling)
    # The operators have sums over time and no maxima, so the recurrence is written as one.
    last, pooled = graph.nodes(
        "Scan",
        before,
        masked,
        outputs=2,
        body=_running_max(),
        num_scan_inputs=1,
        scan_input_axes=[1],
        scan_output_axes=[1],
    )
    _outputs(graph, pooling, last)
    return pooled


def _running_max() -> onnx.GraphProto:
    def vector(name: str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["B", "D"])

    return helper.make_graph(
        [
            helper.make_node("Max", ["largest_before", "feature"], ["largest_now"]),
            helper.make_node("Identity", ["largest_now"], ["largest_here"]),
        ],
        "running_max",
        [vector("largest_before"), vector("feature")],
        [vector("largest_now"), vector("largest_here")],
    )


def _pool_attention(
    graph: GraphBuilder, pooling: nn.Module, x: str, valid: str, *, whole: bool
) -> str:
    """See `AttentionPooling`: up to each position (B, T, D), of the whole text (B, 1, D)."""
    assert isinstance(pooling, AttentionPooling)
    score = graph.weight("pooling.score", array(pooling.score.weight).T)
    hidden = graph.node("Tanh", _linear(graph, "pooling.hidden", pooling.hidden, x))
    weights = graph.node("Exp", graph.node("MatMul", hidden, score))
    weights = graph.node("Where", valid, weights, _number(graph, 0))
    weighted = graph.node("Mul", weights, graph.node("Where", valid, x, _number(graph, 0)))
    if whole:
        # A fresh state: the mean 0 with weight 1.
        sums, totals = (
            graph.node("ReduceSum", part, graph.constant([1])) for part in (weighted, weights)
        )
        return graph.node("Div", sums, graph.node("Add", totals, _number(graph, 1)))
    mean, log_weight = (
        graph.node("Unsqueeze", value, graph.constant([1])) for value in _inputs(graph, pooling)
    )
    before = graph.node("Exp", log_weight)
    sums, totals = (
        graph.node("Add", start, graph.node("CumSum", part, graph.constant(1)))
        for start, part in (
            (graph.node("Mul", before, mean), weighted),
            (before, weights),
        )
    )
    pooled = graph.node("Div", sums, totals)
    # Nothing is added beyond the end of a text, so the last position holds what there was at its end.
    last = graph.constant(-1)
    _outputs(
        graph,
        pooling,
        graph.node("Gather", pooled, last, axis=1),
        graph.node("Log", graph.node("Gather", totals, last, axis=1)),
    )
    return pooled


def _inputs(graph: GraphBuilder, pooling: MaxPooling | AttentionPooling) -> list[str]:
    return [graph.input(spec.name, spec.dtype, ["B", *spec.shape]) for spec in pooling.states]


def _outputs(graph: GraphBuilder, pooling: MaxPooling | AttentionPooling, *after: str) -> None:
    for spec, value in zip(pooling.states, after, strict=True):
        graph.output(value, f"{spec.name}_out", spec.dtype, ["B", *spec.shape])


def _linear(graph: GraphBuilder, name: str, layer: nn.Linear, x: str) -> str:
    weight = graph.weight(f"{name}.weight", array(layer.weight).T)
    product = graph.node("MatMul", x, weight)
    return graph.node("Add", product, graph.weight(f"{name}.bias", array(layer.bias)))
