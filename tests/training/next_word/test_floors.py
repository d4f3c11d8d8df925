from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest

from training.next_word import corpora
from training.next_word.config import DataConfig, NextWordRun
from training.next_word.floors import floors
from training.next_word.kneser_ney import KneserNey


def test_words_have_a_perplexity_below_a_guess(tiny: Callable[..., NextWordRun]) -> None:
    run = tiny()
    found = floors(run)
    corpus = corpora.load(run.data)
    assert found.datasets == (corpus.dataset,)
    (metric,) = found.metrics
    assert (metric.name, metric.split) == ("perplexity", "files valid")
    ids = {word: i for i, word in enumerate(sorted(set(corpus.train)))}
    train, valid = (np.array([ids[w] for w in text]) for text in (corpus.train, corpus.valid))
    logs = KneserNey(train, 5, len(ids)).log_probabilities(valid)[1:]
    assert metric.value == pytest.approx(math.exp(-logs.mean()))
    assert metric.value < len(ids) / 1.5


def test_characters_have_nats(tiny: Callable[..., NextWordRun], tmp_path: Path) -> None:
    for split in ("train", "valid"):
        (tmp_path / split).write_text("to be or not to be\nthat is\n" * 30)
    data = DataConfig(
        name="files",
        level="character",
        train=str(tmp_path / "train"),
        valid=str(tmp_path / "valid"),
    )
    found = floors(msgspec.structs.replace(tiny(), data=data)).metrics
    assert {metric.name for metric in found} == {"nats per character"}
    short, long = found
    assert "4-gram" in short.floor_name
    assert "7-gram" in long.floor_name
    assert 0 < long.value < short.value < math.log(13)
