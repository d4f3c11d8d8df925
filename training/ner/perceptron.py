"""An averaged perceptron over words: what a tagger without a neural network reaches.

Tags are chosen from left to right, each from its word, the words beside it, their shapes and ends, and the tag before;
a wrong one moves the weights of its features, and the weights of all steps are averaged.       Collins 2002
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from service.entities import OUTSIDE

Array = npt.NDArray[Any]

NAME = "averaged perceptron"
_ROUNDS = 8
_EDGE = "<>"
_RUNS = (
    (re.compile(r"[^\W\d_a-z]+"), "X"),
    (re.compile(r"[a-z]+"), "x"),
    (re.compile(r"\d+"), "0"),
)


class Perceptron(msgspec.Struct, frozen=True):
    """Weights of features.

    Attributes:
        labels: Tags in IOB2; the first is `O`.
        places: Row of each feature in `weights`.
        weights: (features, K).
        transitions: Weight of a tag (column) after another (row), (K, K).
    """

    labels: Sequence[str]
    places: Mapping[str, int]
    weights: Array
    transitions: Array

    def tags(self, words: Sequence[str]) -> list[str]:
        """Tags of the words of a text, in IOB2."""
        rows = [
            np.array([p for f in features if (p := self.places.get(f)) is not None], np.intp)
            for features in _features(words)
        ]
        allowed, before, found = _allowed(self.labels), 0, []
        for row in rows:
            before = _best(self.weights, self.transitions, row, before, allowed)
            found.append(self.labels[before])
        return found


def fit(
    texts: Sequence[tuple[Sequence[str], Sequence[str]]],
    labels: Sequence[str],
    seed: int,
    rounds: int = _ROUNDS,
) -> Perceptron:
    """Learn from texts, each its words and their tags, in a random order each round."""
    places: dict[str, int] = {}
    ids = {label: i for i, label in enumerate(labels)}
    known = [
        (
            [
                np.array([places.setdefault(f, len(places)) for f in features], np.intp)
                for features in _features(words)
            ],
            [ids[tag] for tag in tags],
        )
        for words, tags in texts
    ]
    weights = np.zeros((len(places), len(labels)))
    transitions = np.zeros((len(labels), len(labels)))
    # Averages by what each change adds to the sum of all weights so far (Daume 2006).
    added, added_transitions = np.zeros_like(weights), np.zeros_like(transitions)
    allowed, random, now = _allowed(labels), np.random.default_rng(seed), 1
    for _ in range(rounds):
        for number in random.permutation(len(known)):
            before = 0
            for row, due in zip(*known[number], strict=True):
                found = _best(weights, transitions, row, before, allowed)
                if found != due:
                    for tag, sign in ((due, 1.0), (found, -1.0)):
                        weights[row, tag] += sign
                        added[row, tag] += sign * now
                        transitions[before, tag] += sign
                        added_transitions[before, tag] += sign * now
                now += 1
                before = found
    return Perceptron(labels, places, weights - added / now, transitions - added_transitions / now)


def _best(weights: Array, transitions: Array, row: Array, before: int, allowed: Array) -> int:
    scores = weights[row].sum(axis=0) + transitions[before] + allowed[before]
    return int(scores.argmax())


def _allowed(labels: Sequence[str]) -> Array:
    """0 where a tag (column) may follow another (row) in IOB2, else minus infinity."""
    forbidden = [
        [b.startswith("I-") and (a == OUTSIDE or a[2:] != b[2:]) for b in labels] for a in labels
    ]
    return np.where(forbidden, -np.inf, 0.0)


def _features(words: Sequence[str]) -> Iterator[list[str]]:
    """Names of the features of each word; none occurs twice for one word."""
    padded = (_EDGE, _EDGE, *words, _EDGE, _EDGE)
    lower = [word.lower() for word in padded]
    shapes = [_shape(word) for word in padded]
    for i in range(2, len(padded) - 2):
        word = lower[i]
        found = ["bias", f"first {i == 2} {shapes[i]}", f"as is {padded[i]}"]
        found += [f"word {d} {lower[i + d]}" for d in (-2, -1, 0, 1, 2)]
        found += [f"shape {d} {shapes[i + d]}" for d in (-1, 0, 1)]
        found += [f"begins {word[:n]}" for n in range(1, 5) if len(word) >= n]
        found += [f"ends {word[-n:]}" for n in range(1, 5) if len(word) >= n]
        found += [f"pair {lower[i - 1]} {word}", f"pair after {word} {lower[i + 1]}"]
        found += [f"shapes {shapes[i - 1]} {shapes[i]} {shapes[i + 1]}"]
        yield found


def _shape(word: str) -> str:
    """`Xx` for `Paris`, `X.X.` for `U.S.`, `0-0` for `24-7`."""
    for run, mark in _RUNS:
        word = run.sub(mark, word)
    return word
