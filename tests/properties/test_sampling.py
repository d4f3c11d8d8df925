from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.engine.sampling import Sampling, choose, uniforms

scores = st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=12).map(
    lambda values: np.array(sorted(values, reverse=True), np.float32)
)
below_one = st.floats(0, 1, exclude_max=True)
temperatures = st.floats(0.01, 10)


def softmax(values: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    scaled = values.astype(np.float64) / temperature
    weights = np.exp(scaled - scaled.max())
    return weights / weights.sum()


def pick(
    scores: np.ndarray, how: Sampling, uniform: float, banned: np.ndarray | None = None
) -> int:
    ban = None if banned is None else banned[None]
    return int(choose(scores[None], how, np.array([uniform]), ban)[0])


@given(scores, below_one)
def test_greedy_is_the_best(scores: np.ndarray, uniform: float) -> None:
    assert scores[pick(scores, Sampling(temperature=0), uniform)] == scores.max()


@given(scores, below_one, st.integers(1, 12), temperatures)
def test_top_k_chooses_among_the_k_best(
    scores: np.ndarray, uniform: float, top_k: int, temperature: float
) -> None:
    how = Sampling(temperature=temperature, top_k=top_k)
    assert pick(scores, how, uniform) < min(top_k, len(scores))


@given(scores, below_one, st.floats(0.001, 1), temperatures)
def test_top_p_chooses_among_the_fewest_that_reach_it(
    scores: np.ndarray, uniform: float, top_p: float, temperature: float
) -> None:
    how = Sampling(temperature=temperature, top_k=0, top_p=top_p)
    before = np.cumsum(softmax(scores, temperature)) - softmax(scores, temperature)
    assert before[pick(scores, how, uniform)] < top_p + 1e-9


@given(
    scores,
    below_one,
    temperatures,
    st.integers(0, 12),
    st.floats(0.001, 1),
    st.lists(st.booleans(), min_size=12, max_size=12),
)
def test_the_banned_are_never_chosen(
    scores: np.ndarray,
    uniform: float,
    temperature: float,
    top_k: int,
    top_p: float,
    bans: list[bool],
) -> None:
    banned = np.array(bans[: len(scores)])
    banned[-1] = False
    for how in (Sampling(temperature, top_k, top_p), Sampling(temperature=0)):
        assert not banned[pick(scores, how, uniform, banned)]


@given(scores, below_one)
def test_as_the_temperature_falls_only_the_best_are_left(
    scores: np.ndarray, uniform: float
) -> None:
    # Zero is greedy; anything positive approaches it.
    chosen = pick(scores, Sampling(temperature=1e-300, top_k=0), uniform)
    assert scores[chosen] == scores[0]


@given(scores, below_one)
def test_a_choice_falls_where_the_cumulated_probability_says(
    scores: np.ndarray, uniform: float
) -> None:
    edges = np.concatenate([[0], np.cumsum(softmax(scores))])
    chosen = pick(scores, Sampling(top_k=0), uniform)
    assert edges[chosen] - 1e-9 <= uniform <= edges[chosen + 1] + 1e-9


@pytest.mark.parametrize("temperature", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("seed", range(5))
def test_frequencies_are_those_of_the_softmax(seed: int, temperature: float) -> None:
    scores = np.array([2.0, 1.5, 1.0, 0.0, -1.0], np.float32)
    draws = 4000
    numbers = uniforms(seed, draws)
    rows = np.repeat(scores[None], draws, axis=0)
    chosen = choose(rows, Sampling(temperature=temperature, top_k=0), numbers)
    expected = softmax(scores, temperature)
    spread = np.sqrt(expected * (1 - expected) / draws)
    frequencies = np.bincount(chosen, minlength=5) / draws
    assert (np.abs(frequencies - expected) <= 4 * spread + 2 / draws).all()


@given(st.integers(0, 2**63 - 1), st.integers(1, 50))
def test_random_numbers_are_below_one_and_of_their_seed(seed: int, count: int) -> None:
    numbers = uniforms(seed, count)
    assert ((numbers >= 0) & (numbers < 1)).all()
    assert np.array_equal(numbers, uniforms(seed, count))
