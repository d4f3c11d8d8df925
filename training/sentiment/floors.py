"""What a model has to beat: naive Bayes on the very same texts.

Multinomial naive Bayes over the words that a text has, each counted once ("binarized", Wang, Manning 2012), Laplace
smoothing 1; one two-class model for each label. The score of a label is its log-odds

    log p(y) / p(not y) + sum over features f of the text of log p(f | y) / p(f | not y)

With `pairs`, two words in a row are a feature too. Features that training has not seen are left out.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence

import msgspec
import numpy as np
import numpy.typing as npt

from service.contract import Metric
from training.floors import Floors
from training.sentiment import quality
from training.sentiment.config import SentimentRun
from training.sentiment.data import Data, Texts, load

Words = Sequence[str]
Table = npt.NDArray[np.float64]


class NaiveBayes(msgspec.Struct, frozen=True):
    """Log-odds of labels.

    Attributes:
        pairs: Whether pairs of words are features beside words.
        features: Row of each feature in `ratios`.
        ratios: log p(f | y) / p(f | not y); (features, labels).
        prior: log p(y) / p(not y); (labels,).
    """

    pairs: bool
    features: Mapping[str, int]
    ratios: Table
    prior: Table

    def scores(self, texts: Sequence[Words]) -> Table:
        """Log-odds (N, labels) of texts."""
        rows = [
            [self.features[f] for f in _features(words, self.pairs) if f in self.features]
            for words in texts
        ]
        return np.stack([self.prior + self.ratios[row].sum(axis=0) for row in rows])


def fit(texts: Texts, *, pairs: bool) -> NaiveBayes:
    """Count features of the training texts."""
    features: dict[str, int] = {}
    places = [
        [features.setdefault(f, len(features)) for f in _features(words, pairs)]
        for words in texts.words
    ]
    due = texts.targets.astype(np.float64)
    counts = np.ones((2, len(features), due.shape[1]))  # Laplace smoothing
    flat = np.concatenate([np.array(place, np.intp) for place in places])
    owners = np.repeat(np.arange(len(places)), [len(place) for place in places])
    for label in range(due.shape[1]):
        for side, weights in enumerate((due[:, label], 1 - due[:, label])):
            counts[side, :, label] += np.bincount(flat, weights[owners], len(features))
    shares = np.log(counts / counts.sum(axis=1, keepdims=True))
    prior = np.log(due.sum(axis=0) / (1 - due).sum(axis=0))
    return NaiveBayes(pairs, features, shares[0] - shares[1], prior)


def _features(words: Words, pairs: bool) -> Iterator[str]:
    yield from dict.fromkeys(words)
    if pairs:
        yield from dict.fromkeys(f"{a} {b}" for a, b in itertools.pairwise(words))


def floors(run: SentimentRun) -> Floors:
    """See `Task.floors`: naive Bayes on the first set of the run alone, and on all of them."""
    everything = load(run.data)
    metrics = _floors(everything, ", ".join(run.data.sources))
    if len(run.data.sources) > 1:
        first = run.data.sources[:1]
        metrics += _floors(load(msgspec.structs.replace(run.data, sources=first)), first[0])
    return Floors(everything.datasets, tuple(metrics))


def _floors(data: Data, sources: str) -> list[Metric]:
    """Naive Bayes on words and on words with pairs, its thresholds set as those of a model are."""
    found: list[Metric] = []
    for pairs in (False, True):
        bayes = fit(data.train, pairs=pairs)
        thresholds = None
        if not data.exclusive:
            held = bayes.scores(data.held.words)
            thresholds = quality.best_thresholds(held, data.held.targets > 0)
        method = f"naive Bayes on {'words and pairs' if pairs else 'words'} of {sources}"
        for name, texts in data.valid.items():
            scores, due = bayes.scores(texts.words), texts.targets > 0
            limits = None if name in data.single else thresholds
            metrics = quality.metrics(name, data.labels, scores, due, limits)
            found += [msgspec.structs.replace(m, floor_name=method) for m in metrics]
    return found
