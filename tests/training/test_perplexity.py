from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from training import checkpoint, next_word, vocabulary
from training.config import NextWordRun
from training.data import corpora
from training.export.runtime import LoadedGraph
from training.perplexity import perplexity
from training.trainer import Text, Trainer, fabric_for


@pytest.fixture
def trained(tiny: Callable[..., NextWordRun], tiny_text: Text, tmp_path: Path) -> NextWordRun:
    run = tiny()
    Trainer(run, tiny_text, tmp_path, fabric_for(run)).fit()
    corpus = corpora.load(run.data)
    vocabulary.build(corpus.train).save(str(tmp_path / checkpoint.VOCABULARY))
    return run


def test_the_exported_graph_has_the_perplexity_of_the_torch_model_over_the_whole_text(
    trained: NextWordRun, tiny_text: Text, tmp_path: Path
) -> None:
    bundle = next_word.bundle(trained, "", tmp_path, corpora.load(trained.data))
    weights = checkpoint.load(tmp_path / checkpoint.BEST)["weights"]
    model = next_word.stored_model(trained, weights, tiny_text.vocab_size)
    with torch.no_grad():
        scores, _ = model.scores(tiny_text.valid[None, :-1], model.initial_state(1))
    expected = math.exp(functional.nll_loss(scores[0], tiny_text.valid[1:]).item())
    found = perplexity(LoadedGraph(bundle.model, bundle.config), tiny_text.valid.numpy())
    assert found == pytest.approx(expected, rel=1e-5)
    assert found < tiny_text.vocab_size / 1.5


def test_float16_storage_costs_no_quality(
    trained: NextWordRun, tiny_text: Text, tmp_path: Path
) -> None:
    weights = checkpoint.load(tmp_path / checkpoint.BEST)["weights"]
    stored = next_word.stored_model(trained, weights, tiny_text.vocab_size)
    for name, value in stored.state_dict().items():
        np.testing.assert_allclose(value.numpy(), weights[name].numpy(), rtol=1e-3, atol=1e-7)
        assert torch.equal(value, value.half().float())
