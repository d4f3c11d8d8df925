"""Made series and small runs over them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest

from service.contract import Dataset
from training.config import RecurrentConfig, TrainingConfig
from training.forecast.config import DataConfig, ForecastRun, ModelConfig, SkipConfig
from training.forecast.data import Series

RUN = ForecastRun(
    name="waves",
    version=1,
    description="A test",
    seed=1,
    data=DataConfig(name="csv", forecasts=4, context=6, missing=0.1, period=6),
    model=ModelConfig(horizon=5, window=12, quantiles=(0.1, 0.5, 0.9), skip=SkipConfig(ridge=1e-3)),
    encoder=RecurrentConfig(cell="gru", hidden_size=8),
    training=TrainingConfig(epochs=1, batch_size=6, lr=1e-3),
)


def waves(rows: int = 400, gaps: float = 0.0) -> Series:
    """Two noisy waves of period 6, in units of their own; a share of the values is missing."""
    random = np.random.default_rng(3)
    time = np.arange(rows)[:, None]
    values = np.sin(time * np.pi / 3 + [0, 1]) + 0.3 * random.standard_normal((rows, 2))
    values = np.array([100.0, -7.0]) + np.array([20.0, 0.5]) * values
    values[random.random(values.shape) < gaps] = np.nan
    first, second = rows * 6 // 10, rows * 8 // 10
    return Series(
        columns=("load", "price"),
        values=values,
        parts={"train": (0, first), "valid": (first, second), "test": (second, rows)},
        period=6,
        dataset=Dataset(name="waves", licence="none", sha256={}),
    )


@pytest.fixture
def series() -> Series:
    return waves()


@pytest.fixture
def run() -> Callable[..., ForecastRun]:
    """A run; arguments replace fields of its data or model."""

    def make(**changes: Any) -> ForecastRun:
        parts = {
            part: msgspec.structs.replace(
                getattr(RUN, part),
                **{k: v for k, v in changes.items() if hasattr(getattr(RUN, part), k)},
            )
            for part in ("data", "model")
        }
        return msgspec.structs.replace(RUN, **parts)

    return make
