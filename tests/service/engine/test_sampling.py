from __future__ import annotations

import numpy as np
import pytest

from service.engine.sampling import Sampling, choose, uniforms

SCORES = np.array([[3.0, 2.0, 1.0, 0.0]], np.float32)
SOFTMAX = np.exp(SCORES[0]) / np.exp(SCORES[0]).sum()


def chosen(how: Sampling, uniform: float, banned: list[bool] | None = None) -> int:
    ban = None if banned is None else np.array([banned])
    return int(choose(SCORES, how, np.array([uniform]), ban)[0])


def test_the_same_seed_gives_the_same_numbers() -> None:
    assert np.array_equal(uniforms(7, 5), uniforms(7, 5))
    assert not np.array_equal(uniforms(7, 5), uniforms(8, 5))
    assert np.array_equal(uniforms(7, 3), uniforms(7, 5)[:3])


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
    assert choose(scores, Sampling(top_k=0), np.array([0.0, 0.7, 0.999])).tolist() == [0, 1, 3]


def test_the_scores_given_are_left_as_they_are() -> None:
    scores = SCORES.astype(np.float64)
    choose(scores, Sampling(top_k=1), np.array([0.5]), np.array([[True, False, False, False]]))
    assert np.array_equal(scores, SCORES)
