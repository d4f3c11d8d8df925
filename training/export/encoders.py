"""Encoders as nodes of a graph: declared states in, features and next states out."""

from __future__ import annotations

from collections.abc import Sequence

from training.export import recurrent, transformer
from training.export.onnx_graph import GraphBuilder
from training.models.encoder import Encoder
from training.models.recurrent import RecurrentEncoder
from training.models.transformer import TransformerEncoder


def encode(graph: GraphBuilder, encoder: Encoder, x: str, lengths: str) -> str:
    """Run an encoder, with its state as inputs and outputs of the graph.

    Args:
        graph: Where to.
        encoder: Trained weights.
        x: Name of the features (B, T, E).
        lengths: Name of the valid positions of each row (B,) int32.

    Returns:
        Name of the features (B, T, D).
    """
    states = [graph.input(spec.name, spec.dtype, ["B", *spec.shape]) for spec in encoder.states]
    features, after = _nodes(graph, encoder, x, lengths, states)
    for spec, value in zip(encoder.states, after, strict=True):
        graph.output(value, f"{spec.name}_out", spec.dtype, ["B", *spec.shape])
    return features


def _nodes(
    graph: GraphBuilder, encoder: Encoder, x: str, lengths: str, states: Sequence[str]
) -> tuple[str, Sequence[str]]:
    if isinstance(encoder, RecurrentEncoder):
        return recurrent.encode(graph, encoder, x, lengths, states)
    assert isinstance(encoder, TransformerEncoder)
    return transformer.encode(graph, encoder, x, lengths, states)
