"""Recurrent encoders as RNN, LSTM and GRU nodes, built from their weights.

Inside, time is the first axis, which is the only layout that runtimes implement; outside, the batch is.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import nn

from training.export.onnx_graph import Array, GraphBuilder, array
from training.models.recurrent import RecurrentEncoder

_OPERATORS = {"rnn_tanh": "RNN", "rnn_relu": "RNN", "lstm": "LSTM", "gru": "GRU"}
# ONNX order of the gates, as positions in torch's: iofc from ifgo (LSTM), zrh from rzn (GRU).
_GATE_ORDER = {"rnn_tanh": [0], "rnn_relu": [0], "lstm": [0, 3, 1, 2], "gru": [1, 0, 2]}


def encode(
    graph: GraphBuilder, encoder: RecurrentEncoder, x: str, lengths: str, states: Sequence[str]
) -> tuple[str, list[str]]:
    """Run every layer.

    Args:
        graph: Where to.
        encoder: Trained weights.
        x: Name of the features (B, T, E).
        lengths: Name of the valid positions of each row (B,) int32.
        states: Names of the states before, (B, L, H) each; none if bidirectional.

    Returns:
        Names of the features (B, T, D) and of the states after, (B, L, H) each.
    """
    count = encoder.config.num_layers
    before = []
    for state in states:
        by_layer = graph.node("Transpose", state, perm=[1, 0, 2])
        before.append(graph.nodes("Split", by_layer, outputs=count, axis=0, num_outputs=count))
    after: list[list[str]] = [[] for _ in states]
    x = graph.node("Transpose", x, perm=[1, 0, 2])
    for i, (layer, norm) in enumerate(zip(encoder.layers, encoder.norms, strict=True)):
        x, *last = _layer(graph, encoder, i, layer, x, lengths, [state[i] for state in before])
        for parts, part in zip(after, last, strict=True):
            parts.append(part)
        if isinstance(norm, nn.LayerNorm):
            weight = graph.weight(f"norms.{i}.weight", array(norm.weight))
            bias = graph.weight(f"norms.{i}.bias", array(norm.bias))
            x = graph.node("LayerNormalization", x, weight, bias, axis=-1, epsilon=norm.eps)
    joined = [graph.node("Concat", *parts, axis=0) for parts in after]
    states_after = [graph.node("Transpose", part, perm=[1, 0, 2]) for part in joined]
    return graph.node("Transpose", x, perm=[1, 0, 2]), states_after


def _layer(
    graph: GraphBuilder,
    encoder: RecurrentEncoder,
    i: int,
    layer: nn.Module,
    x: str,
    lengths: str,
    states: list[str],
) -> list[str]:
    """One layer over x (T, B, D): its outputs (T, B, D') and last states (1, B, H)."""
    cell, both = encoder.config.cell, encoder.config.bidirectional
    weights = [
        graph.weight(f"layers.{i}.{name}", values)
        for name, values in zip("WRB", operator_weights(cell, layer, both=both), strict=True)
    ]
    attributes: dict[str, object] = {"hidden_size": encoder.config.hidden_size}
    if both:
        attributes["direction"] = "bidirectional"
    if cell == "gru":
        attributes["linear_before_reset"] = 1
    if cell.startswith("rnn"):
        attributes["activations"] = ["Tanh" if cell == "rnn_tanh" else "Relu"] * (1 + both)
    y, *last = graph.nodes(
        _OPERATORS[cell], x, *weights, lengths, *states, outputs=1 + len(states), **attributes
    )
    if not both:
        return [graph.node("Squeeze", y, graph.constant([1])), *last]
    # (T, 2, B, H): the directions stand side by side in each position's features.
    y = graph.node("Transpose", y, perm=[0, 2, 1, 3])
    return [graph.node("Reshape", y, graph.constant([0, 0, encoder.width_out]))]


def operator_weights(
    cell: str, layer: nn.Module, *, both: bool = False
) -> tuple[Array, Array, Array]:
    """W (N, G*H, D), R (N, G*H, H) and B (N, 2*G*H) of the ONNX operator: N directions, G gates in its order."""
    parameters = {name: array(value) for name, value in layer.named_parameters()}

    def reordered(name: str) -> Array:
        gates = np.split(parameters[name], len(_GATE_ORDER[cell]))
        return np.concatenate([gates[gate] for gate in _GATE_ORDER[cell]])

    weights: tuple[list[Array], list[Array], list[Array]] = ([], [], [])
    for end in ("", "_reverse") if both else ("",):
        biases = [reordered(f"bias_ih_l0{end}"), reordered(f"bias_hh_l0{end}")]
        parts = (
            reordered(f"weight_ih_l0{end}"),
            reordered(f"weight_hh_l0{end}"),
            np.concatenate(biases),
        )
        for collected, part in zip(weights, parts, strict=True):
            collected.append(part)
    w, r, b = (np.stack(parts) for parts in weights)
    return w, r, b
