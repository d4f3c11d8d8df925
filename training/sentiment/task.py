"""The sentiment task, for the commands."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from service.contract import Metric
from training.export.bundle import Bundle
from training.export.runtime import LoadedGraph
from training.sentiment import bundle as bundles
from training.sentiment.config import SentimentRun
from training.sentiment.data import load
from training.sentiment.floors import floors as floors
from training.sentiment.learner import TOKENIZER_FILE, SentimentLearner
from training.trainer import Learner, Share


def learner(run: SentimentRun, share: Share) -> Learner:
    """See `Task.learner`."""
    return SentimentLearner(run, load(run.data), share)


def bundle(run: SentimentRun, command: str, directory: Path) -> Bundle:
    """See `Task.bundle`."""
    return bundles.bundle(run, command, directory, load(run.data))


def measure(
    run: SentimentRun, graph: LoadedGraph, files: Mapping[str, bytes]
) -> tuple[Metric, ...]:
    """See `Task.measure`."""
    return bundles.measure(graph, load(run.data), files[TOKENIZER_FILE])
