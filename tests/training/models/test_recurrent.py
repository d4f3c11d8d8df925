from __future__ import annotations

from typing import Any, get_args

import pytest
import torch

from training.config import Cell, RecurrentConfig
from training.models.encoder import SequenceDropout
from training.models.recurrent import RecurrentEncoder
from training.next_word.config import ModelConfig
from training.next_word.model import LanguageModel

CELLS = get_args(Cell)
VOCABULARY = 20


def model(
    cell: Cell, *, tied: bool = True, embedding_dim: int = 6, **changes: Any
) -> LanguageModel:
    torch.manual_seed(0)
    encoder = RecurrentConfig(cell=cell, **{"hidden_size": 8, "num_layers": 2, **changes})
    config = ModelConfig(embedding_dim=embedding_dim, cutoffs=(9,), cutoff_dims=(3,), tied=tied)
    return LanguageModel(config, encoder, VOCABULARY)


def tokens(batch_size: int, time: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(VOCABULARY, (batch_size, time), generator=generator)


@pytest.mark.parametrize("cell", CELLS)
def test_state_is_batch_first_and_chunks_give_the_same_as_the_whole(cell: Cell) -> None:
    network, text = model(cell).eval(), tokens(3, 9)
    scores, state = network.scores(text, network.encoder.initial_state(3))
    assert scores.shape == (3, 9, VOCABULARY)
    assert [part.shape for part in state] == [(3, 2, 8)] * len(network.encoder.states)
    parts, after = [], network.encoder.initial_state(3)
    for chunk in text.split([2, 1, 6], dim=1):
        part, after = network.scores(chunk, after)
        parts.append(part)
    torch.testing.assert_close(torch.cat(parts, dim=1), scores)
    torch.testing.assert_close(after, state)


@pytest.mark.parametrize("cell", CELLS)
def test_a_row_does_not_depend_on_its_batch_mates(cell: Cell) -> None:
    network, text = model(cell).eval(), tokens(4, 5)
    together, _ = network.scores(text, network.encoder.initial_state(4))
    alone, _ = network.scores(text[2:3], network.encoder.initial_state(1))
    torch.testing.assert_close(together[2:3], alone)


@pytest.mark.parametrize("cell", CELLS)
def test_recurrent_weights_start_orthogonal_for_each_gate(cell: Cell) -> None:
    for layer in model(cell).encoder.layers:
        for gate in layer.weight_hh_l0.split(8):
            torch.testing.assert_close(gate @ gate.T, torch.eye(8))


def test_without_the_switch_they_do_not() -> None:
    gate = model("lstm", orthogonal=False).encoder.layers[0].weight_hh_l0[:8]
    assert not torch.allclose(gate @ gate.T, torch.eye(8), atol=0.1)


@pytest.mark.parametrize("bias", [0.0, 1.0])
def test_the_forget_gate_starts_at_its_bias(bias: float) -> None:
    for layer in model("lstm", forget_bias=bias).encoder.layers:
        total = layer.bias_ih_l0 + layer.bias_hh_l0
        expected = torch.zeros(4, 8)
        expected[1] = bias
        torch.testing.assert_close(total, expected.flatten())


def test_a_forget_bias_keeps_the_memory_longer() -> None:
    def kept(bias: float) -> float:
        network = model("lstm", forget_bias=bias).eval()
        start = tuple(torch.ones_like(part) for part in network.encoder.initial_state(1))
        _, (_, c) = network.scores(tokens(1, 5), start)
        return float(c.detach().abs().mean())

    assert kept(3.0) > 2 * kept(0.0)


@pytest.mark.parametrize("cell", CELLS)
def test_layer_norm_normalises_what_each_layer_gives(cell: Cell) -> None:
    network = model(cell, layer_norm=True, tied=False, embedding_dim=8)
    z, _ = network.features(tokens(2, 4), network.encoder.initial_state(2))
    torch.testing.assert_close(z.mean(dim=-1), torch.zeros(2, 4), atol=1e-5, rtol=0)


def test_tied_factors_are_shared_and_untied_ones_are_not() -> None:
    tied, untied = model("gru"), model("gru", tied=False)
    assert tied.softmax.factors is tied.embedding
    factors = sum(parameter.numel() for parameter in tied.embedding.parameters())
    more = sum(p.numel() for p in untied.parameters()) - sum(p.numel() for p in tied.parameters())
    assert more == factors


def test_dropout_takes_the_same_features_at_every_time_step() -> None:
    torch.manual_seed(0)
    dropout = SequenceDropout(0.5)
    x = dropout(torch.ones(5, 7, 40))
    assert torch.equal(x, x[:, :1].expand_as(x))
    assert not torch.equal(x[0], x[1])
    assert set(x.unique().tolist()) == {0.0, 2.0}
    assert torch.equal(dropout.eval()(torch.ones(5, 7, 40)), torch.ones(5, 7, 40))


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_padding_changes_nothing(cell: Cell, bidirectional: bool) -> None:
    torch.manual_seed(0)
    encoder = RecurrentEncoder(
        RecurrentConfig(cell=cell, hidden_size=5, num_layers=2, bidirectional=bidirectional), 4
    ).eval()
    x, lengths = torch.randn(3, 6, 4), torch.tensor([6, 2, 4])
    together, state = encoder(x, encoder.initial_state(3), lengths)
    for i, length in enumerate(lengths):
        alone, last = encoder(x[i : i + 1, :length], encoder.initial_state(1))
        torch.testing.assert_close(together[i : i + 1, :length], alone)
        for part, expected in zip(state, last, strict=True):
            torch.testing.assert_close(part[i : i + 1], expected)


@pytest.mark.parametrize("cell", CELLS)
def test_a_bidirectional_encoder_reads_the_mirrored_text_from_the_other_end(cell: Cell) -> None:
    torch.manual_seed(0)
    config = RecurrentConfig(cell=cell, hidden_size=5, bidirectional=True)
    encoder = RecurrentEncoder(config, 4).eval()
    assert encoder.states == ()
    assert encoder.width_out == 10
    mirrored = RecurrentEncoder(config, 4).eval()
    weights = encoder.state_dict()
    names = [name for name in weights if not name.endswith("_reverse")]
    mirrored.load_state_dict(
        {name: weights[f"{name}_reverse"] for name in names}
        | {f"{name}_reverse": weights[name] for name in names}
    )
    x = torch.randn(2, 7, 4)
    features, _ = encoder(x, ())
    other, _ = mirrored(x.flip(1), ())
    forward, backward = features.chunk(2, dim=-1)
    expected = torch.cat([backward, forward], dim=-1)
    torch.testing.assert_close(other.flip(1), expected)
