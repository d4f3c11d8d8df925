from __future__ import annotations

import math
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.training import banded
from training.config import TransformerConfig
from training.models.transformer import PERIOD_WINDOWS, TransformerEncoder, rotate, turns

CONFIG = TransformerConfig(width=12, heads=2, num_layers=2, window=5, feedforward=20)
WIDTH_IN = 7


def make(width_in: int = WIDTH_IN, **changes: Any) -> TransformerEncoder:
    torch.manual_seed(0)
    encoder = TransformerEncoder(msgspec.structs.replace(CONFIG, **changes), width_in).eval()
    for name, parameter in encoder.named_parameters():
        if "bias" in name or "norm" in name:
            torch.nn.init.normal_(parameter)
    return encoder.requires_grad_(False)


def sequence(length: int, seed: int = 0, width: int = WIDTH_IN) -> torch.Tensor:
    return torch.randn(length, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("width_in", [WIDTH_IN, CONFIG.width])
def test_a_whole_sequence_equals_the_equations(bidirectional: bool, width_in: int) -> None:
    encoder = make(width_in, bidirectional=bidirectional)
    x = sequence(23, width=width_in)
    found, _ = encoder(x[None], encoder.initial_state(1))
    np.testing.assert_allclose(found[0], banded.features(encoder, x.numpy()), atol=1e-5)


@settings(deadline=None, max_examples=40)
@given(
    chunks=st.lists(st.lists(st.integers(1, 14), min_size=3, max_size=3), min_size=1, max_size=5),
    window=st.integers(1, 7),
)
def test_chunks_of_ragged_rows_equal_each_row_alone_and_whole(
    chunks: list[list[int]], window: int
) -> None:
    encoder = make(window=window)
    rows = [sequence(sum(lengths), seed) for seed, lengths in enumerate(zip(*chunks, strict=True))]
    state, found = encoder.initial_state(3), [[], [], []]
    starts = [0, 0, 0]
    for lengths in chunks:
        # What stands behind the end of a row must not matter, so it is not zero.
        x = torch.full((3, max(lengths), WIDTH_IN), 9.0)
        for i, n in enumerate(lengths):
            x[i, :n] = rows[i][starts[i] : starts[i] + n]
        y, state = encoder(x, state, torch.tensor(lengths))
        for i, n in enumerate(lengths):
            found[i].append(y[i, :n])
            starts[i] += n
    for i, row in enumerate(rows):
        expected = banded.features(encoder, row.numpy())
        np.testing.assert_allclose(torch.cat(found[i]), expected, atol=1e-5)
        _, alone = encoder(row[None], encoder.initial_state(1))
        torch.testing.assert_close(
            [part[i : i + 1] for part in state], list(alone), atol=1e-5, rtol=0
        )


def test_step_by_step_for_ten_windows_equals_the_whole_and_the_state_does_not_grow() -> None:
    encoder = make(window=16)
    x = sequence(160)
    expected = banded.features(encoder, x.numpy())
    state = encoder.initial_state(1)
    shapes = [part.shape for part in state]
    for t in range(len(x)):
        y, state = encoder(x[None, t : t + 1], state)
        np.testing.assert_allclose(y[0, 0], expected[t], atol=1e-5)
        assert [part.shape for part in state] == shapes


def test_the_state_is_what_it_says() -> None:
    encoder = make()
    ring = (CONFIG.heads, CONFIG.window, CONFIG.width // CONFIG.heads)
    assert [(s.name, s.shape, s.dtype) for s in encoder.states] == [
        ("keys_0", ring, "float32"),
        ("values_0", ring, "float32"),
        ("keys_1", ring, "float32"),
        ("values_1", ring, "float32"),
        ("count", (1,), "int64"),
    ]
    start = encoder.initial_state(3)
    _, after = encoder(torch.randn(3, 4, WIDTH_IN), start)
    for spec, before, part in zip(encoder.states, start, after, strict=True):
        assert part.shape == before.shape == (3, *spec.shape)
        assert part.dtype == before.dtype == getattr(torch, spec.dtype)


def test_a_position_is_seen_for_a_window_and_then_never_again() -> None:
    window = 6
    encoder = make(window=window, num_layers=1)
    x = sequence(30)
    changed = x.clone()
    changed[10] += 1
    one, other = (encoder(v[None], encoder.initial_state(1))[0][0] for v in (x, changed))
    moved = (one != other).any(dim=-1).nonzero().flatten().tolist()
    assert moved == list(range(10, 10 + window))


def test_positions_of_long_ago_lose_no_precision() -> None:
    """After far more than 2 ** 24 positions, a window of the same inputs gives the same features."""
    encoder = make(window=8)
    x = sequence(40)
    _, (*rings, folded) = encoder(x[None], encoder.initial_state(1))
    for periods in (1, 10**9):
        # The count as it would be if it had not been folded on the way.
        beyond = folded + periods * encoder.period
        late, after = encoder(x[None, :16], (*rings, beyond))
        again, same = encoder(x[None, :16], (*rings, folded))
        torch.testing.assert_close(late, again, atol=0, rtol=0)
        assert torch.equal(after[-1], same[-1])


def test_the_count_folds_but_stays_the_same_position() -> None:
    encoder = make()
    window, period = CONFIG.window, encoder.period
    assert period == PERIOD_WINDOWS * window
    x = torch.zeros(1, 7, WIDTH_IN)
    state = encoder.initial_state(1)
    for total in range(7, 3 * period, 7):
        _, state = encoder(x, state)
        count = int(state[-1])
        assert count % period == total % period
        assert min(count, window) == min(total, window)
        assert count < period + window


def test_rotation_keeps_lengths_and_depends_on_the_distance_only() -> None:
    period = 320
    each = turns(8, period)
    assert each[4:].tolist() == sorted(each[4:].tolist(), reverse=True)
    assert each[-1] == 1
    assert math.tau * int(each[4]) / period == pytest.approx(1, rel=0.02)

    def turned(x: torch.Tensor, position: int) -> torch.Tensor:
        angle = position * each * (math.tau / period)
        return rotate(x, angle.cos(), angle.sin())

    query, key = torch.randn(2, 8, dtype=torch.float64)
    torch.testing.assert_close(turned(query, 3).norm(), query.norm())
    near, far = (turned(query, p + 4) @ turned(key, p) for p in (2, 90))
    torch.testing.assert_close(near, far, atol=1e-5, rtol=0)
    assert not torch.isclose(near, turned(query, 7) @ turned(key, 2))


def test_whole_texts_are_read_both_ways_without_their_padding() -> None:
    encoder = make(bidirectional=True)
    assert encoder.states == ()
    long, short = sequence(9), sequence(4, seed=1)
    batch = torch.full((2, 9, WIDTH_IN), 5.0)
    batch[0], batch[1, :4] = long, short
    together, state = encoder(batch, (), torch.tensor([9, 4]))
    assert state == ()
    torch.testing.assert_close(together[0], encoder(long[None], ())[0][0])
    torch.testing.assert_close(together[1, :4], encoder(short[None], ())[0][0])
    long[-1] += 1
    assert not torch.allclose(encoder(long[None], ())[0][0, 0], together[0, 0])


def test_gradients_reach_every_weight_and_dropout_is_for_training_only() -> None:
    encoder = make(dropout=0.5).requires_grad_(True)
    x = sequence(12)[None]
    still = encoder(x, encoder.initial_state(1))[0]
    torch.testing.assert_close(still, encoder(x, encoder.initial_state(1))[0])
    encoder.train()
    loss = encoder(x, encoder.initial_state(1))[0].square().sum()
    assert not torch.isclose(loss, still.square().sum())
    loss.backward()
    assert all(p.grad is not None and p.grad.any() for p in encoder.parameters())


def test_heads_that_do_not_divide_the_width_into_even_parts_are_refused() -> None:
    with pytest.raises(ValueError, match="twice the number of heads"):
        msgspec.structs.replace(CONFIG, heads=5)
