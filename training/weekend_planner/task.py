"""The weekend planner, for the commands."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from service.contract import Metric
from training.config import ConfigError
from training.export.bundle import Bundle
from training.export.runtime import LoadedGraph
from training.floors import Floors
from training.trainer import Learner, Share
from training.weekend_planner import bundle as bundles
from training.weekend_planner.config import WeekendPlannerRun


def learner(run: WeekendPlannerRun, share: Share) -> Learner:
    """See `Task.learner`.

    Raises:
        ConfigError: Always; its weights are known.
    """
    raise ConfigError(f"{run.name} has nothing to train; use `seqtrain export`")


def bundle(run: WeekendPlannerRun, command: str, directory: Path) -> Bundle:
    """See `Task.bundle`; there is no run to read."""
    return bundles.bundle(run, command)


def measure(
    run: WeekendPlannerRun, graph: LoadedGraph, files: Mapping[str, bytes]
) -> tuple[Metric, ...]:
    """See `Task.measure`."""
    return bundles.measure(graph)


def floors(run: WeekendPlannerRun) -> Floors:
    """See `Task.floors`; there is no data."""
    return Floors((), bundles.floors())
