"""A tiny text and tiny runs over it, so that every test trains and exports the real thing in a second."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from training import runs
from training.next_word import corpora
from training.next_word.config import DataConfig, NextWordRun
from training.next_word.learner import TextLearner
from training.trainer import Share

TINY = Path(__file__).parent / "tiny.toml"


def tiny_words(lines: int, seed: int) -> str:
    """Lines in which most words follow from the one before; early words are frequent."""
    choice = random.Random(seed)
    words = ["<unk>", *(f"w{i}" for i in range(30))]
    text = []
    for _ in range(lines):
        place, line = 0, []
        for _ in range(choice.randrange(1, 12)):
            follows = choice.random() < 0.8
            place = place * 2 % 31 + 1 if follows else int(choice.paretovariate(1)) % 31
            line.append(words[place % 31])
        text.append(" ".join(line))
    return "\n".join(text) + "\n"


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    """Two text files."""
    directory = tmp_path_factory.mktemp("texts")
    for split, lines in (("train", 700), ("valid", 120)):
        (directory / f"{split}.txt").write_text(tiny_words(lines, seed=lines))
    return DataConfig(
        name="files", train=str(directory / "train.txt"), valid=str(directory / "valid.txt")
    )


@pytest.fixture
def tiny(texts: DataConfig) -> Callable[..., NextWordRun]:
    """A run over the tiny text; arguments replace fields of its model, encoder, training or export."""

    def make(**changes: Any) -> NextWordRun:
        run = runs.load(TINY)
        assert isinstance(run, NextWordRun)
        parts = {
            part: msgspec.structs.replace(
                getattr(run, part),
                **{k: v for k, v in changes.items() if hasattr(getattr(run, part), k)},
            )
            for part in ("model", "encoder", "training", "export")
        }
        return msgspec.structs.replace(run, data=texts, **parts)

    return make


@pytest.fixture
def learner(texts: DataConfig) -> Callable[..., TextLearner]:
    """The tiny text and a model to learn it."""

    def make(run: NextWordRun) -> TextLearner:
        return TextLearner(run, corpora.load(texts), Share())

    return make


@pytest.fixture
def tiny_toml(texts: DataConfig, tmp_path: Path) -> Path:
    """The tiny run as a file, for commands."""
    content = TINY.read_text()
    data = f'[data]\nname = "files"\ntrain = "{texts.train}"\nvalid = "{texts.valid}"\n'
    path = tmp_path / "run.toml"
    path.write_text(content.replace('[data]\nname = "files"\n', data))
    return path


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
