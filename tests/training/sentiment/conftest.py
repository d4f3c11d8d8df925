"""Made sets in the form of the public ones, whose labels follow from a few words and `not` before them."""

from __future__ import annotations

import gzip
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from training.config import EncoderConfig, ExportConfig, RecurrentConfig, TrainingConfig
from training.sentiment.config import DataConfig, ModelConfig, SentimentRun

GOOD, BAD = ("good", "great", "lovely"), ("bad", "awful", "dull")
PLAIN = ("the", "movie", "is", "a", "thing", "we", "saw", ",", "today")


def made_text(choice: random.Random) -> tuple[str, set[str]]:
    """A text and its labels: those of each polar word, turned by `not`; neutral without any."""
    words, labels = [], set[str]()
    for _ in range(choice.randrange(2, 9)):
        words.append(choice.choice(PLAIN))
        if choice.random() < 0.15:
            good, turned = choice.random() < 0.6, choice.random() < 0.3
            words += ["not"] * turned + [choice.choice(GOOD if good else BAD)]
            labels.add("positive" if good != turned else "negative")
    return " ".join(words), labels or {"neutral"}


def write_sets(directory: Path, size: int) -> None:
    """Training parts of `size` texts and validation parts of a third of it."""
    choice = random.Random(size)
    for folder in ("goemotions-sentiment", "uci-sentences", "sst2"):
        (directory / folder).mkdir()
    for part, count in (("train", size), ("valid", size // 3)):
        texts = [made_text(choice) for _ in range(4 * count)]
        many = [f"{','.join(sorted(labels))}\t{text}" for text, labels in texts[:count]]
        polar = [(text, *labels) for text, labels in texts if len(labels - {"neutral"}) == 1]
        one = [(int(label == "positive"), text) for text, label, *more in polar if not more]
        rows = {
            "goemotions-sentiment": ["labels\ttext", *many],
            "uci-sentences": ["label\tsource\ttext", *(f"{y}\tyelp\t{t}" for y, t in one)],
            "sst2": ["label\ttext", *(f"{y}\t{t}" for y, t in one)],
        }
        for folder, lines in rows.items():
            (directory / folder / f"{part}.tsv").write_text("\n".join(lines) + "\n")
    phrases = "label\ttext\n" + "".join(f"{int(w in GOOD)}\t{w}\n" for w in GOOD + BAD)
    (directory / "sst2" / "train-phrases.tsv.gz").write_bytes(gzip.compress(phrases.encode()))


@pytest.fixture(scope="session")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory as `SEQSERVE_DATA` names one."""
    directory = tmp_path_factory.mktemp("sets")
    write_sets(directory, 600)
    return directory


@pytest.fixture(scope="session")
def few_sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with few texts, where nothing is to be learnt."""
    directory = tmp_path_factory.mktemp("few_sets")
    write_sets(directory, 90)
    return directory


MANY = DataConfig(
    sources=("goemotions-sentiment", "uci-sentences"),
    also_valid=("uci-sentences",),
    labels=("positive", "negative", "neutral"),
    exclusive=False,
    held=0.1,
)
ONE = DataConfig(sources=("sst2",), phrases=True, labels=("negative", "positive"), exclusive=True)
GRU = RecurrentConfig(cell="gru", hidden_size=24)


@pytest.fixture
def make_run() -> Callable[..., SentimentRun]:
    """A small run; arguments replace its parts and fields of its model and training."""

    def make(data: DataConfig = MANY, encoder: EncoderConfig = GRU, **changes: Any) -> SentimentRun:
        parts: dict[str, msgspec.Struct] = {
            "model": ModelConfig(embedding_dim=16, pooling="max", word_dropout=0.05),
            "training": TrainingConfig(
                epochs=4, batch_size=16, lr=1e-2, valid_every=50, log_every=10, threads=1
            ),
        }
        for name, part in parts.items():
            known = {k: v for k, v in changes.items() if hasattr(part, k)}
            parts[name] = msgspec.structs.replace(part, **known)
        return SentimentRun(
            name="mood",
            version=1,
            description="A model for tests",
            seed=5,
            data=data,
            encoder=encoder,
            export=ExportConfig(weights="float16", max_chunk_length=128),
            streaming_sibling="mood-stream" if encoder.bidirectional else "",
            **parts,  # type: ignore[arg-type]
        )

    return make
