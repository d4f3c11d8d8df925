"""Choosing the next token from scores. Pure: the randomness is an argument."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to choose.

    Attributes:
        temperature: Scores are divided by it; 0 takes the best token.
        top_k: Choose among this many best tokens; 0 is all.
        top_p: Choose among the fewest best tokens whose probabilities add up to at least this (nucleus sampling,
            Holtzman et al. 2020), after temperature and `top_k`.
    """

    temperature: float = 1.0
    top_k: int = 50
    top_p: float = 1.0


def uniforms(seed: int, count: int) -> npt.NDArray[np.float64]:
    """The random numbers of a generation, one for each token: the same seed gives the same, (count,) in [0, 1)."""
    return np.random.Generator(np.random.Philox(seed)).random(count)


def choose(scores: Array, how: Sampling, uniform: Array, banned: Array | None = None) -> Array:
    """Choose one candidate of each row.

    Args:
        scores: Logits (R, K), each row in falling order.
        how: Sampling settings, the same for every row.
        uniform: One number in [0, 1) for each row, (R,).
        banned: Candidates never to be chosen, boolean (R, K); at least one of each row is allowed.

    Returns:
        Index of the chosen candidate of each row, (R,).
    """
    allowed = scores.astype(np.float64)
    if banned is not None:
        allowed[banned] = -np.inf
    if how.temperature == 0.0:
        return np.asarray(allowed.argmax(axis=1))
    if how.top_k:
        # The k best that are allowed: a banned candidate does not use up a place.
        rank = np.cumsum(np.isfinite(allowed), axis=1)
        allowed[rank > how.top_k] = -np.inf
    allowed -= allowed.max(axis=1, keepdims=True)
    with np.errstate(over="ignore"):
        # A tiny temperature sends all but the best to -infinity, as it should.
        weights = np.exp(allowed / how.temperature)
    cumulative = np.cumsum(weights / weights.sum(axis=1, keepdims=True), axis=1)
    if how.top_p < 1.0:
        # A candidate stays while those before it have not reached top_p yet.
        before = cumulative - weights / weights.sum(axis=1, keepdims=True)
        weights[before >= how.top_p] = 0.0
        cumulative = np.cumsum(weights, axis=1)
    target = uniform * cumulative[:, -1]
    chosen = (cumulative <= target[:, None]).sum(axis=1)
    # Rounding may carry the target past the last candidate with any weight.
    last = scores.shape[1] - 1 - np.argmax(weights[:, ::-1] > 0, axis=1)
    return np.asarray(np.minimum(chosen, last))
