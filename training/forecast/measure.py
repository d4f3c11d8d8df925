"""Quality of an exported forecaster: a part of the series told to the graph observation by observation, in chunks.

What is measured is the deployed computation. A window before the part is told first, as the protocol allows.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import numpy as np

from service.contract import Metric
from training.export.runtime import LoadedGraph
from training.forecast.config import ForecastRun
from training.forecast.data import Array, Series
from training.forecast.floors import Errors, ErrorSums, named, split
from training.forecast.graph import INPUT

# Share of the test observations hidden from the model to see what missing values cost.
_HIDDEN = 0.1


class Quality(msgspec.Struct, frozen=True):
    """How good forecasts are.

    Attributes:
        errors: Of the mean.
        pinball: Mean over the quantiles of the pinball loss, of standardised values.
        coverage: Share of what came that lies between the outermost quantiles.
    """

    errors: Errors
    pinball: float
    coverage: float


def measure(run: ForecastRun, graph: LoadedGraph, series: Series) -> tuple[Metric, ...]:
    """Errors on test and valid, by the published protocol where there is one, and quality of the quantiles on test."""
    test, valid = (quality(run, graph, series, part) for part in ("test", "valid"))
    hidden = quality(run, graph, with_gaps(series), "test")
    where, horizon = split(series, "test"), f"H={run.model.horizon}"
    between = f"{run.model.quantiles[0]:g} to {run.model.quantiles[-1]:g}"
    return (
        *named(run, series, "test", test.errors),
        *named(run, series, "valid", valid.errors),
        Metric(name=f"pinball {horizon}", split=where, value=test.pinball),
        Metric(name=f"coverage {between}, {horizon}", split=where, value=test.coverage),
        Metric(name=f"MSE {horizon}, {_HIDDEN:.0%} missing", split=where, value=hidden.errors.mse),
    )


def with_gaps(series: Series) -> Series:
    """The series as the model is told it when a share of the observations is lost, which ones always the same."""
    lost = np.random.default_rng(1).random(series.values.shape) < _HIDDEN
    return msgspec.structs.replace(series, told=np.where(lost, np.nan, series.values))


def quality(run: ForecastRun, graph: LoadedGraph, series: Series, part: str) -> Quality:
    """How good the forecasts are that lie in a part of the series."""
    levels = np.array(run.model.quantiles)[:, None, None]
    sums, pinball, inside, known = ErrorSums(), 0.0, 0, 0
    for mean, quantiles, truth in forecasts(run, graph, series, part):
        sums.add(mean, truth)
        error = truth[:, None] - quantiles
        pinball += float(np.nansum(np.maximum(levels * error, (levels - 1) * error)))
        inside += int(((truth >= quantiles[:, 0]) & (truth <= quantiles[:, -1])).sum())
        known += int((~np.isnan(truth)).sum())
    return Quality(sums.errors(), pinball / known / len(levels), inside / known)


def forecasts(
    run: ForecastRun, graph: LoadedGraph, series: Series, part: str
) -> Iterator[tuple[Array, Array, Array]]:
    """Standardised means (M, H, n), quantiles (M, Q, H, n) and what came (M, H, n), of all windows in order."""
    start, stop = series.parts[part]
    horizon, window = run.model.horizon, run.model.window
    mean, deviation = series.scale()
    truth = series.standardised()
    told = series.values if series.told is None else series.told
    state, place = graph.initial_state(1), start - window
    first, last = start - 1, stop - horizon - 1  # observations that are forecast after
    while place <= last:
        # A chunk ends before the first forecast that counts, so that all of the later ones' do.
        length = min(
            graph.config.batching.max_chunk_length, (first if place < first else last + 1) - place
        )
        rows = told[place : place + length].astype(np.float32)[None]
        outputs, state = graph.run({INPUT: rows}, np.array([length]), state)
        if place >= first:
            ahead = np.arange(place, place + length)[:, None] + 1 + np.arange(horizon)
            standard = [(outputs[name][0] - mean) / deviation for name in ("mean", "quantiles")]
            yield standard[0], standard[1], truth[ahead]
        place += length
