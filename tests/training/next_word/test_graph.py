from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from service.contract import ALL_SCORES, LOGITS, TOP_K
from training.config import RecurrentConfig
from training.next_word.config import ModelConfig
from training.next_word.graph import step_graph
from training.next_word.model import LanguageModel

VOCABULARY = 30
MOST = 8
BEST = ["top_scores", "top_indices"]


def session(*clusters: tuple[int, int]) -> onnxruntime.InferenceSession:
    """A language model with tail clusters from these ids on, of these widths."""
    cutoffs, widths = zip(*clusters, strict=True) if clusters else ((), ())
    config = ModelConfig(embedding_dim=8, cutoffs=cutoffs, cutoff_dims=widths)
    torch.manual_seed(0)
    model = LanguageModel(
        config, RecurrentConfig(cell="gru", hidden_size=8, num_layers=1), VOCABULARY
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    content = step_graph(model, MOST, "float32").SerializeToString()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def feeds(rows: int, time: int) -> dict[str, Any]:
    random = np.random.default_rng(1)
    return {
        "tokens": random.integers(0, VOCABULARY, (rows, time)),
        "lengths": np.full(rows, time, np.int32),
        "h": random.normal(size=(rows, 1, 8)).astype(np.float32),
    }


# Fewer words than candidates in the head, in the tail, and in neither.
@pytest.mark.parametrize("clusters", [(), ((12, 4),), ((5, 4), (25, 2)), ((1, 4), (2, 3), (29, 2))])
@pytest.mark.parametrize("count", [1, 3, MOST])
def test_the_best_of_all_words_are_found_cluster_by_cluster(
    clusters: tuple[tuple[int, int], ...], count: int
) -> None:
    model, given = session(*clusters), feeds(3, 4)
    asked = given | {TOP_K: np.array([count])}
    logits, scores, indices = model.run([LOGITS, *BEST], asked)
    assert logits.shape == (3, 4, VOCABULARY)
    order = (-logits).argsort(axis=-1, kind="stable")[..., :count]
    assert indices.tolist() == order.tolist()
    assert scores.tobytes() == np.take_along_axis(logits, order, axis=-1).tobytes()


@pytest.mark.parametrize("clusters", [((12, 4),), ((5, 4), (25, 2))])
def test_scores_that_nobody_asked_for_are_not_copied(clusters: tuple[tuple[int, int], ...]) -> None:
    model, given = session(*clusters), feeds(2, 3)
    names = [output.name for output in model.get_outputs()]
    whole = dict(zip(names, model.run(names, given), strict=True))
    few = dict(zip(names, model.run(names, given | {ALL_SCORES: np.array([0])}), strict=True))
    assert few.pop(LOGITS).shape == (2, 3, 0)
    assert whole.pop(LOGITS).shape == (2, 3, VOCABULARY)
    assert {name: values.tobytes() for name, values in few.items()} == {
        name: values.tobytes() for name, values in whole.items()
    }


def test_where_there_is_one_cluster_nothing_is_copied_and_nothing_to_ask() -> None:
    assert [node.name for node in session().get_overridable_initializers()] == [TOP_K]
