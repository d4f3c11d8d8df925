from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from training.config import EncoderConfig, RecurrentConfig, TransformerConfig
from training.sentiment.config import ModelConfig, Pooling
from training.sentiment.model import AttentionPooling, MaxPooling, SentimentModel

GRU = RecurrentConfig(cell="gru", hidden_size=12)
TRANSFORMER = TransformerConfig(width=16, heads=2, num_layers=2, window=5, feedforward=24)
BOTH_WAYS = RecurrentConfig(cell="lstm", hidden_size=10, bidirectional=True)
POOLINGS: tuple[Pooling, ...] = ("max", "attention")


def make_model(
    encoder: EncoderConfig, pooling: Pooling = "max", *, exclusive: bool = False, **changes: float
) -> SentimentModel:
    torch.manual_seed(0)
    config = ModelConfig(embedding_dim=8, pooling=pooling, **changes)
    return SentimentModel(config, encoder, 20, 3, exclusive=exclusive).eval()


def words(rows: int, time: int) -> torch.Tensor:
    return torch.randint(1, 20, (rows, time), generator=torch.Generator().manual_seed(rows + time))


def answers(model: SentimentModel, tokens: torch.Tensor, lengths: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return model.scores(tokens, torch.tensor(lengths), model.initial_state(len(tokens)))[0]


def test_max_pooling_against_numpy() -> None:
    x = torch.randn(2, 6, 4)
    valid = torch.ones(2, 6, 1)
    valid[1, 4:] = 0
    before = torch.rand(2, 4)
    pooled, (after,) = MaxPooling(4)(x, valid, (before,))
    for row, length in enumerate((6, 4)):
        for t in range(length):
            due = np.maximum(x[row, : t + 1].numpy().max(axis=0), before[row].numpy())
            np.testing.assert_allclose(pooled[row, t], due)
        np.testing.assert_allclose(after[row], pooled[row, length - 1])


def test_attention_pooling_against_numpy() -> None:
    pooling = AttentionPooling(4)
    x = torch.randn(2, 6, 4)
    valid = torch.ones(2, 6, 1)
    valid[1, 4:] = 0
    with torch.no_grad():
        pooled, (mean, log_weight) = pooling(x, valid, (torch.zeros(2, 4), torch.zeros(2, 1)))
        hidden = np.tanh(x.numpy() @ pooling.hidden.weight.numpy().T + pooling.hidden.bias.numpy())
        exp = np.exp(hidden @ pooling.score.weight.numpy()[0])
    for row, length in enumerate((6, 4)):
        for t in range(length):
            share = exp[row, : t + 1] / (1 + exp[row, : t + 1].sum())
            np.testing.assert_allclose(pooled[row, t], share @ x[row, : t + 1].numpy(), rtol=1e-4)
        weight = 1 + exp[row, :length].sum()
        np.testing.assert_allclose(log_weight[row], [np.log(weight)], rtol=1e-5)
        np.testing.assert_allclose(mean[row], pooled[row, length - 1])


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("encoder", [GRU, TRANSFORMER], ids=["gru", "transformer"])
def test_a_causal_model_answers_after_each_word_from_the_words_so_far(
    encoder: EncoderConfig, pooling: Pooling
) -> None:
    model, tokens = make_model(encoder, pooling), words(1, 9)
    whole = answers(model, tokens, [9])[0]
    for t in range(1, 10):
        alone = answers(model, tokens[:, :t], [t])[0, -1]
        torch.testing.assert_close(alone, whole[t - 1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("encoder", [GRU, TRANSFORMER], ids=["gru", "transformer"])
def test_chunks_with_the_state_between_them_answer_as_the_whole(
    encoder: EncoderConfig, pooling: Pooling
) -> None:
    model, tokens = make_model(encoder, pooling), words(2, 11)
    whole = answers(model, tokens, [11, 11])
    state, parts = model.initial_state(2), []
    assert [tuple(part.shape[1:]) for part in state] == [spec.shape for spec in model.states]
    with torch.no_grad():
        for chunk in tokens.split([1, 4, 6], dim=1):
            scores, state = model.scores(chunk, torch.tensor([chunk.shape[1]] * 2), state)
            parts.append(scores)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("encoder", [GRU, BOTH_WAYS], ids=["causal", "bidirectional"])
def test_a_longer_neighbour_changes_nothing(encoder: EncoderConfig, pooling: Pooling) -> None:
    model, tokens = make_model(encoder, pooling), words(2, 8)
    together = answers(model, tokens, [8, 3])
    alone = answers(model, tokens[1:, :3], [3])
    torch.testing.assert_close(together[1:, :3], alone, rtol=0, atol=1e-6)


def test_a_bidirectional_model_has_one_answer_and_no_state() -> None:
    model, tokens = make_model(BOTH_WAYS), words(1, 6)
    scores = answers(model, tokens, [6])
    assert (scores == scores[:, :1]).all()
    assert model.states == ()
    # The last word counts for the answer at the first.
    other = torch.cat([tokens[:, :5], (tokens[:, 5:] + 1) % 20], dim=1)
    assert (answers(model, other, [6])[0, 0] != scores[0, 0]).any()


def test_scores_are_probabilities_that_add_up_only_where_labels_are_exclusive() -> None:
    tokens = words(3, 5)
    exclusive = answers(make_model(GRU, exclusive=True), tokens, [5] * 3)
    several = answers(make_model(GRU), tokens, [5] * 3)
    torch.testing.assert_close(exclusive.sum(dim=-1), torch.ones(3, 5))
    assert ((several > 0) & (several < 1)).all()
    assert ((several.sum(dim=-1) - 1).abs() > 1e-3).any()


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_the_loss_of_a_head_that_knows_nothing(weight: float) -> None:
    tokens, lengths = words(4, 6), torch.tensor([6, 6, 2, 1])
    targets = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, 0]])
    for exclusive, nats in ((True, math.log(3)), (False, math.log(2))):
        model = make_model(GRU, exclusive=exclusive, prefix_loss=weight)
        torch.nn.init.zeros_(model.head.weight)
        torch.nn.init.zeros_(model.head.bias)
        loss, state = model(tokens, lengths, targets, ())
        assert state == ()
        assert float(loss.detach()) == pytest.approx((1 + weight) * nats, rel=1e-5)


def test_the_loss_is_that_of_the_last_word_and_a_share_of_the_mean_over_words() -> None:
    tokens, lengths = words(2, 5), torch.tensor([5, 3])
    targets = torch.tensor([[1.0, 0, 0], [0, 1, 0]])
    model = make_model(GRU, exclusive=True, prefix_loss=0.25)
    nats = -(answers(model, tokens, [5, 3]).log() * targets[:, None]).sum(dim=-1).numpy()
    due = [nats[i, n - 1] + 0.25 * nats[i, :n].mean() for i, n in enumerate((5, 3))]
    loss = model(tokens, lengths, targets, ())[0].detach()
    assert float(loss) == pytest.approx(np.mean(due), rel=1e-5)


def test_words_are_hidden_only_while_learning() -> None:
    model, tokens = make_model(GRU, word_dropout=0.5), words(1, 30)
    assert torch.equal(answers(model, tokens, [30]), answers(model, tokens, [30]))
    model.train()
    assert not torch.equal(answers(model, tokens, [30]), answers(model, tokens, [30]))
