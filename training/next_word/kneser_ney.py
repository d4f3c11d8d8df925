"""An n-gram model of a token sequence, the strongest that only counts: interpolated modified Kneser-Ney.

    P_k(w | h) = (c_k(h w) - D_k(c_k(h w))) / c_k(h .) + g_k(h) P_{k-1}(w | h without its first token)
    g_k(h)     = (D_k(1) N_1(h .) + D_k(2) N_2(h .) + D_k(3) N_3+(h .)) / c_k(h .)
    P_0(w)     = 1 / V

c_n counts occurrences; c_k, k < n, counts the different tokens seen before a k-gram. D_k(c) is a discount for
c = 1, 2 and 3 or more, estimated from how many k-grams have c_k = 1, 2, 3, 4; N_c(h .) is the number of different
tokens after h with c_k = c. Where h was never seen, P_k = P_{k-1}.

Chen, Goodman 1999, "An empirical study of smoothing techniques for language modeling". No torch here.
"""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

# Where counts of counts are too small to estimate from, as KenLM's --discount_fallback.
_DISCOUNTS = np.array([0.0, 0.5, 1.0, 1.5])


class _Order(msgspec.Struct, frozen=True, kw_only=True):
    """The k-grams of the training text, numbered in the order of `keys`.

    Attributes:
        keys: (number of the first k - 1 tokens) * V + last token, rising.
        discounted: (c - D(c)) / c(h .) of each k-gram.
        backoff: g(h) of each (k - 1)-gram; 1 where nothing follows it.
    """

    keys: Ids
    discounted: Floats
    backoff: Floats


class KneserNey:
    """Probability of a token after the n - 1 tokens before it.

    Args:
        tokens: Token ids (N,) of the training text, one sequence.
        order: n.
        vocab_size: V.

    Raises:
        ValueError: The text is shorter than n.
    """

    def __init__(self, tokens: npt.NDArray[Any], order: int, vocab_size: int) -> None:
        if len(tokens) < order:
            raise ValueError(f"{len(tokens)} tokens are too few for {order}-grams")
        self._vocab_size = vocab_size
        ids = tokens.astype(np.int64)
        # Number of the k-gram that starts at each place of the text, and a place of each k-gram; for k = 0 there
        # is one, of no tokens.
        numbers = [np.zeros(len(ids), np.int64)]
        keys: list[Ids] = []
        places: list[Ids] = []
        counts: list[Ids] = []
        for k in range(1, order + 1):
            key = numbers[-1][: len(ids) - k + 1] * vocab_size + ids[k - 1 :]
            unique, place, number, count = np.unique(
                key, return_index=True, return_inverse=True, return_counts=True
            )
            keys.append(unique)
            places.append(place)
            numbers.append(number)
            counts.append(count)
        for k in range(1, order):
            # Each (k + 1)-gram shows one more token before the k-gram that it ends in.
            followers = numbers[k][places[k] + 1]
            counts[k - 1] = np.bincount(followers, minlength=len(keys[k - 1]))
        contexts = [1, *map(len, keys)]
        self._orders = [
            _smoothed(key, count, context, vocab_size)
            for key, count, context in zip(keys, counts, contexts, strict=False)
        ]

    def log_probabilities(self, tokens: npt.NDArray[Any]) -> Floats:
        """Log p of each token (N,) in nats, given those before it in this text."""
        ids = tokens.astype(np.int64)
        result = np.full(len(ids), 1 / self._vocab_size)
        context = np.zeros(len(ids), np.int64)
        for k, order in enumerate(self._orders, start=1):
            # Number of the k-gram at each place, or -1; places too near the start have a shorter past.
            context = context[: len(ids) - k + 1]
            known = context >= 0
            gram = _find(order.keys, np.where(known, context * self._vocab_size + ids[k - 1 :], -1))
            seen = np.where(gram >= 0, order.discounted[gram], 0.0)
            interpolated = seen + order.backoff[context] * result[k - 1 :]
            result[k - 1 :] = np.where(known, interpolated, result[k - 1 :])
            context = gram
        logs: Floats = np.log(result)
        return logs


def _smoothed(keys: Ids, counts: Ids, contexts: int, vocab_size: int) -> _Order:
    context = keys // vocab_size
    discount = _discounts(counts)[np.minimum(counts, 3)]
    totals = np.bincount(context, counts, contexts)
    # Nothing follows the last tokens of the text, and perhaps nothing that counts here.
    followed = totals > 0
    divisors = np.where(followed, totals, 1.0)
    backoff = np.where(followed, np.bincount(context, discount, contexts) / divisors, 1.0)
    return _Order(keys=keys, discounted=(counts - discount) / divisors[context], backoff=backoff)


def _discounts(counts: Ids) -> Floats:
    """D for a count of 0 to 3 or more."""
    n = np.bincount(counts, minlength=5)[:5].astype(np.float64)
    if not n[1:].all():
        return _DISCOUNTS
    y = n[1] / (n[1] + 2 * n[2])
    c = np.arange(1, 4)
    estimated = c - (c + 1) * y * n[2:5] / n[1:4]
    return np.concatenate([[0.0], np.clip(estimated, 0.0, c)])


def _find(keys: Ids, wanted: Ids) -> Ids:
    """Where each wanted key is among rising keys, or -1."""
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[place] == wanted, place, -1)
