from __future__ import annotations

import numpy as np
import torch

from training.ner.vectors import frequent_words, word_vectors

TEXTS = [
    ["the", "cat", "sat", "on", "the", "mat"],
    ["the", "dog", "sat", "on", "the", "mat"],
    ["a", "cat", "ran"],
    ["a", "dog", "ran"],
    ["paris", "is", "far"],
    ["rome", "is", "far"],
]


def reference(words: list[str]) -> np.ndarray:
    """The matrix of positive pointwise mutual information (V, 2 V), word by word from its definition."""
    size = len(words)
    counts = np.zeros((size, 2 * size))
    for text in TEXTS:
        for i, word in enumerate(text):
            for j, other in enumerate(text):
                if 0 < abs(i - j) <= 5 and word in words and other in words:
                    column = words.index(other) + (size if j > i else 0)
                    counts[words.index(word), column] += 1 / abs(i - j)
    of_column = counts.sum(axis=0) ** 0.75
    with np.errstate(divide="ignore", invalid="ignore"):
        values = np.log(counts * of_column.sum() / (counts.sum(axis=1, keepdims=True) * of_column))
    return np.where(counts > 0, np.maximum(values, 0), 0)


def test_the_most_frequent_words_come_first() -> None:
    assert frequent_words(TEXTS, 2) == [
        "the", "cat", "sat", "on", "mat", "dog", "a", "ran", "is", "far",
    ]  # fmt: skip


def test_vectors_are_the_leading_part_of_the_decomposition() -> None:
    words = frequent_words(TEXTS, 1)
    left, scale, _ = np.linalg.svd(reference(words))
    due = left[:, :5] * np.sqrt(scale[:5])
    due = due / np.linalg.norm(due, axis=1, keepdims=True)
    found = word_vectors(TEXTS, words, 5, seed=1).double().numpy()
    # Up to the sign of each dimension, so compare what does not depend on it.
    np.testing.assert_allclose(found @ found.T, due @ due.T, atol=1e-3)


def test_words_of_like_neighbours_are_near() -> None:
    words = frequent_words(TEXTS, 1)
    found = word_vectors(TEXTS, words, 6, seed=1)
    near = {
        (a, b): float(found[words.index(a)] @ found[words.index(b)]) for a in words for b in words
    }
    assert near["cat", "dog"] > near["cat", "rome"]
    assert near["paris", "rome"] > near["paris", "dog"]


def test_they_have_length_one_and_missing_dimensions_are_zero() -> None:
    found = word_vectors([["a", "b"], ["a", "c"]], ["a", "b", "c"], 8, seed=1)
    assert found.shape == (3, 8)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(3))
    assert (found[:, 6:] == 0).all()
