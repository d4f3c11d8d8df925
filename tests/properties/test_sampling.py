from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.engine.sampling import Sampling, choose, choose_of_all, uniforms

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
    return int(choose(scores[None], [how], np.array([uniform]), ban)[0])


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


@st.composite
def batches(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, list[Sampling], np.ndarray]:
    """Scores (R, K) in falling order, bans (R, K), settings and numbers of R texts."""
    count, size = draw(st.integers(1, 20)), draw(st.integers(1, 12))
    chance = np.random.default_rng(draw(st.integers(0, 2**32)))
    # Coarse, so that some are equal.
    scores = -np.sort(-chance.integers(-8, 8, (count, size)).astype(np.float32) / 2, axis=1)
    banned = chance.random((count, size)) < 0.2
    banned[np.arange(count), chance.integers(0, size, count)] = False
    how = [draw(settings_) for _ in range(count)]
    uniform = np.array([draw(below_one) for _ in range(count)])
    return scores, banned, how, uniform


settings_ = st.builds(
    Sampling,
    temperature=st.just(0.0) | temperatures,
    top_k=st.integers(0, 13),
    top_p=st.just(1.0) | st.floats(0.001, 1),
)


@given(batches())
def test_texts_chosen_together_are_as_chosen_one_by_one(
    batch: tuple[np.ndarray, np.ndarray, list[Sampling], np.ndarray],
) -> None:
    scores, banned, how, uniform = batch
    together = choose(scores, how, uniform, banned)
    alone = [
        pick(*row[:3], row[3]) for row in zip(scores, how, uniform.tolist(), banned, strict=True)
    ]
    assert together.tolist() == alone


@given(batches())
def test_a_text_chosen_from_all_does_not_depend_on_the_others(
    batch: tuple[np.ndarray, np.ndarray, list[Sampling], np.ndarray],
) -> None:
    scores, _, how, uniform = batch
    # More than one block of the vocabulary.
    scores = np.tile(scores, (1, 40))
    together = choose_of_all(scores, how, uniform)
    alone = [
        choose_of_all(scores[i : i + 1], how[i : i + 1], uniform[i : i + 1])[0]
        for i in range(len(how))
    ]
    assert together.tolist() == alone


def exact(scores: np.ndarray, how: Sampling, banned: int) -> np.ndarray:
    """Probability of each candidate, written out from the definitions."""
    order = [i for i in np.argsort(-scores, kind="stable") if i != banned]
    if how.temperature == 0:
        order = order[:1]
    order = order[: how.top_k or len(order)]
    kept = softmax(scores[order], how.temperature or 1.0)
    if how.top_p < 1:
        fewest = int(np.searchsorted(np.cumsum(kept), how.top_p)) + 1
        order, kept = order[:fewest], kept[:fewest]
    found = np.zeros(len(scores))
    found[order] = kept / kept.sum()
    return found


@given(st.permutations(range(12)), st.integers(0, 11), settings_, below_one)
def test_a_choice_from_all_falls_where_the_cumulated_probability_says(
    places: list[int], banned: int, how: Sampling, uniform: float
) -> None:
    # No two alike, so that the order is one.
    scores = (np.array(places) / 3).astype(np.float32)
    probabilities = exact(scores, how, banned)
    edges = np.concatenate([[0], np.cumsum(probabilities)])
    (chosen,) = choose_of_all(scores[None], [how], np.array([uniform]), banned)
    assert chosen != banned
    if how.temperature == 0:
        assert probabilities[chosen] == 1
    else:
        assert edges[chosen] - 1e-6 <= uniform <= edges[chosen + 1] + 1e-6


@given(st.integers(1, 6), st.integers(0, 12), st.floats(0.001, 1), below_one)
def test_of_equals_no_more_are_kept_than_there_are_places(
    top_k: int, more: int, top_p: float, uniform: float
) -> None:
    logits = np.zeros((1, top_k + more), np.float32)
    (chosen,) = choose_of_all(logits, [Sampling(1.0, top_k, top_p)], np.array([uniform]))
    assert chosen < max(1, np.ceil(top_k * top_p + 1e-6))


MIXED = (
    Sampling(temperature=0),
    Sampling(top_k=0),
    Sampling(temperature=0.5, top_k=3),
    Sampling(temperature=2.0, top_k=0, top_p=0.8),
    Sampling(temperature=1.3, top_k=5, top_p=0.9),
    Sampling(temperature=3.0, top_k=0),
)


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("of_all", [False, True], ids=["candidates", "vocabulary"])
def test_frequencies_of_texts_in_one_batch_are_each_those_of_its_settings(
    seed: int, of_all: bool
) -> None:
    """Chi-square of 4000 draws a text against exact probabilities."""
    draws, banned = 4000, 1
    scores = np.array([2.5, 2.0, 1.5, 1.0, 0.5, 0.0, -0.5, -1.5], np.float32)
    how = MIXED * draws
    rows = np.repeat(scores[None], len(how), axis=0)
    numbers = [uniforms(seed * 100 + text) for text in range(len(MIXED))]
    uniform = np.array([next(each) for _ in range(draws) for each in numbers])
    if of_all:
        chosen = choose_of_all(rows, how, uniform, banned)
    else:
        chosen = choose(rows, how, uniform, np.arange(8)[None] == np.full((len(how), 1), banned))
    for text, each in enumerate(MIXED):
        counts = np.bincount(chosen[text :: len(MIXED)], minlength=8)
        expected = exact(scores, each, banned) * draws
        possible = expected > 0
        assert not counts[~possible].any()
        deviation = ((counts - expected)[possible] ** 2 / expected[possible]).sum()
        assert deviation <= CHI_SQUARE[int(possible.sum()) - 1], each


# Exceeded by chance once in 100,000 times, by degrees of freedom.
CHI_SQUARE = (0.0, 19.5, 23.0, 25.9, 28.5, 30.9, 33.1)


@given(st.integers(0, 2**63 - 1), st.integers(1, 50), st.integers(0, 50))
def test_random_numbers_are_below_one_and_of_their_seed_and_index(
    seed: int, count: int, first: int
) -> None:
    numbers = list(islice(uniforms(seed), first + count))
    assert all(0 <= number < 1 for number in numbers)
    assert list(islice(uniforms(seed, first), count)) == numbers[first:]
