from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from training.next_word.adaptive import AdaptiveSoftmax, Factors
from training.next_word.config import ModelConfig

VOCABULARY = 30
clusters = st.sampled_from([((), ()), ((12,), (5,)), ((5, 20), (3, 2)), ((1, 2, 29), (4, 2, 1))])


def config(cutoffs: tuple[int, ...], widths: tuple[int, ...]) -> ModelConfig:
    return ModelConfig(embedding_dim=8, cutoffs=cutoffs, cutoff_dims=widths)


def softmax(cutoffs: tuple[int, ...], widths: tuple[int, ...]) -> AdaptiveSoftmax:
    torch.manual_seed(0)
    layer = AdaptiveSoftmax(Factors(config(cutoffs, widths), VOCABULARY))
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    return layer


@settings(deadline=None)
@given(clusters, st.integers(0, 100))
def test_probabilities_of_the_whole_vocabulary_sum_to_one(shape: Any, seed: int) -> None:
    z = torch.randn(4, 3, 8, generator=torch.Generator().manual_seed(seed))
    scores = softmax(*shape).scores(z)
    assert scores.shape == (4, 3, VOCABULARY)
    torch.testing.assert_close(scores.exp().sum(dim=-1), torch.ones(4, 3))


@settings(deadline=None)
@given(clusters, st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=20))
def test_the_loss_is_that_of_the_full_probabilities(shape: Any, targets: list[int]) -> None:
    layer = softmax(*shape)
    z = torch.randn(len(targets), 8, generator=torch.Generator().manual_seed(0))
    wanted = torch.tensor(targets)
    expected = functional.nll_loss(layer.scores(z), wanted)
    torch.testing.assert_close(layer(z, wanted), expected)


def test_every_parameter_has_a_gradient_even_where_no_target_falls() -> None:
    layer = softmax((5, 20), (3, 2))
    layer(torch.randn(3, 8), torch.tensor([0, 1, 2])).backward()
    assert all(parameter.grad is not None for parameter in layer.parameters())


@settings(deadline=None)
@given(clusters, st.lists(st.integers(0, VOCABULARY - 1), max_size=12))
def test_embeddings_are_rows_of_the_tables_made_wide(shape: Any, ids: list[int]) -> None:
    factors = Factors(config(*shape), VOCABULARY)
    wide = [factors.tables[0]]
    wide += [t @ p for t, p in zip(list(factors.tables)[1:], factors.projections, strict=True)]
    tokens = torch.tensor(ids, dtype=torch.int64).view(-1, 1)
    torch.testing.assert_close(factors(tokens), torch.cat(wide)[tokens])


def test_cutoffs_beyond_the_vocabulary_are_refused() -> None:
    with pytest.raises(ValueError, match="do not fit a vocabulary of 30"):
        Factors(config((5, 30), (2, 2)), VOCABULARY)
