from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from torch.nn import functional

from service.contract import NextWord
from training import checkpoint
from training.export import parity
from training.export.runtime import LoadedGraph
from training.export.weights import as_stored
from training.next_word import corpora
from training.next_word.bundle import bundle
from training.next_word.config import NextWordRun
from training.next_word.learner import TextLearner
from training.next_word.model import LanguageModel
from training.next_word.perplexity import nats_per_token
from training.trainer import Trainer, fabric_for


@pytest.fixture
def trained(
    tiny: Callable[..., NextWordRun], learner: Callable[..., TextLearner], tmp_path: Path
) -> NextWordRun:
    run = tiny()
    lesson = learner(run)
    Trainer(run, lesson, tmp_path, fabric_for(run.training)).fit()
    for name, content in lesson.files.items():
        (tmp_path / name).write_bytes(content)
    return run


def test_the_exported_graph_has_the_perplexity_of_the_torch_model_over_the_whole_text(
    trained: NextWordRun, tmp_path: Path
) -> None:
    corpus = corpora.load(trained.data)
    made = bundle(trained, "", tmp_path, corpus)
    weights = checkpoint.load(tmp_path / checkpoint.BEST)["weights"]
    ids = {word: i for i, (word, _) in enumerate(Counter(corpus.train).most_common())}
    valid = torch.tensor([ids[word] for word in corpus.valid])
    model = LanguageModel(trained.model, trained.encoder, len(ids)).eval()
    model.load_state_dict(as_stored(weights, trained.export))
    with torch.no_grad():
        scores, _ = model.scores(valid[None, :-1], model.encoder.initial_state(1))
    expected = functional.nll_loss(scores[0], valid[1:]).item()
    graph = LoadedGraph(made.model, made.config)
    found = nats_per_token(graph, valid.numpy())
    assert found == pytest.approx(expected, rel=1e-5)
    assert found < math.log(len(ids) / 1.5)
    (metric,) = made.measure(graph)
    assert (metric.name, metric.value) == ("perplexity", pytest.approx(math.exp(found)))


def test_float16_storage_costs_no_quality(trained: NextWordRun, tmp_path: Path) -> None:
    weights = checkpoint.load(tmp_path / checkpoint.BEST)["weights"]
    for name, value in as_stored(weights, trained.export).items():
        np.testing.assert_allclose(value.numpy(), weights[name].numpy(), rtol=1e-3, atol=1e-7)
        assert torch.equal(value, value.half().float())


def test_a_vocabulary_smaller_than_top_k_gives_all_of_it(
    trained: NextWordRun, tmp_path: Path
) -> None:
    run = msgspec.structs.replace(
        trained, export=msgspec.structs.replace(trained.export, top_k=1000)
    )
    made = bundle(run, "", tmp_path, corpora.load(run.data))
    graph = LoadedGraph(made.model, made.config)
    inputs = {"tokens": np.array([[0, 1]])}
    outputs, _ = graph.run(inputs, np.array([2]), graph.initial_state(1))
    assert isinstance(made.config.task, NextWord)
    assert made.config.task.top_k == made.config.task.vocab_size
    assert outputs["top_scores"].shape == (1, 2, made.config.task.vocab_size)
    parity.check(made, graph)
