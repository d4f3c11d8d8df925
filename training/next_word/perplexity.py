"""Perplexity of an exported next-word model, computed by the graph that is served."""

from __future__ import annotations

import math

import numpy as np

from training.export.runtime import Array, LoadedGraph

CHUNK_LENGTH = 64


def perplexity(graph: LoadedGraph, ids: Array) -> float:
    """The exponential of the mean of -log p(token) over a text, the state carried from its first token to its last.

    Args:
        graph: A next-word model.
        ids: Token ids (N,) int64. The first has no past and is not predicted, so N - 1 tokens count.
    """
    state = graph.initial_state(1)
    total = 0.0
    for start in range(0, len(ids) - 1, CHUNK_LENGTH):
        targets = ids[start + 1 : start + 1 + CHUNK_LENGTH]
        tokens = ids[start : start + len(targets)]
        outputs, state = graph.run(
            {"tokens": tokens[None]}, np.array([len(tokens)]), state, "logits", "logsumexp"
        )
        scores = outputs["logits"][0, np.arange(len(targets)), targets].astype(np.float64)
        total += float(np.sum(outputs["logsumexp"][0] - scores))
    return math.exp(total / (len(ids) - 1))
