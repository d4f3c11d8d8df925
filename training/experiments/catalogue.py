"""Every experiment, by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from training.experiments import agreement, budget, gradients, streaming_cost
from training.experiments.experiment import Experiment

EXPERIMENTS: Mapping[str, Experiment[Any, Any]] = {
    module.EXPERIMENT.name: module.EXPERIMENT
    for module in (agreement, gradients, streaming_cost, budget)
}
