"""How well an exported language model predicts a text, computed by the graph that is served."""

from __future__ import annotations

import math

import numpy as np

from service.contract import Metric
from training.export.runtime import Array, LoadedGraph
from training.next_word.corpora import Corpus

CHUNK_LENGTH = 64


def nats_per_token(graph: LoadedGraph, ids: Array) -> float:
    """Mean of -log p(token) over a text, the state carried from its first token to its last.

    Args:
        graph: A language model.
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
    return total / (len(ids) - 1)


def metric(corpus: Corpus, nats: float, floor_name: str = "") -> Metric:
    """Nats per token of a validation text under its usual name: of words the perplexity e^nats, of characters the nats.

    Args:
        corpus: The text.
        nats: Mean of -log p(token).
        floor_name: The method, if this is a floor.
    """
    split = f"{corpus.dataset.name} valid"
    if corpus.level == "character":
        return Metric(name="nats per character", split=split, value=nats, floor_name=floor_name)
    return Metric(name="perplexity", split=split, value=math.exp(nats), floor_name=floor_name)
