"""Real configurations made small, over made data, so that each trains in a second.

The made data stands where `SEQSERVE_DATA` has to point.
"""

from __future__ import annotations

import gzip
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from tests.training.conftest import tiny_words
from training.config import EncoderConfig, ExportConfig, RecurrentConfig, TrainedRun
from training.forecast.config import ForecastRun
from training.ner.config import NerRun
from training.next_word.config import NextWordRun
from training.sentiment.config import SentimentRun


def small(run: TrainedRun, directory: Path) -> Any:
    """The run with a small encoder, few steps, and made data in a directory."""
    training = replace(
        run.training,
        epochs=1,
        batch_size=4,
        bptt=16,
        precision="32-true",
        valid_every=4,
        checkpoint_every=100,
        threads=1,
    )
    export: ExportConfig = replace(run.export, weights="float32", top_k=3, tolerance=1e-4)
    run = replace(run, encoder=_encoder(run.encoder), training=training, export=export)
    return _DATA[type(run)](run, directory)


def _encoder(config: EncoderConfig) -> EncoderConfig:
    if isinstance(config, RecurrentConfig):
        return replace(config, hidden_size=8, num_layers=min(2, config.num_layers))
    return replace(config, width=8, heads=2, num_layers=2, window=6, feedforward=12)


def _text(run: NextWordRun, directory: Path) -> NextWordRun:
    for split, lines in (("train", 60), ("valid", 20)):
        if directory.exists():
            (directory / f"{split}.txt").write_text(tiny_words(lines, seed=lines))
    data = replace(
        run.data,
        name="files",
        train=str(directory / "train.txt"),
        valid=str(directory / "valid.txt"),
    )
    clusters = {"cutoffs": (10, 20), "cutoff_dims": (4, 3)} if run.model.cutoffs else {}
    return replace(run, data=data, model=replace(run.model, embedding_dim=8, **clusters))


def _opinions(run: SentimentRun, directory: Path) -> SentimentRun:
    choose = random.Random(1)
    words = {
        "positive": "good fine nice",
        "negative": "bad poor sad",
        "neutral": "blue round",
        "ambiguous": "what why",
    }
    for name in {*run.data.sources, *run.data.also_valid}:
        (directory / name).mkdir(parents=True, exist_ok=True)
        binary = name != "goemotions-sentiment"
        for split, count in (("train", 60), ("valid", 20), ("train-phrases", 10)):
            header = "label\tsource\ttext" if name == "uci-sentences" else "label\ttext"
            lines = ["labels\ttext" if not binary else header]
            for number in range(count):
                label = list(words)[number % (2 if binary else 3)]
                text = " ".join(choose.choices([*words[label].split(), "the", "is"], k=6))
                several = label if number % 5 else f"{label},ambiguous"
                first = str(int(label == "positive")) if binary else several
                lines.append(
                    "\t".join([first, *(["web"] if name == "uci-sentences" else []), text])
                )
            content = "\n".join(lines).encode() + b"\n"
            if split == "train-phrases":
                (directory / name / f"{split}.tsv.gz").write_bytes(gzip.compress(content))
            else:
                (directory / name / f"{split}.tsv").write_bytes(content)
    return replace(run, model=replace(run.model, embedding_dim=8))


def _entities(run: NerRun, directory: Path) -> NerRun:
    choose = random.Random(1)
    tagged = {"Ann": "B-PER", "Paris": "B-LOC", "Acme": "B-ORG", "saw": "O", "in": "O", ".": "O"}
    for split, count in (("train", 60), ("valid", 20)):
        lines = []
        for _ in range(count):
            words = choose.choices(list(tagged), k=7)
            lines += [f"{word}\t{tagged[word]}" for word in words] + [""]
        (directory / f"{split}.conll").write_text("\n".join(lines) + "\n")
    for name, file, content in (
        ("names", "txt", "ann\nzoe\n"),
        ("names-by-language", "tsv", "language\tname\nmade\tKim\n"),
    ):
        (directory / name).mkdir(exist_ok=True)
        for split in ("train", "valid"):
            (directory / name / f"{split}.{file}").write_text(content)
    data = replace(
        run.data,
        sources=("files",),
        unlabelled=False,
        train=str(directory / "train.conll"),
        valid=str(directory / "valid.conll"),
    )
    model = replace(
        run.model, embedding_dim=8, min_count=1, characters=6, character_dim=4, filters=5
    )
    training = replace(run.training, batch_size=16)
    return replace(run, data=data, model=model, training=training)


def _series(run: ForecastRun, directory: Path) -> ForecastRun:
    noise = random.Random(1)
    names = run.data.columns or ("a", "b")
    lines = [",".join(["date", *names])]
    for step in range(400):
        values = [math.sin(step / 4 + i) + noise.gauss(0, 0.1) for i, _ in enumerate(names)]
        lines.append(",".join([f"2020-01-{step}", *(f"{value:.4f}" for value in values)]))
    (directory / "series.csv").write_text("\n".join(lines) + "\n")
    data = replace(run.data, name="csv", path=str(directory / "series.csv"), period=8, forecasts=4)
    skip = replace(run.model.skip, period=min(8, run.model.skip.period))
    model = replace(run.model, horizon=5, window=16, skip=skip)
    return replace(run, data=data, model=model)


_DATA: dict[type, Callable[[Any, Path], Any]] = {
    NextWordRun: _text,
    SentimentRun: _opinions,
    NerRun: _entities,
    ForecastRun: _series,
}
