"""The linear part of a forecaster in closed form: ridge regression from the window to the horizon.

    y - r = V^T (w - r),    w the last L observations

where r is the latest one, so that a shift of the level moves the forecast by as much, or 0, so that forecasts go back
to the mean of the series. V is found in up to three stages, each a ridge regression on what the ones before left over:

    season   one weight for each season of the window and of the horizon, the same for every phase of the season: far
             fewer numbers than L x H (Lin et al. 2024, SparseTSF)
    window   L x H numbers, shared by all columns
    own      L x H numbers for each column

Everything is computed from sums over windows, X^T X and X^T Y, so the length of the series hardly matters.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

from training.forecast.config import SkipConfig

Array = npt.NDArray[np.float64]

# Over windows: of x x^T (L, L) and of x y^T (L, H).
Sums = tuple[Array, Array]

_WINDOWS_AT_ONCE = 4096
# Added to the variance of a window, of standardised values: a window that stands still is not blown up.
VARIANCE_FLOOR = 1e-3


def solve(series: Array, window: int, horizon: int, config: SkipConfig) -> Array:
    """Weights of the linear part.

    Args:
        series: Observations (N, n), none missing.
        window: L.
        horizon: H.
        config: Stages and their penalties.

    Returns:
        Weights (n, H, L) on a window, oldest observation first.

    Raises:
        ValueError: The series is shorter than a window and a horizon.
    """
    count = len(series) - window - horizon + 1
    if count < 1:
        raise ValueError(f"{len(series)} rows are fewer than a window and a horizon")
    sums = [_sums(column, window, horizon, relative=config.relative) for column in series.T]
    gram, cross = total(sums)
    windows = count * len(sums)
    shared = np.zeros((window, horizon))
    if config.period:
        shared += seasonal(gram, cross, config.period, config.ridge * windows)
    shared += ridge(gram, cross - gram @ shared, config.ridge * windows)
    weights = []
    for own_gram, own_cross in sums:
        own = shared
        if config.own:
            own = shared + ridge(own_gram, own_cross - own_gram @ shared, config.own * count)
        if config.relative:
            # From a window less its latest observation to the window itself.
            own = own.copy()
            own[-1] += 1 - own.sum(axis=0)
        weights.append(own.T)
    return np.stack(weights)


def total(sums: Sequence[Sums]) -> Sums:
    """The sums over the windows of all columns."""
    grams, crosses = zip(*sums, strict=True)
    return np.sum(grams, axis=0), np.sum(crosses, axis=0)


def ridge(gram: Array, cross: Array, penalty: float) -> Array:
    """The V (L, H) that makes the sum of (y - V^T x)^2 plus `penalty` times that of V^2 the smallest.

    Args:
        gram: Sum of x x^T, (L, L).
        cross: Sum of x y^T, (L, H).
        penalty: Above 0 unless `gram` has an inverse.
    """
    return np.linalg.solve(gram + penalty * np.eye(len(gram)), cross).astype(np.float64)


def pairs(column: Array, window: int, horizon: int) -> Iterator[tuple[Array, Array]]:
    """Every window (M, L) of a series (N,) and what follows it (M, H), in parts of some thousands."""
    rows = sliding_window_view(column, window + horizon)
    for start in range(0, len(rows), _WINDOWS_AT_ONCE):
        part = rows[start : start + _WINDOWS_AT_ONCE]
        yield part[:, :window], part[:, window:]


def _sums(column: Array, window: int, horizon: int, *, relative: bool) -> Sums:
    gram, cross = np.zeros((window, window)), np.zeros((window, horizon))
    for x, y in pairs(column, window, horizon):
        base = x[:, -1:] if relative else np.zeros((1, 1))
        shifted = x - base
        gram += shifted.T @ shifted
        cross += shifted.T @ (y - base)
    return gram, cross


def seasonal(gram: Array, cross: Array, period: int, penalty: float) -> Array:
    """Weights (L, H) that depend on the season of an observation and of a step only, between equal phases."""
    window, horizon = cross.shape
    seasons = window // period
    firsts = window - seasons * period + np.arange(seasons) * period  # phase 0 of every season
    result = np.zeros((window, horizon))
    for start in range(0, horizon, period):
        steps = range(start, min(horizon, start + period))
        left, right = penalty * np.eye(seasons), np.zeros(seasons)
        for step in steps:
            same = firsts + step - start
            left = left + gram[np.ix_(same, same)]
            right = right + cross[same, step]
        weights = np.linalg.solve(left, right)
        for step in steps:
            result[firsts + step - start, step] = weights
    return result


def residual_quantiles(column: Array, weights: Array, levels: tuple[float, ...]) -> Array:
    """Quantiles (Q, H) of what a linear part (H, L) leaves over, in deviations of each window."""
    horizon, window = weights.shape
    parts = []
    for x, y in pairs(column, window, horizon):
        scale = np.sqrt(x.var(axis=1, keepdims=True) + VARIANCE_FLOOR)
        parts.append((y - x @ weights.T) / scale)
    quantiles: Array = np.quantile(np.concatenate(parts), levels, axis=0)
    return quantiles
