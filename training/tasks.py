"""Every task that the commands know: a module for each kind of run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from service.contract import Metric
from training.export.bundle import Bundle
from training.export.runtime import LoadedGraph
from training.floors import Floors
from training.forecast import task as forecast
from training.forecast.config import ForecastRun
from training.ner import task as ner
from training.ner.config import NerRun
from training.next_word import task as next_word
from training.next_word.config import NextWordRun
from training.runs import Run
from training.sentiment import task as sentiment
from training.sentiment.config import SentimentRun
from training.trainer import Learner, Share
from training.weekend_planner import task as weekend_planner
from training.weekend_planner.config import WeekendPlannerRun


class Task(Protocol):
    """What a task does for the commands; `run` is its own kind of run."""

    def learner(self, run: Any, share: Share) -> Learner:
        """What `fit` trains. Reads the data; the same for the same run on every process but for its share."""

    def bundle(self, run: Any, command: str, directory: Path) -> Bundle:
        """What `export` writes.

        Args:
            run: The configuration.
            command: What makes it again.
            directory: Where the run lives.

        Raises:
            ExportError: There are no weights, or they are of another model.
        """

    def measure(
        self, run: Any, graph: LoadedGraph, files: Mapping[str, bytes]
    ) -> tuple[Metric, ...]:
        """Quality of an exported model; `files` are those of its directory."""

    def floors(self, run: Any) -> Floors:
        """Quality of methods without a neural network on the same data, under the same names; see `training.floors`."""


_TASKS: dict[type[Run], Task] = {
    ForecastRun: forecast,
    NerRun: ner,
    NextWordRun: next_word,
    SentimentRun: sentiment,
    WeekendPlannerRun: weekend_planner,
}


def task_of(run: Run) -> Task:
    """The task of a run."""
    return _TASKS[type(run)]
