"""The next-word task, for the commands."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tokenizers import Tokenizer

from service.contract import Metric
from training.export.bundle import Bundle
from training.export.runtime import LoadedGraph
from training.next_word import bundle as bundles
from training.next_word import corpora, vocabulary
from training.next_word.config import NextWordRun
from training.next_word.floors import floors as floors
from training.next_word.learner import TOKENIZER_FILE, TextLearner
from training.trainer import Learner, Share


def learner(run: NextWordRun, share: Share) -> Learner:
    """See `Task.learner`."""
    return TextLearner(run, corpora.load(run.data), share)


def bundle(run: NextWordRun, command: str, directory: Path) -> Bundle:
    """See `Task.bundle`."""
    return bundles.bundle(run, command, directory, corpora.load(run.data))


def measure(run: NextWordRun, graph: LoadedGraph, files: Mapping[str, bytes]) -> tuple[Metric, ...]:
    """See `Task.measure`."""
    corpus = corpora.load(run.data)
    tokenizer = Tokenizer.from_str(files[TOKENIZER_FILE].decode())
    valid = vocabulary.encode(tokenizer, corpus.valid).numpy()
    return bundles.measure(graph, valid, corpus)
