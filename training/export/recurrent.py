"""The step graph of a recurrent language model, built from its weights with the RNN, LSTM and GRU operators.

Inside, time is the first axis, which is the only layout that runtimes implement; outside, the batch is.
"""

from __future__ import annotations

import numpy as np
import onnx
from torch import nn

from training.export.onnx_graph import Array, GraphBuilder, Storage
from training.models.adaptive import AdaptiveSoftmax, Factors
from training.models.recurrent import RecurrentLanguageModel

_OPERATORS = {"rnn_tanh": "RNN", "rnn_relu": "RNN", "lstm": "LSTM", "gru": "GRU"}
# ONNX order of the gates, as positions in torch's: iofc from ifgo (LSTM), zrh from rzn (GRU).
_GATE_ORDER = {"rnn_tanh": [0], "rnn_relu": [0], "lstm": [0, 3, 1, 2], "gru": [1, 0, 2]}


def step_graph(model: RecurrentLanguageModel, top_k: int, storage: Storage) -> onnx.ModelProto:
    """The graph `y, state' = f_W(state, x)` of the service's contract for next-word models.

    Args:
        model: Trained weights.
        top_k: K, how many of the largest scores to give.
        storage: Number format of the weights in the file.

    Returns:
        A model with inputs tokens (B, T), lengths (B,), h and c (B, L, H), and outputs logits (B, T, V),
        top_scores and top_indices (B, T, K), logsumexp (B, T), h_out and c_out (B, L, H).
    """
    graph = GraphBuilder(storage)
    tokens = graph.input("tokens", "int64", ["B", "T"])
    lengths = graph.input("lengths", "int32", ["B"])
    state_shape: list[int | str] = ["B", model.config.num_layers, model.config.hidden_size]
    states = [graph.input(name, "float32", state_shape) for name in model.state_names]

    tables = _tables(graph, model.embedding, "embedding")
    x = _embed(graph, model.embedding, tables, graph.node("Transpose", tokens, perm=[1, 0]))
    x, new_states = _layers(graph, model, x, states, lengths)
    shared = model.softmax.factors is model.embedding
    tables = tables if shared else _tables(graph, model.softmax.factors, "softmax")
    parts = _log_probabilities(graph, model.softmax, tables, _features(graph, model, x))
    widths = [high - low for low, high in model.softmax.factors.clusters()]
    _declare_scores(graph, parts, widths, tokens, top_k)
    for name, value in zip(model.state_names, new_states, strict=True):
        graph.output(value, f"{name}_out", "float32", state_shape)
    return graph.model(model.config.cell)


def _tables(graph: GraphBuilder, factors: Factors, name: str) -> tuple[list[str], list[str]]:
    tables = [
        graph.weight(f"{name}.tables.{i}", _array(table)) for i, table in enumerate(factors.tables)
    ]
    projections = [
        graph.weight(f"{name}.projections.{i}", _array(projection))
        for i, projection in enumerate(factors.projections)
    ]
    return tables, projections


def _embed(
    graph: GraphBuilder, factors: Factors, weights: tuple[list[str], list[str]], tokens: str
) -> str:
    """Sum over clusters; each table has rows of zeros where tokens of other clusters point."""
    tables, projections = weights
    if not projections:
        return graph.node("Gather", tables[0], tokens)
    total = ""
    for i, (low, high) in enumerate(factors.clusters()):
        zeros = graph.constant(np.zeros((1, factors.tables[i].shape[1]), np.float32))
        offset, first = (low - 1, [zeros]) if i else (0, [])
        last = [] if i == len(projections) else [zeros]
        rows = graph.node("Concat", *first, tables[i], *last, axis=0)
        # An id beyond the vocabulary stays beyond the last table, where the runtime refuses it.
        index = graph.node("Sub", tokens, graph.constant(offset)) if i else tokens
        index = graph.node("Max", index, graph.constant(0)) if i else index
        if last:
            index = graph.node("Min", index, graph.constant(high - offset))
        part = graph.node("Gather", rows, index)
        part = graph.node("MatMul", part, projections[i - 1]) if i else part
        total = graph.node("Add", total, part) if total else part
    return total


def _layers(
    graph: GraphBuilder, model: RecurrentLanguageModel, x: str, states: list[str], lengths: str
) -> tuple[str, list[str]]:
    """Run every layer over x (T, B, E); gives (T, B, H) and the states (B, L, H)."""
    count = model.config.num_layers
    before = []
    for state in states:
        by_layer = graph.node("Transpose", state, perm=[1, 0, 2])
        before.append(graph.nodes("Split", by_layer, outputs=count, axis=0, num_outputs=count))
    after: list[list[str]] = [[] for _ in states]
    for i, (layer, norm) in enumerate(zip(model.layers, model.norms, strict=True)):
        x, *last = _layer(graph, model, i, layer, x, lengths, [state[i] for state in before])
        for parts, part in zip(after, last, strict=True):
            parts.append(part)
        if isinstance(norm, nn.LayerNorm):
            weight = graph.weight(f"norms.{i}.weight", _array(norm.weight))
            bias = graph.weight(f"norms.{i}.bias", _array(norm.bias))
            x = graph.node("LayerNormalization", x, weight, bias, axis=-1, epsilon=norm.eps)
    joined = [graph.node("Concat", *parts, axis=0) for parts in after]
    return x, [graph.node("Transpose", part, perm=[1, 0, 2]) for part in joined]


def _layer(
    graph: GraphBuilder,
    model: RecurrentLanguageModel,
    i: int,
    layer: nn.Module,
    x: str,
    lengths: str,
    states: list[str],
) -> list[str]:
    cell, hidden_size = model.config.cell, model.config.hidden_size
    weights = [
        graph.weight(f"layers.{i}.{name}", array)
        for name, array in zip("WRB", operator_weights(cell, layer), strict=True)
    ]
    attributes: dict[str, object] = {"hidden_size": hidden_size}
    if cell == "gru":
        attributes["linear_before_reset"] = 1
    if cell.startswith("rnn"):
        attributes["activations"] = ["Tanh" if cell == "rnn_tanh" else "Relu"]
    y, *last = graph.nodes(
        _OPERATORS[cell], x, *weights, lengths, *states, outputs=1 + len(states), **attributes
    )
    return [graph.node("Squeeze", y, graph.constant([1])), *last]


def operator_weights(cell: str, layer: nn.Module) -> tuple[Array, Array, Array]:
    """W (1, G*H, D), R (1, G*H, H) and B (1, 2*G*H) of the ONNX operator, G gates in its order."""
    parameters = {name: _array(value) for name, value in layer.named_parameters()}

    def reordered(name: str) -> Array:
        gates = np.split(parameters[name], len(_GATE_ORDER[cell]))
        return np.concatenate([gates[gate] for gate in _GATE_ORDER[cell]])[None]

    biases = [reordered("bias_ih_l0"), reordered("bias_hh_l0")]
    return reordered("weight_ih_l0"), reordered("weight_hh_l0"), np.concatenate(biases, axis=1)


def _features(graph: GraphBuilder, model: RecurrentLanguageModel, x: str) -> str:
    """Features (B * T, E), rows of one session together, from layer outputs (T, B, H)."""
    x = graph.node("Transpose", x, perm=[1, 0, 2])
    x = graph.node("Reshape", x, graph.constant([-1, model.config.hidden_size]))
    if isinstance(model.output, nn.Linear):
        weight = graph.weight("output.weight", _array(model.output.weight))
        bias = graph.weight("output.bias", _array(model.output.bias))
        x = graph.node("Gemm", x, weight, bias, transB=1)
    return x


def _log_probabilities(
    graph: GraphBuilder, softmax: AdaptiveSoftmax, weights: tuple[list[str], list[str]], z: str
) -> list[str]:
    """Give log p in parts (N, V_i), one for each cluster, from features z (N, E); see `AdaptiveSoftmax.scores`."""
    tables, projections = weights
    biases = [
        graph.weight(f"softmax.biases.{i}", _array(bias)) for i, bias in enumerate(softmax.biases)
    ]
    if not projections:
        scores = graph.node("Gemm", z, tables[0], biases[0], transB=1)
        return [graph.node("LogSoftmax", scores, axis=-1)]
    gate_weight = graph.weight("softmax.tail_weight", _array(softmax.tail_weight))
    gate_bias = graph.weight("softmax.tail_bias", _array(softmax.tail_bias))
    head_weight = graph.node("Concat", tables[0], gate_weight, axis=0)
    head_bias = graph.node("Concat", biases[0], gate_bias, axis=0)
    head = graph.node("Gemm", z, head_weight, head_bias, transB=1)
    sizes = graph.constant([softmax.factors.bounds[1], *(1 for _ in projections)])
    words, *gates = graph.nodes(
        "Split",
        graph.node("LogSoftmax", head, axis=-1),
        sizes,
        outputs=1 + len(projections),
        axis=1,
    )
    parts = [words]
    for table, projection, bias, gate in zip(
        tables[1:], projections, biases[1:], gates, strict=True
    ):
        narrow = graph.node("Gemm", z, projection, transB=1)
        tail = graph.node("Gemm", narrow, table, bias, transB=1)
        parts.append(graph.node("Add", graph.node("LogSoftmax", tail, axis=-1), gate))
    return parts


def _declare_scores(
    graph: GraphBuilder, parts: list[str], widths: list[int], tokens: str, top_k: int
) -> None:
    """Declare the outputs. Only the small ones are reshaped after the fact: V numbers a row are copied once."""
    shape = graph.node("Shape", tokens)
    parts = [
        graph.node("Reshape", part, graph.node("Concat", shape, graph.constant([width]), axis=0))
        for part, width in zip(parts, widths, strict=True)
    ]
    logits = graph.node("Concat", *parts, axis=2)
    top_scores, top_indices = graph.nodes("TopK", logits, graph.constant([top_k]), outputs=2)
    # The scores are normalised already; their log-sum-exp is 0 but for rounding.
    logsumexp = graph.node("ConstantOfShape", shape)
    graph.output(logits, "logits", "float32", ["B", "T", sum(widths)])
    graph.output(top_scores, "top_scores", "float32", ["B", "T", top_k])
    graph.output(top_indices, "top_indices", "int64", ["B", "T", top_k])
    graph.output(logsumexp, "logsumexp", "float32", ["B", "T"])


def _array(parameter: object) -> Array:
    assert isinstance(parameter, nn.Parameter)
    return parameter.detach().cpu().numpy().astype(np.float32)
