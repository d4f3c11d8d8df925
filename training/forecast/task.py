"""The forecasting task, for the commands."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from service.contract import Metric
from training.export.bundle import Bundle
from training.export.runtime import LoadedGraph
from training.floors import Floors
from training.forecast import bundle as bundles
from training.forecast import data
from training.forecast import floors as simple
from training.forecast.config import ForecastRun
from training.forecast.learner import ForecastLearner
from training.forecast.measure import measure as measured
from training.trainer import Learner, Share


def learner(run: ForecastRun, share: Share) -> Learner:
    """See `Task.learner`."""
    return ForecastLearner(run, data.load(run.data), share)


def bundle(run: ForecastRun, command: str, directory: Path) -> Bundle:
    """See `Task.bundle`."""
    return bundles.bundle(run, command, directory, data.load(run.data))


def measure(run: ForecastRun, graph: LoadedGraph, files: Mapping[str, bytes]) -> tuple[Metric, ...]:
    """See `Task.measure`."""
    return measured(run, graph, data.load(run.data))


def floors(run: ForecastRun) -> Floors:
    """See `Task.floors`."""
    series = data.load(run.data)
    return Floors((series.dataset,), simple.floors(run, series))
