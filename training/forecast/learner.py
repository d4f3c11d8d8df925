"""Learning from rows cut at random from the train part, each a window and the forecasts after it.

The linear part starts as its closed form, so that what is learnt begins where linear regression ends.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
import torch
from torch import Tensor, nn

from service.contract import Dataset
from training import floors
from training.config import ConfigError
from training.data.download import DataError
from training.forecast import skip
from training.forecast.config import ForecastRun
from training.forecast.data import Series, filled
from training.forecast.floors import Errors, named
from training.forecast.model import ForecastModel
from training.models.encoder import State
from training.trainer import Share

# Time steps of one pass over the validation part: how much of it is in memory at once.
_CHUNK = 256


class ForecastLearner:
    """A series and a forecaster; see `Learner`.

    Raises:
        DataError: The series is too short.
        ConfigError: The rows of a batch do not divide over the processes.
    """

    criterion = "valid/loss"
    maximise = False
    files: Mapping[str, bytes] = {}

    def __init__(self, run: ForecastRun, series: Series, part: Share) -> None:
        train = series.values[slice(*series.parts["train"])]
        window, horizon = run.model.window, run.model.horizon
        self._length = window + run.data.forecasts - 1
        self._starts = len(train) - self._length - horizon + 1
        start, stop = series.parts["valid"]
        if self._starts < 1 or stop - start < horizon:
            raise DataError(
                f"{series.dataset.name}: {len(series.values)} rows are too few for a window of {window}, "
                f"{run.data.forecasts} forecasts and a horizon of {horizon}"
            )
        if run.training.batch_size % part.count:
            raise ConfigError(
                f"{run.training.batch_size} rows do not divide over {part.count} processes"
            )
        torch.manual_seed(run.seed)
        self._model = ForecastModel(run.model, run.encoder, len(series.columns), run.data.context)
        fit_constants(self._model, run, series)
        self.model: nn.Module = self._model
        self.shape: Mapping[str, Any] = shape(run, series)
        self.datasets: tuple[Dataset, ...] = (series.dataset,)
        (mse, _) = named(run, series, "valid", Errors(0.0, 0.0))
        self.floor = f"MSE {floors.in_words(floors.best(mse.name, mse.split, self.datasets))}"
        self._run = run
        self._share = part
        self._train = torch.from_numpy(train.astype(np.float32))
        self._valid = torch.from_numpy(series.values[start - window : stop].astype(np.float32))
        learnt = run.training.batch_size * run.data.forecasts
        self.steps_per_epoch = max(1, self._starts // learnt)

    def batch(self, step: int) -> tuple[Tensor, ...]:
        """Observations (B, T, n), some taken away, and what followed the window (B, k + H - 1, n)."""
        rows = self._run.training.batch_size
        random = torch.Generator().manual_seed(self._run.seed * 1_000_003 + step)
        starts = torch.randint(self._starts, (rows,), generator=random)
        span = self._length + self._run.model.horizon
        drawn = self._train[starts[:, None] + torch.arange(span)]
        lost = torch.rand(rows, self._length, drawn.shape[2], generator=random)
        x = drawn[:, : self._length].masked_fill(lost < self._run.data.missing, torch.nan)
        future = drawn[:, self._run.model.window :]
        mine = slice(self._share.rank, None, self._share.count)
        return x[mine], future[mine]

    def fresh_state(self, step: int) -> State | None:
        """Nothing: every row starts afresh."""
        return ()

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Errors over the validation part as one stream, and the loss that training lowers: their sum."""
        bare = self._model
        device = bare.mean.device
        x = self._valid.to(device)
        horizon, window = bare.config.horizon, bare.config.window
        count = len(x) - window - horizon + 1
        truth = ((x - bare.mean) / bare.deviation)[window:].unfold(0, horizon, 1).transpose(1, 2)
        _, _, state = bare.forecast(x[None, : window - 1], bare.initial_state(1), 1)
        squares = sizes = pinball = 0.0
        for start in range(0, count, _CHUNK):
            stop = min(count, start + _CHUNK)
            rows = x[None, window - 1 + start : window - 1 + stop]
            mean, quantiles, state = bare.forecast(rows, state)
            due = truth[start:stop]
            error = (mean[0] - due).masked_fill_(due.isnan(), 0)
            squares += float(error.square().sum())
            sizes += float(error.abs().sum())
            pinball += float(bare.pinball(quantiles[0], due)) * int((~due.isnan()).sum())
        known = int((~truth.isnan()).sum())
        mse, mean_pinball = squares / known, pinball / known
        return {
            "valid/loss": mse + mean_pinball,
            "valid/mse": mse,
            "valid/mae": sizes / known,
            "valid/pinball": mean_pinball,
        }


def fit_constants(model: ForecastModel, run: ForecastRun, series: Series) -> None:
    """Set what is computed and not learnt step by step: scale, linear part, and usual width of the quantiles."""
    mean, deviation = series.scale()
    known = filled(series.standardised()[slice(*series.parts["train"])])
    window, horizon = run.model.window, run.model.horizon
    weights = skip.solve(known, window, horizon, run.model.skip)
    offsets = np.stack(
        [
            skip.residual_quantiles(column, weights[i], run.model.quantiles)
            for i, column in enumerate(known.T)
        ],
        axis=-1,
    )
    with torch.no_grad():
        model.mean.copy_(torch.from_numpy(mean))
        model.deviation.copy_(torch.from_numpy(deviation))
        model.linear.copy_(torch.from_numpy(weights))
        model.spread.copy_(torch.from_numpy(model_spread(offsets, model.middle)))


def model_spread(offsets: skip.Array, middle: int) -> skip.Array:
    """The parameter (Q, H, n) whose `ForecastModel.offsets` are these, which rise."""
    steps = np.maximum(np.diff(offsets, axis=0), 1e-4)
    gaps = np.log(np.expm1(steps))  # the inverse of softplus
    return np.concatenate([gaps[:middle], offsets[middle : middle + 1], gaps[middle:]])


def shape(run: ForecastRun, series: Series) -> dict[str, Any]:
    """What the weights of a run fit."""
    parts: dict[str, Any] = msgspec.to_builtins(
        {"model": run.model, "encoder": run.encoder, "columns": series.columns}
    )
    return parts
