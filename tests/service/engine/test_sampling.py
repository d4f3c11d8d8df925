from __future__ import annotations

from itertools import islice

import numpy as np
import pytest

from service.engine.sampling import Sampling, choose, choose_of_all, uniforms

SCORES = np.array([[3.0, 2.0, 1.0, 0.0]], np.float32)
SOFTMAX = np.exp(SCORES[0]) / np.exp(SCORES[0]).sum()


def chosen(how: Sampling, uniform: float, banned: list[bool] | None = None) -> int:
    ban = None if banned is None else np.array([banned])
    return int(choose(SCORES, [how], np.array([uniform]), ban)[0])


def numbers(seed: int, count: int, first: int = 0) -> list[float]:
    return list(islice(uniforms(seed, first), count))


def test_the_same_seed_gives_the_same_numbers() -> None:
    assert numbers(7, 5) == numbers(7, 5) != numbers(8, 5)


@pytest.mark.parametrize("first", [0, 1, 3, 4, 5, 8, 19])
def test_the_number_of_a_token_is_one_of_seed_and_index_alone(first: int) -> None:
    assert numbers(7, 5, first) == numbers(7, 30)[first : first + 5]


def test_numbers_are_those_of_numpys_philox() -> None:
    # Whoever has a seed and numpy can draw them again.
    assert numbers(7, 9) == np.random.Generator(np.random.Philox(7)).random(9).tolist()


def test_temperature_zero_takes_the_best_whatever_the_number() -> None:
    assert {chosen(Sampling(temperature=0), u) for u in (0.0, 0.5, 0.999)} == {0}
    assert chosen(Sampling(temperature=0), 0.5, [True, False, False, False]) == 1


def test_the_number_runs_through_the_probabilities() -> None:
    edges = np.cumsum(SOFTMAX)
    how = Sampling(top_k=0)
    for index, edge in enumerate(edges[:-1]):
        assert chosen(how, edge - 1e-6) == index
        assert chosen(how, edge + 1e-6) == index + 1


def test_top_k_leaves_the_k_best() -> None:
    assert {chosen(Sampling(top_k=2), u) for u in np.linspace(0, 0.9999, 50)} == {0, 1}


def test_a_banned_candidate_does_not_use_up_a_place_of_top_k() -> None:
    banned = [True, False, False, False]
    assert {chosen(Sampling(top_k=2), u, banned) for u in np.linspace(0, 0.9999, 50)} == {1, 2}


def test_top_p_leaves_the_fewest_that_reach_it() -> None:
    for top_p, left in ((0.1, {0}), (0.7, {0, 1}), (0.9, {0, 1, 2}), (0.999, {0, 1, 2, 3})):
        how = Sampling(top_k=0, top_p=top_p)
        assert {chosen(how, u) for u in np.linspace(0, 0.9999, 200)} == left


def test_the_largest_number_below_one_takes_the_last_allowed() -> None:
    almost = np.nextafter(1.0, 0.0)
    assert chosen(Sampling(top_k=0), almost) == 3
    assert chosen(Sampling(top_k=3), almost) == 2
    assert chosen(Sampling(top_k=0), almost, [False, False, False, True]) == 2


@pytest.mark.parametrize("temperature", [1e-3, 1e-300, 5e-324])
def test_a_tiny_temperature_takes_the_best(temperature: float) -> None:
    assert chosen(Sampling(temperature=temperature), 0.999) == 0


def test_a_huge_temperature_makes_all_equal() -> None:
    how = Sampling(temperature=1e6, top_k=0)
    assert [chosen(how, u) for u in (0.24, 0.26, 0.51, 0.76)] == [0, 1, 2, 3]


def test_rows_are_chosen_each_by_its_own_number() -> None:
    scores = np.repeat(SCORES, 3, axis=0)
    how = [Sampling(top_k=0)] * 3
    assert choose(scores, how, np.array([0.0, 0.7, 0.999])).tolist() == [0, 1, 3]


def test_rows_are_chosen_each_by_its_own_settings() -> None:
    scores = np.repeat(SCORES, 5, axis=0)
    how = [
        Sampling(temperature=0),
        Sampling(top_k=2),
        Sampling(top_k=0, top_p=0.9),
        Sampling(top_k=0),
        Sampling(temperature=1e-3),
    ]
    assert choose(scores, how, np.full(5, 0.999)).tolist() == [0, 1, 2, 3, 0]


def test_the_whole_vocabulary_is_chosen_from_by_the_same_rules() -> None:
    numbers = np.linspace(0, 0.9999, 200)
    logits = np.repeat(np.array([[0.0, 3.0, 1.0, 2.0]], np.float32), 200, axis=0)
    for how, due in (
        (Sampling(temperature=0), {1}),
        (Sampling(top_k=2), {1, 3}),
        (Sampling(top_k=0, top_p=0.9), {1, 2, 3}),
        (Sampling(top_k=3, top_p=0.7), {1, 3}),
        (Sampling(top_k=0), {0, 1, 2, 3}),
    ):
        assert set(choose_of_all(logits, [how] * 200, numbers).tolist()) == due
    logits = logits[:1]
    assert choose_of_all(logits, [Sampling(temperature=0)], np.array([0.5]), banned=1) == [3]


@pytest.mark.parametrize("size", [1, 127, 128, 129, 1000])
def test_every_token_of_a_vocabulary_has_its_part_of_the_numbers(size: int) -> None:
    logits = np.zeros((size, size), np.float32)
    middles = (np.arange(size) + 0.5) / size
    how = [Sampling(top_k=0)] * size
    assert choose_of_all(logits, how, middles).tolist() == list(range(size))


def test_a_banned_token_of_the_vocabulary_is_never_chosen() -> None:
    numbers = np.linspace(0, np.nextafter(1.0, 0.0), 500)
    for size, banned in ((3, 0), (3, 2), (300, 0), (300, 128), (300, 299)):
        logits = np.zeros((500, size), np.float32)
        for how in (Sampling(top_k=0), Sampling(top_k=2), Sampling(top_k=0, top_p=0.5)):
            assert banned not in choose_of_all(logits, [how] * 500, numbers, banned)


@pytest.mark.parametrize("temperature", [1e-3, 1e-300, 5e-324])
def test_a_tiny_temperature_takes_the_best_of_all(temperature: float) -> None:
    logits = np.arange(300, dtype=np.float32)[None]
    how = [Sampling(temperature=temperature, top_k=0)]
    assert choose_of_all(logits, how, np.array([0.999])) == [299]


def test_the_scores_given_are_left_as_they_are() -> None:
    scores = SCORES.astype(np.float64)
    choose(scores, [Sampling(top_k=1)], np.array([0.5]), np.array([[True, False, False, False]]))
    assert np.array_equal(scores, SCORES)
