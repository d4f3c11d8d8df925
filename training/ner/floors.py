"""What taggers have to beat: an averaged perceptron. No torch here but in what the modules share."""

from __future__ import annotations

import msgspec

from training.floors import Floors
from training.ner import perceptron, quality
from training.ner.config import NerRun
from training.ner.data import LABELS, load


def floors(run: NerRun) -> Floors:
    """See `Task.floors`: of the tagged sentences of the run alone."""
    data = load(run.data)
    texts = [(s.words, s.tags) for sentences in data.train for s in sentences]
    tagger = perceptron.fit(texts, LABELS, run.seed)
    due = [sentence.tags for sentence in data.valid]
    found = [tagger.tags(sentence.words) for sentence in data.valid]
    measured = quality.of_tags(due, found, data.split)
    return Floors(
        data.datasets,
        tuple(msgspec.structs.replace(m, floor_name=perceptron.NAME) for m in measured),
    )
