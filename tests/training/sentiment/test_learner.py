from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.training.sentiment.conftest import MANY, ONE
from training.config import RecurrentConfig
from training.sentiment import data, vocabulary
from training.sentiment.config import DataConfig, SentimentRun
from training.sentiment.learner import SentimentLearner
from training.trainer import Share, Trainer, fabric_for

MakeLearner = Callable[..., SentimentLearner]


@pytest.fixture
def learner(sets: Path) -> MakeLearner:
    def make(run: SentimentRun) -> SentimentLearner:
        return SentimentLearner(run, data.load(run.data, {"SEQSERVE_DATA": str(sets)}), Share())

    return make


Row = tuple[tuple[int, ...], tuple[float, ...]]


def rows(batch: tuple[torch.Tensor, ...]) -> list[Row]:
    """Words without padding, and targets, of each row."""
    return [
        (tuple(tokens[:length].tolist()), tuple(targets.tolist()))
        for tokens, length, targets in zip(*batch, strict=True)
    ]


def epoch(made: SentimentLearner, number: int) -> list[list[Row]]:
    first = number * made.steps_per_epoch
    return [rows(made.batch(step)) for step in range(first, first + made.steps_per_epoch)]


def test_batches_hold_words_and_targets_of_the_same_text(
    make_run: Callable[..., SentimentRun], learner: MakeLearner, sets: Path
) -> None:
    made = learner(make_run())
    texts = data.load(MANY, {"SEQSERVE_DATA": str(sets)}).train
    ids = vocabulary.build(texts.words, 2).get_vocab()
    due = Counter(
        (tuple(words.tolist()), tuple(target.tolist()))
        for words, target in zip(vocabulary.encode(ids, texts.words), texts.targets, strict=True)
    )
    seen = Counter(row for batch in epoch(made, 0) for row in batch)
    assert not seen - due
    assert (due - seen).total() < 16


def test_texts_of_a_batch_are_of_similar_length(
    make_run: Callable[..., SentimentRun], learner: MakeLearner
) -> None:
    spread = [
        max(len(words) for words, _ in batch) - min(len(words) for words, _ in batch)
        for batch in epoch(learner(make_run()), 0)
    ]
    assert sum(spread) / len(spread) < 1


@pytest.mark.parametrize(("config", "least"), [(MANY, 0.85), (ONE, 0.85)], ids=["many", "one"])
def test_it_learns_what_words_and_not_mean(
    make_run: Callable[..., SentimentRun],
    learner: MakeLearner,
    tmp_path: Path,
    config: DataConfig,
    least: float,
) -> None:
    run = make_run(config, RecurrentConfig(cell="lstm", hidden_size=16, bidirectional=True))
    made = learner(run)
    assert Trainer(run, made, tmp_path / "run", fabric_for(run.training)).fit() > least


def test_the_vocabulary_has_words_of_several_texts_and_reads_as_the_service_does() -> None:
    texts = [("good", "good"), ("good", "bad"), ("bad", "disappointing"), ("disappointing", "!")]
    ids = vocabulary.build(texts, 2).get_vocab()
    assert ids == {"<unk>": 0, "good": 1, "bad": 2, "disappointing": 3}
    (read,) = vocabulary.encode(ids, [("good", "disappointingly", "unseen")])
    assert read.tolist() == [1, 3, 0]


def test_padding() -> None:
    rows_ = vocabulary.encode({"<unk>": 0, "a": 1}, [("a", "a", "a"), ("a",)])
    tokens, lengths = vocabulary.padded(rows_)
    assert (tokens.tolist(), lengths.tolist()) == ([[1, 1, 1], [1, 0, 0]], [3, 1])
