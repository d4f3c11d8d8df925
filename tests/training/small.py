"""Real configurations made small, over made data, so that each trains in a second."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from tests.training.conftest import tiny_words
from training.config import EncoderConfig, ExportConfig, RecurrentConfig, TrainedRun
from training.next_word.config import NextWordRun


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


_DATA: dict[type, Callable[[Any, Path], Any]] = {NextWordRun: _text}
