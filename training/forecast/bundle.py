"""A trained forecaster as an export."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from service.contract import Forecast, ModelConfig
from service.contract import Tensor as TensorSpec
from training.export.bundle import Bundle, Case, Original
from training.export.runtime import Array, Arrays
from training.export.weights import Trained, as_stored, load_best, model_config
from training.forecast.config import ForecastRun
from training.forecast.data import Series
from training.forecast.graph import INPUT, step_graph
from training.forecast.learner import shape
from training.forecast.measure import measure
from training.forecast.model import LARGEST, ForecastModel
from training.models.encoder import named

# Length and chunks of the golden inputs.
_GOLDEN = ((1, (1,)), (6, (1, 3, 2)))
# With it nothing is missing of the first case, which may have one number only.
_FIRST_SEED = 2
# Share of the observations of golden and parity inputs that is missing.
_MISSING = 0.1


def bundle(run: ForecastRun, command: str, directory: Path, series: Series) -> Bundle:
    """The best weights of a run as an export.

    Args:
        run: Its configuration.
        command: What makes it again.
        directory: Where the run lives.
        series: Its series, for golden inputs and quality.

    Raises:
        ExportError: There are no weights, or they are of another model.
    """
    trained = load_best(directory, shape(run, series))
    model = ForecastModel(run.model, run.encoder, len(series.columns))
    model.load_state_dict(as_stored(trained.weights, run.export))
    model.eval()
    return Bundle(
        config=_config(run, command, model, trained, series),
        model=step_graph(model, run.export.weights).SerializeToString(),
        original=original(model),
        sample=lambda length, seed: {INPUT: made_up(series, length, seed)},
        cases=tuple(
            Case({INPUT: made_up(series, length, seed)}, split)
            for seed, (length, split) in enumerate(_GOLDEN, _FIRST_SEED)
        ),
        golden_outputs=("mean", "quantiles"),
        measure=lambda graph: measure(run, graph, series),
        card=_card(run, model, trained, series),
    )


def original(model: ForecastModel) -> Original:
    """The torch model, one sequence at a time."""

    def answer(inputs: Arrays, state: Arrays) -> tuple[Arrays, Arrays]:
        x = torch.from_numpy(inputs[INPUT])[None]
        before = tuple(torch.from_numpy(state[spec.name])[None] for spec in model.states)
        with torch.inference_mode():
            mean, quantiles, after = model.forecast(x, before)
        outputs = {
            "mean": model.raw(mean)[0].numpy(),
            "quantiles": model.raw(quantiles)[0].numpy(),
        }
        return outputs, {name: part[0].numpy() for name, part in named(model.states, after).items()}

    return answer


def made_up(series: Series, length: int, seed: int) -> Array:
    """A wave of one season and noise, (T, n) float32, at every column's mean and deviation; some of it is missing.

    Whoever has the export has no row of the data, whose licence may not allow that.
    """
    random = np.random.default_rng(seed)
    mean, deviation = series.scale()
    shape = length, len(series.columns)
    wave = np.sin(2 * np.pi * (np.arange(length) / series.period + random.random()))
    values = mean + deviation * (wave[:, None] + random.standard_normal(shape)) / np.sqrt(1.5)
    lost = random.random(shape) < _MISSING
    return np.where(lost, np.nan, values).astype(np.float32)


def _config(
    run: ForecastRun, command: str, model: ForecastModel, trained: Trained, series: Series
) -> ModelConfig:
    mean = (run.model.horizon, len(series.columns))
    return model_config(
        run,
        trained,
        command,
        task=Forecast(
            columns=series.columns, horizon=run.model.horizon, quantiles=run.model.quantiles
        ),
        inputs=(TensorSpec(name=INPUT, dtype="float32", shape=(len(series.columns),)),),
        outputs=(
            TensorSpec(name="mean", dtype="float32", shape=mean),
            TensorSpec(name="quantiles", dtype="float32", shape=(len(run.model.quantiles), *mean)),
        ),
        states=model.states,
    )


def _card(run: ForecastRun, model: ForecastModel, trained: Trained, series: Series) -> str:
    config = run.model
    learnt = sum(parameter.numel() for parameter in model.parameters())
    levels = ", ".join(str(level) for level in config.quantiles)
    return f"""Takes one observation of {len(series.columns)} columns at a time ({", ".join(series.columns)}) and
gives, after each, the mean and the quantiles {levels} of the next {config.horizon} steps, in the units of the
observations. Its memory is {sum(spec.size for spec in model.states):,} numbers: an input and an output of the graph,
held by the session in the service.

## Model

- linear part from the last {config.window} observations, {model.linear.numel():,} numbers in closed form
- correction and width of the quantiles by {run.encoder.in_words}, over observations normalised by the window
- {learnt:,} learnt parameters, stored in {run.export.weights}
- weights of step {trained.step:,}, the best on the validation part

## Missing values and beginnings

A missing value (NaN; null in JSON) counts as the one before it in its column, and the encoder is told that it was
missing; before a column's first value, it counts as the column's mean. Until {config.window} observations are there,
the window is filled up with the first one, and the quantiles are wide. Values beyond {LARGEST:,.0f} standard
deviations are cut.

## Limits

It knows this series and its rhythm only; another series needs its own training. A step is what it was in the data, and
a step left out shifts every season after it: send NaN instead. The quantiles are those of the years it learnt from.
"""
