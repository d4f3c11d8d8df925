"""The step graph of a language model."""

from __future__ import annotations

import numpy as np
import onnx
from torch import nn

from service.contract import TOP_K
from training.export.encoders import encode
from training.export.onnx_graph import GraphBuilder, Storage, array
from training.next_word.adaptive import AdaptiveSoftmax, Factors
from training.next_word.model import LanguageModel


def step_graph(model: LanguageModel, top_k: int, storage: Storage) -> onnx.ModelProto:
    """The graph `y, state' = f_W(state, x)` of the service's contract for next-word models.

    Args:
        model: Trained weights.
        top_k: K, how many of the largest scores to give if the input `top_k` does not say otherwise.
        storage: Number format of the weights in the file.

    Returns:
        A model with inputs tokens (B, T), lengths (B,), the encoder's states and, with a default, top_k (1,); and
        outputs logits (B, T, V), top_scores and top_indices (B, T, K), logsumexp (B, T), and the next states.
    """
    graph = GraphBuilder(storage)
    tokens = graph.input("tokens", "int64", ["B", "T"])
    lengths = graph.input("lengths", "int32", ["B"])
    tables = _tables(graph, model.embedding, "embedding")
    x = encode(graph, model.encoder, _embed(graph, model.embedding, tables, tokens), lengths)
    shared = model.softmax.factors is model.embedding
    tables = tables if shared else _tables(graph, model.softmax.factors, "softmax")
    parts = _log_probabilities(graph, model.softmax, tables, _features(graph, model, x))
    widths = [high - low for low, high in model.softmax.factors.clusters()]
    _declare_scores(graph, parts, widths, tokens, top_k)
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
) -> list[str]:
    """Give log p in parts (N, V_i), one for each cluster, from features z (N, E); see `AdaptiveSoftmax.scores`."""
    tables, projections = weights
    biases = [
        graph.weight(f"softmax.biases.{i}", array(bias)) for i, bias in enumerate(softmax.biases)
    ]
    if not projections:
        scores = graph.node("Gemm", z, tables[0], biases[0], transB=1)
        return [graph.node("LogSoftmax", scores, axis=-1)]
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
    # Of one part it would be a copy.
    logits = graph.node("Concat", *parts, axis=2) if len(parts) > 1 else parts[0]
    wanted = graph.default(TOP_K, [top_k])
    top_scores, top_indices = graph.nodes("TopK", logits, wanted, outputs=2)
    # The scores are normalised already; their log-sum-exp is 0 but for rounding.
    logsumexp = graph.node("ConstantOfShape", shape)
    graph.output(logits, "logits", "float32", ["B", "T", sum(widths)])
    graph.output(top_scores, "top_scores", "float32", ["B", "T", "K"])
    graph.output(top_indices, "top_indices", "int64", ["B", "T", "K"])
    graph.output(logsumexp, "logsumexp", "float32", ["B", "T"])
