"""The step graph of a language model."""

from __future__ import annotations

import numpy as np
import onnx
from torch import nn

from service.contract import ALL_SCORES, LOGITS, TOP_K
from training.export.encoders import encode
from training.export.onnx_graph import GraphBuilder, Storage, array
from training.next_word.adaptive import AdaptiveSoftmax, Factors
from training.next_word.model import LanguageModel

_Part = tuple[str, str | None]
"""log p in a cluster (N, V_i), and of the cluster (N, 1), to be added; None for the first, which has it in itself."""


def step_graph(model: LanguageModel, top_k: int, storage: Storage) -> onnx.ModelProto:
    """The graph `y, state' = f_W(state, x)` of the service's contract for next-word models.

    Args:
        model: Trained weights.
        top_k: K, how many of the largest scores to give if the input `top_k` does not say otherwise.
        storage: Number format of the weights in the file.

    Returns:
        A model with inputs tokens (B, T), lengths (B,), the encoder's states and, with defaults, top_k (1,) and, where
        there are several clusters, all_scores (1,); and outputs logits (B, T, V), or (B, T, 0) if all_scores is 0,
        top_scores and top_indices (B, T, K), logsumexp (B, T), and the next states.
    """
    graph = GraphBuilder(storage)
    tokens = graph.input("tokens", "int64", ["B", "T"])
    lengths = graph.input("lengths", "int32", ["B"])
    tables = _tables(graph, model.embedding, "embedding")
    x = encode(graph, model.encoder, _embed(graph, model.embedding, tables, tokens), lengths)
    shared = model.softmax.factors is model.embedding
    tables = tables if shared else _tables(graph, model.softmax.factors, "softmax")
    parts = _log_probabilities(graph, model.softmax, tables, _features(graph, model, x))
    shape = graph.node("Shape", tokens)
    graph.default(TOP_K, [top_k])
    if len(parts) == 1:
        _declare_scores(graph, parts[0][0], model.vocab_size, shape)
    else:
        clusters = list(model.softmax.factors.clusters())
        _declare_best(graph, parts, clusters, top_k, shape)
        _declare_all(graph, parts, clusters, shape)
    # The scores are normalised already; their log-sum-exp is 0 but for rounding.
    graph.output(graph.node("ConstantOfShape", shape), "logsumexp", "float32", ["B", "T"])
    return graph.model("language_model")


def _tables(graph: GraphBuilder, factors: Factors, name: str) -> tuple[list[str], list[str]]:
    tables = [
        graph.weight(f"{name}.tables.{i}", array(table)) for i, table in enumerate(factors.tables)
    ]
    projections = [
        graph.weight(f"{name}.projections.{i}", array(projection))
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


def _features(graph: GraphBuilder, model: LanguageModel, x: str) -> str:
    """Features (B * T, E), rows of one session together, from those of the encoder (B, T, D)."""
    x = graph.node("Reshape", x, graph.constant([-1, model.encoder.width_out]))
    if isinstance(model.output, nn.Linear):
        weight = graph.weight("output.weight", array(model.output.weight))
        bias = graph.weight("output.bias", array(model.output.bias))
        x = graph.node("Gemm", x, weight, bias, transB=1)
    return x


def _log_probabilities(
    graph: GraphBuilder, softmax: AdaptiveSoftmax, weights: tuple[list[str], list[str]], z: str
) -> list[_Part]:
    """Give log p of each cluster from features z (N, E); see `AdaptiveSoftmax.scores`."""
    tables, projections = weights
    biases = [
        graph.weight(f"softmax.biases.{i}", array(bias)) for i, bias in enumerate(softmax.biases)
    ]
    if not projections:
        scores = graph.node("Gemm", z, tables[0], biases[0], transB=1)
        return [(graph.node("LogSoftmax", scores, axis=-1), None)]
    gate_weight = graph.weight("softmax.tail_weight", array(softmax.tail_weight))
    gate_bias = graph.weight("softmax.tail_bias", array(softmax.tail_bias))
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
    parts: list[_Part] = [(words, None)]
    for table, projection, bias, gate in zip(
        tables[1:], projections, biases[1:], gates, strict=True
    ):
        narrow = graph.node("Gemm", z, projection, transB=1)
        tail = graph.node("Gemm", narrow, table, bias, transB=1)
        parts.append((graph.node("LogSoftmax", tail, axis=-1), gate))
    return parts


def _declare_scores(graph: GraphBuilder, scores: str, width: int, shape: str) -> None:
    """Declare the outputs of one cluster, whose log p are (N, V)."""
    logits = _shaped(graph, scores, shape, graph.constant([width]))
    best, indices = graph.nodes("TopK", logits, TOP_K, outputs=2)
    graph.output(logits, LOGITS, "float32", ["B", "T", width])
    _declare_ranked(graph, best, indices)


def _declare_best(
    graph: GraphBuilder,
    parts: list[_Part],
    clusters: list[tuple[int, int]],
    most: int,
    shape: str,
) -> None:
    """Declare the best of all clusters, which are among the best of each. Those of all its words are never joined."""
    scores, ids = [], []
    for (part, gate), (low, high) in zip(parts, clusters, strict=True):
        few = high - low < most
        count = graph.node("Min", TOP_K, graph.constant([high - low])) if few else TOP_K
        best, at = graph.nodes("TopK", part, count, outputs=2)
        scores.append(graph.node("Add", best, gate) if gate else best)
        ids.append(graph.node("Add", at, graph.constant(low)) if low else at)
    best, at = graph.nodes("TopK", graph.node("Concat", *scores, axis=1), TOP_K, outputs=2)
    indices = graph.node("GatherElements", graph.node("Concat", *ids, axis=1), at, axis=1)
    _declare_ranked(
        graph,
        _shaped(graph, best, shape, TOP_K),
        _shaped(graph, indices, shape, TOP_K),
    )


def _declare_all(
    graph: GraphBuilder, parts: list[_Part], clusters: list[tuple[int, int]], shape: str
) -> None:
    """Declare the log p of all words, if they are asked for: else each part is cut to nothing before it is copied."""
    asked = graph.default(ALL_SCORES, [1])
    first, axis = graph.constant([0]), graph.constant([1])
    whole = []
    for (part, gate), (low, high) in zip(parts, clusters, strict=True):
        width = graph.node("Mul", asked, graph.constant([high - low]))
        part = graph.node("Slice", part, first, width, axis)
        part = graph.node("Add", part, gate) if gate else part
        whole.append(_shaped(graph, part, shape, width))
    logits = graph.node("Concat", *whole, axis=2)
    graph.output(logits, LOGITS, "float32", ["B", "T", clusters[-1][1]])


def _declare_ranked(graph: GraphBuilder, scores: str, indices: str) -> None:
    graph.output(scores, "top_scores", "float32", ["B", "T", "K"])
    graph.output(indices, "top_indices", "int64", ["B", "T", "K"])


def _shaped(graph: GraphBuilder, value: str, shape: str, width: str) -> str:
    """(N, width) as (B, T, width), of the shape (B, T); a width of 0 is one too."""
    return graph.node("Reshape", value, graph.node("Concat", shape, width, axis=0), allowzero=1)
