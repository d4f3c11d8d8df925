"""Choosing the next tokens of many texts from their scores, at once. Pure: the randomness is an argument."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

# Numbers that Philox makes of one count.
_NUMBERS = 4
# Drawn at a time: one alone takes as long.
_DRAWN = 32
# Candidates whose weights are added up before they are looked at one by one.
_BLOCK = 128


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


def uniforms(seed: int, first: int = 0) -> Iterator[float]:
    """The random numbers of a text, one for each token, in [0, 1).

    The number of a token is a function of seed and index alone (Philox, a generator that counts; Salmon et al. 2011),
    so that a text that is resumed goes on as it would have.

    Args:
        seed: The same gives the same numbers.
        first: Index of the token to begin with.
    """
    counter = np.random.Philox(seed)
    counter.advance(first // _NUMBERS)
    numbers = np.random.Generator(counter)
    numbers.random(first % _NUMBERS)
    while True:
        yield from numbers.random(_DRAWN).tolist()


def choose(
    scores: Array, how: Sequence[Sampling], uniform: Array, banned: Array | None = None
) -> Array:
    """Choose one candidate of each row.

    Args:
        scores: Logits (R, K), each row in falling order.
        how: Settings of each row, R.
        uniform: One number in [0, 1) for each row, (R,).
        banned: Candidates never to be chosen, boolean (R, K); at least one of each row is allowed.

    Returns:
        Index of the chosen candidate of each row, (R,); whatever rows come with it.
    """
    allowed = scores.astype(np.float64)
    if banned is not None:
        allowed[banned] = -np.inf
    temperature, top_k, top_p = _columns(how)
    if not temperature.any():
        return np.asarray(allowed.argmax(axis=1))
    if top_k.any():
        # The k best that are allowed: a banned candidate does not use up a place.
        places = np.where(top_k > 0, top_k, scores.shape[1])
        rank = np.cumsum(allowed > -np.inf, axis=1)
        allowed[rank > places[:, None]] = -np.inf
    weights = np.exp(_scaled(allowed, temperature))
    cumulative = np.cumsum(weights, axis=1)
    if top_p.min() < 1.0:
        # A candidate stays while those before it have not reached top_p yet.
        enough = np.where(top_p < 1.0, top_p, np.inf) * cumulative[:, -1]
        weights[cumulative - weights >= enough[:, None]] = 0.0
        cumulative = np.cumsum(weights, axis=1)
    return _greedily(temperature, allowed, _at(cumulative, uniform * cumulative[:, -1]))


def choose_of_all(
    logits: Array, how: Sequence[Sampling], uniform: Array, banned: int | None = None
) -> Array:
    """Choose one token of each row among the whole vocabulary.

    Args:
        logits: (R, V), in order of the ids.
        how: Settings of each row, R.
        uniform: One number in [0, 1) for each row, (R,).
        banned: A token never to be chosen.

    Returns:
        Chosen token of each row, (R,).
    """
    logits = logits.astype(np.float32)
    if banned is not None:
        logits[:, banned] = -np.inf
    temperature, top_k, top_p = _columns(how)
    if not temperature.any():
        return np.asarray(logits.argmax(axis=1))
    count, size = logits.shape
    # Float32 from here: what it cannot tell from 0 has no chance worth the time.
    blocks = np.zeros((count, -(-size // _BLOCK), _BLOCK), np.float32)
    weights = blocks.reshape(count, -1)[:, :size]
    with np.errstate(over="ignore"):
        np.exp(_scaled(logits, temperature).astype(np.float32), out=weights)
    cut = np.flatnonzero((top_k > 0) | (top_p < 1.0))
    if len(cut):
        weights[cut] = _cut(weights[cut], top_k[cut], top_p[cut])
    return _greedily(temperature, logits, _draw(blocks, uniform))


def _columns(how: Sequence[Sampling]) -> Array:
    """Temperature, top_k and top_p of all rows, (3, R)."""
    return np.array([(each.temperature, each.top_k, each.top_p) for each in how]).T


def _greedily(temperature: Array, scores: Array, drawn: Array) -> Array:
    """What was drawn, but the best where the temperature is 0."""
    if temperature.all():
        return drawn
    return np.where(temperature == 0.0, scores.argmax(axis=1), drawn)


def _scaled(scores: Array, temperature: Array) -> Array:
    """Scores below the best of their row, over the temperature, float64 (R, K). Temperature 0 is taken for 1."""
    below = scores - scores.max(axis=1, keepdims=True)
    if not temperature.all():
        temperature = np.where(temperature > 0.0, temperature, 1.0)
    with np.errstate(over="ignore"):
        # A tiny temperature sends all but the best to -infinity, as it should.
        return np.asarray(below / temperature[:, None])


def _cut(weights: Array, top_k: Array, top_p: Array) -> Array:
    """Weights (R, V) with 0 for what top_k and top_p leave out. Of equals the first are kept.

    To know the least weight that is kept its order is enough, which takes a fraction of the time of sorting ids.
    """
    rows = np.arange(len(weights))
    size = weights.shape[1]
    places = np.where(top_k > 0, np.minimum(top_k, size), size).astype(np.intp)
    falling = -np.sort(-weights, axis=1)[:, : places.max()]
    cumulative = np.cumsum(falling, axis=1, dtype=np.float64)
    enough = np.where(top_p < 1.0, top_p, np.inf) * cumulative[rows, places - 1]
    # A candidate stays while those before it have not reached top_p yet.
    kept = np.minimum(places, (cumulative - falling < enough[:, None]).sum(axis=1))
    least = falling[rows, kept - 1]
    above = weights >= least[:, None]
    surplus = above.sum(axis=1) - kept
    for row in np.flatnonzero(surplus):
        equals = np.flatnonzero(weights[row] == least[row])
        above[row, equals[-surplus[row] :]] = False
    return np.where(above, weights, np.float32(0.0))


def _draw(blocks: Array, uniform: Array) -> Array:
    """Draw from weights in blocks, (R, blocks, size of one): first a block, then one of it."""
    weights = blocks.sum(axis=2, dtype=np.float64)
    cumulative = np.cumsum(weights, axis=1)
    target = uniform * cumulative[:, -1]
    rows = np.arange(len(blocks))
    block = _at(cumulative, target)
    inside = blocks[rows, block].astype(np.float64)
    rest = np.maximum(0.0, target - (cumulative - weights)[rows, block])
    return block * _BLOCK + _at(np.cumsum(inside, axis=1), rest)


def _at(cumulative: Array, target: Array) -> Array:
    """Where the cumulated weights of each row pass its target: never a candidate of weight 0."""
    # Rounding may carry the target to the sum of all weights, which none passes.
    below = np.minimum(target, np.nextafter(cumulative[:, -1], 0.0))
    return np.asarray((cumulative <= below[:, None]).sum(axis=1))
