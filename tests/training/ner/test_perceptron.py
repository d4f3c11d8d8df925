from __future__ import annotations

from training.ner import perceptron
from training.ner.data import LABELS

TEXTS = [
    (["Ann", "Lee", "saw", "Paris"], ["B-PER", "I-PER", "O", "B-LOC"]),
    (["Bob", "Ray", "saw", "Rome"], ["B-PER", "I-PER", "O", "B-LOC"]),
    (["we", "met", "in", "Paris"], ["O", "O", "O", "B-LOC"]),
    (["Ann", "met", "us"], ["B-PER", "O", "O"]),
]


def test_it_learns_what_it_is_shown() -> None:
    tagger = perceptron.fit(TEXTS, LABELS, seed=1, rounds=5)
    for words, tags in TEXTS:
        assert tagger.tags(words) == tags


def test_words_never_seen_are_tagged_by_their_neighbours_and_shape() -> None:
    tagger = perceptron.fit(TEXTS, LABELS, seed=1, rounds=5)
    assert tagger.tags(["Tom", "Day", "saw", "Oslo"]) == ["B-PER", "I-PER", "O", "B-LOC"]


def test_tags_are_iob2_whatever_the_weights() -> None:
    tagger = perceptron.fit(TEXTS, LABELS, seed=1, rounds=1)
    tagger.weights[:, LABELS.index("I-ORG")] += 100
    found = tagger.tags(["x", "y", "z"])
    assert not {tag for tag in found if tag.startswith("I-")}


def test_weights_are_the_average_over_all_steps() -> None:
    # One text of one word, one round: a single mistake at the first step, then no step more.
    tagger = perceptron.fit([(["Ann"], ["B-PER"])], LABELS, seed=1, rounds=4)
    due, other = LABELS.index("B-PER"), LABELS.index("O")
    # Set at step 1 and kept over steps 2 to 4, of 4 with the zeros of step 1: 1 - 1 / 5 with the count after the last.
    assert set(tagger.weights[:, due].tolist()) == {1 - 1 / 5}
    assert set(tagger.weights[:, other].tolist()) == {-(1 - 1 / 5)}
