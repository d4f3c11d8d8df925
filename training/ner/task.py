"""The named-entity task, for the commands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from service.contract import Dataset, Metric
from training.export.bundle import Bundle
from training.export.runtime import LoadedGraph
from training.ner import bundle as bundles
from training.ner import names
from training.ner.config import NerRun
from training.ner.data import load
from training.ner.floors import floors as floors
from training.ner.learner import TaggerLearner
from training.ner.plain import wikitext
from training.trainer import Learner, Share


def learner(run: NerRun, share: Share) -> Learner:
    """See `Task.learner`."""
    plain: tuple[Sequence[Sequence[str]], Sequence[Dataset]] = ((), ())
    if run.data.unlabelled:
        plain = wikitext()
    return TaggerLearner(run, load(run.data), plain, share, names.load(run.data.names))


def bundle(run: NerRun, command: str, directory: Path) -> Bundle:
    """See `Task.bundle`."""
    return bundles.bundle(run, command, directory, load(run.data))


def measure(run: NerRun, graph: LoadedGraph, files: Mapping[str, bytes]) -> tuple[Metric, ...]:
    """See `Task.measure`."""
    return bundles.measure(graph, load(run.data), files)
