from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.training.sentiment.conftest import ONE
from training.sentiment import floors
from training.sentiment.config import DataConfig, SentimentRun
from training.sentiment.data import Texts, load


def texts(*rows: tuple[str, float]) -> Texts:
    words = tuple(tuple(text.split()) for text, _ in rows)
    return Texts(words, np.array([[target] for _, target in rows], np.float32))


def test_log_odds_by_hand() -> None:
    bayes = floors.fit(texts(("a b b", 1), ("a c", 0), ("c", 0)), pairs=False)
    # Each text counts a word once: a, b | a, c, c; with one more for each of the three words.
    prior = math.log(1 / 2)
    of_a = math.log((2 / 5) / (2 / 6))
    of_b = math.log((2 / 5) / (1 / 6))
    assert bayes.scores([("a", "b", "a", "unseen")])[0, 0] == pytest.approx(prior + of_a + of_b)
    assert bayes.scores([("unseen",)])[0, 0] == pytest.approx(prior)


def test_pairs_tell_apart_what_words_do_not() -> None:
    rows = [("good not bad", 1), ("bad not good", 0)] * 3
    words, pairs = (floors.fit(texts(*rows), pairs=p) for p in (False, True))
    question = [("good", "not", "bad"), ("bad", "not", "good")]
    assert words.scores(question)[:, 0] == pytest.approx([0, 0])
    assert pairs.scores(question)[0, 0] > 0 > pairs.scores(question)[1, 0]


def test_floors_of_a_run_are_better_than_a_guess(
    make_run: Callable[..., SentimentRun], sets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEQSERVE_DATA", str(sets))
    found = floors.floors(make_run())
    assert {m.floor_name for m in found.metrics} == {
        f"naive Bayes on {features} of {sources}"
        for features in ("words", "words and pairs")
        for sources in ("goemotions-sentiment", "goemotions-sentiment, uci-sentences")
    }
    assert all(m.value > 0.6 for m in found.metrics if m.name == "macro F1")
    (single, paired) = floors.floors(make_run(ONE)).metrics
    assert single.name == "accuracy"
    assert paired.value > single.value > 0.6


@pytest.mark.skipif("SEQSERVE_DATA" not in os.environ, reason="needs SST-2")
def test_sst2_is_near_what_is_published() -> None:
    config = DataConfig(sources=("sst2",), labels=("negative", "positive"), exclusive=True)
    read = load(config)
    valid = read.valid["sst2"]
    said = floors.fit(read.train, pairs=False).scores(valid.words).argmax(axis=1)
    # Naive Bayes on the words of the sentences alone: 80 to 82 %, by how words are split.
    assert (said == valid.targets.argmax(axis=1)).mean() == pytest.approx(0.81, abs=0.015)
