"""Word vectors from counts: what stands beside a word, as positive pointwise mutual information, in few dimensions.

A row for each word, two columns for each of the most frequent words, as a neighbour before and one after; an entry is

    max(0, log(n(w, c) N / (n(w) n(c)^0.75)))     n weighted by 1 / distance, N the sum of n(c)^0.75

and the vectors are U S^0.5 of its truncated singular value decomposition, scaled to length 1.

    Levy, Goldberg, Dagan 2015, "Improving distributional similarity with lessons learned from word embeddings"
    Halko, Martinsson, Tropp 2011, "Finding structure with randomness" (the decomposition)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Array = npt.NDArray[Any]

WINDOW = 5
_MOST_NEIGHBOURS = 20_000
_SMOOTHING = 0.75
_OVERSAMPLING = 16
_POWER_ITERATIONS = 3
_SMALLEST_NORM = 1e-6


def frequent_words(texts: Iterable[Sequence[str]], min_count: int) -> list[str]:
    """Words that occur at least `min_count` times, the most frequent first, equals in order of appearance."""
    counts = Counter(word for text in texts for word in text)
    return [word for word, count in counts.most_common() if count >= min_count]


def word_vectors(
    texts: Iterable[Sequence[str]], words: Sequence[str], dim: int, seed: int
) -> Tensor:
    """Vectors (V, E) of words.

    Args:
        texts: Words of each text; no word is a neighbour of one of another text.
        words: Whose vectors; the first ones serve as neighbours.
        dim: E. Where there are fewer dimensions to be had, the rest is zero.
        seed: Of the random start of the decomposition.
    """
    ids = {word: i for i, word in enumerate(words)}
    gap = [-1] * WINDOW
    flat = np.concatenate([[ids.get(word, -1) for word in text] + gap for text in texts])
    neighbours = min(len(words), _MOST_NEIGHBOURS)
    rows, columns, values = _information(flat.astype(np.int64), len(words), neighbours)
    vectors = torch.zeros(len(words), dim)
    found = _reduced(rows, columns, values, (len(words), 2 * neighbours), dim, seed)
    vectors[:, : found.shape[1]] = found
    norm = vectors.norm(dim=1, keepdim=True).clamp_min(_SMALLEST_NORM)
    scaled: Tensor = vectors / norm
    return scaled


def _information(flat: Array, size: int, neighbours: int) -> tuple[Array, Array, Array]:
    """Rows, columns and values of the matrix (V, 2 N) where they are above zero."""
    width = 2 * neighbours
    keys: list[Array] = []
    weights: list[Array] = []
    for distance in range(1, WINDOW + 1):
        left, right = flat[:-distance], flat[distance:]
        both = (left >= 0) & (right >= 0)
        left, right = left[both], right[both]
        before, after = left < neighbours, right < neighbours
        keys += [
            right[before] * width + left[before],
            left[after] * width + neighbours + right[after],
        ]
        weights.append(np.full(before.sum() + after.sum(), 1 / distance))
    places, owners = np.unique(np.concatenate(keys), return_inverse=True)
    counts = np.bincount(owners, np.concatenate(weights), len(places))
    rows, columns = places // width, places % width
    of_row = np.bincount(rows, counts, size)
    of_column = np.bincount(columns, counts, width) ** _SMOOTHING
    values = np.log(counts * of_column.sum() / (of_row[rows] * of_column[columns]))
    above = values > 0
    return rows[above], columns[above], values[above]


def _reduced(
    rows: Array, columns: Array, values: Array, shape: tuple[int, int], dim: int, seed: int
) -> Tensor:
    """U S^0.5 (V, at most E) of the matrix."""
    matrix = _sparse(rows, columns, values, shape)
    transposed = _sparse(columns, rows, values, (shape[1], shape[0]))
    width = min(dim + _OVERSAMPLING, *shape)
    start = torch.randn(shape[1], width, generator=torch.Generator().manual_seed(seed))
    basis = torch.linalg.qr(matrix @ start)[0]
    for _ in range(_POWER_ITERATIONS):
        basis = torch.linalg.qr(transposed @ basis)[0]
        basis = torch.linalg.qr(matrix @ basis)[0]
    left, scale, _ = torch.linalg.svd((transposed @ basis).T, full_matrices=False)
    result: Tensor = (basis @ left)[:, :dim] * scale[:dim].sqrt()
    return result


def _sparse(rows: Array, columns: Array, values: Array, shape: tuple[int, int]) -> Tensor:
    places = torch.from_numpy(np.stack([rows, columns]))
    return torch.sparse_coo_tensor(
        places, torch.from_numpy(values).float(), shape, check_invariants=False
    ).coalesce()
