from __future__ import annotations

import itertools
import math
import random
from collections import Counter

import numpy as np
import pytest

from training.next_word.kneser_ney import KneserNey

V = 5


def markov(length: int, seed: int) -> list[int]:
    """A text in which a token mostly follows from the two before it, with enough rare k-grams for all discounts."""
    choice = random.Random(seed)
    text = [0, 1]
    while len(text) < length:
        follows = (text[-1] * 2 + text[-2] + 1) % V
        text.append(follows if choice.random() < 0.6 else min(int(choice.expovariate(0.7)), V - 1))
    return text


class Reference:
    """The equations with dictionaries, one probability at a time."""

    def __init__(self, text: list[int], order: int) -> None:
        def grams(k: int) -> list[tuple[int, ...]]:
            return [tuple(text[i : i + k]) for i in range(len(text) - k + 1)]

        self.counts = [
            Counter(gram[1:] for gram in set(grams(k + 1))) if k < order else Counter(grams(k))
            for k in range(1, order + 1)
        ]

    def discount(self, k: int, count: int) -> float:
        of = Counter(self.counts[k - 1].values())
        if not (of[1] and of[2] and of[3] and of[4]):
            return (0, 0.5, 1, 1.5)[min(count, 3)]
        y = of[1] / (of[1] + 2 * of[2])
        c = min(count, 3)
        return c and min(max(c - (c + 1) * y * of[c + 1] / of[c], 0), c)

    def p(self, word: int, context: tuple[int, ...]) -> float:
        k = len(context) + 1
        lower = self.p(word, context[1:]) if context else 1 / V
        row = [self.counts[k - 1][(*context, w)] for w in range(V)]
        if not sum(row):
            return lower
        freed = sum(self.discount(k, count) for count in row)
        return (row[word] - self.discount(k, row[word]) + freed * lower) / sum(row)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("length", [12, 60, 600])
def test_equals_the_equations_for_every_context(order: int, length: int) -> None:
    text = markov(length, seed=length)
    model, reference = KneserNey(np.array(text), order, V), Reference(text, order)
    for context in itertools.product(range(V), repeat=order - 1):
        found = [math.exp(model.log_probabilities(np.array([*context, w]))[-1]) for w in range(V)]
        assert found == pytest.approx([reference.p(w, context) for w in range(V)], abs=1e-12)
        assert sum(found) == pytest.approx(1)


def test_early_tokens_have_a_shorter_past() -> None:
    text = markov(300, seed=1)
    found = KneserNey(np.array(text), 4, V).log_probabilities(np.array([3, 1, 4]))
    reference = Reference(text, 4)
    due = [reference.p(3, ()), reference.p(1, (3,)), reference.p(4, (3, 1))]
    assert np.exp(found) == pytest.approx(due)


def test_a_token_never_seen_has_a_probability() -> None:
    model = KneserNey(np.array(markov(100, seed=2)), 3, vocab_size=V + 1)
    rare = np.exp(model.log_probabilities(np.array([0, 1, V])))[-1]
    assert 0 < rare < 0.05


def test_a_model_of_the_source_does_better_than_its_lower_orders() -> None:
    train, valid = np.array(markov(4000, seed=3)), np.array(markov(1000, seed=4))
    one, two, three = (
        -KneserNey(train, order, V).log_probabilities(valid).mean() for order in (1, 2, 3)
    )
    assert three < two < one


def test_a_text_shorter_than_the_order_is_refused() -> None:
    with pytest.raises(ValueError, match="2 tokens are too few for 3-grams"):
        KneserNey(np.array([0, 1]), 3, V)
