"""What a forecaster must beat: ridge regression on the window, the last observation, the last season. All computed."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import msgspec
import numpy as np

from service.contract import Metric
from training.forecast.config import ForecastRun
from training.forecast.data import Array, Series, filled
from training.forecast.skip import Sums, pairs, ridge, total

_SHOWN = 3
_PENALTIES = (1.0, 10.0, 100.0, 1000.0, 10_000.0)


class Errors(msgspec.Struct, frozen=True):
    """Mean squared and mean absolute error over all windows, steps and columns, of standardised values."""

    mse: float
    mae: float


class ErrorSums:
    """Errors of standardised forecasts, added up; what is missing is not counted."""

    def __init__(self) -> None:
        self._squares = self._sizes = 0.0
        self._count = 0

    def add(self, forecast: Array, truth: Array) -> None:
        """Add forecasts and what came, of one shape."""
        error = (forecast - truth)[~np.isnan(truth)]
        self._squares += float(np.square(error).sum())
        self._sizes += float(np.abs(error).sum())
        self._count += error.size

    def errors(self) -> Errors:
        """The means so far."""
        return Errors(self._squares / self._count, self._sizes / self._count)


# From windows (M, L) of the column with this number to forecasts (M, H).
Method = Callable[[int, Array], Array]


def floors(run: ForecastRun, series: Series) -> tuple[Metric, ...]:
    """MSE and MAE of every simple method on valid and test, under the names of `named`; pinball loss of ridge."""
    horizon, period, window = run.model.horizon, series.period, run.model.window
    methods: dict[str, Method] = {f"ridge on the last {window}": ridge_on_window(run, series)}
    methods["last observation"] = lambda _, x: np.repeat(x[:, -1:], horizon, axis=1)
    if period <= window:
        place = np.arange(horizon) % period - period
        methods[f"last season of {period}"] = lambda _, x: x[:, place]
    errors = [
        msgspec.structs.replace(metric, floor_name=name)
        for name, method in methods.items()
        for part in ("test", "valid")
        for metric in named(run, series, part, measured(method, run, series, part))
    ]
    (ridge_name, method), *_ = methods.items()
    pinball = Metric(
        name=f"pinball H={horizon}",
        split=split(series, "test"),
        value=measured_pinball(method, run, series),
        floor_name=f"{ridge_name}, with quantiles of its errors on train",
    )
    return (*errors, pinball)


def named(run: ForecastRun, series: Series, part: str, errors: Errors) -> tuple[Metric, ...]:
    """Errors as metrics, by horizon, part and columns."""
    where = split(series, part)
    return (
        Metric(name=f"MSE H={run.model.horizon}", split=where, value=errors.mse),
        Metric(name=f"MAE H={run.model.horizon}", split=where, value=errors.mae),
    )


def split(series: Series, part: str) -> str:
    """Name of a part of a series, with its columns or their number."""
    columns = series.columns
    shown = ", ".join(columns) if len(columns) <= _SHOWN else f"{len(columns)} columns"
    return f"{series.dataset.name} {part}, {shown}"


def measured(method: Method, run: ForecastRun, series: Series, part: str) -> Errors:
    """Errors of a method on every window whose horizon lies in a part; windows reach back before it."""
    sums = ErrorSums()
    for column, x, y in _windows(run, series, part):
        sums.add(method(column, x), y)
    return sums.errors()


def measured_pinball(method: Method, run: ForecastRun, series: Series) -> float:
    """Mean pinball loss on test of a method with the quantiles of its errors on train around every forecast."""
    levels = np.array(run.model.quantiles)[:, None, None]
    left: dict[int, list[Array]] = {}
    for column, x, y in _windows(run, series, "train"):
        left.setdefault(column, []).append(y - method(column, x))
    offsets = {
        column: np.nanquantile(np.concatenate(parts), run.model.quantiles, axis=0)[:, None]
        for column, parts in left.items()
    }
    total, known = 0.0, 0
    for column, x, y in _windows(run, series, "test"):
        error = y - (method(column, x) + offsets[column])  # (Q, M, H)
        total += float(np.nansum(np.maximum(levels * error, (levels - 1) * error)))
        known += int((~np.isnan(error)).sum())
    return total / known


def ridge_on_window(run: ForecastRun, series: Series) -> Method:
    """Ridge regression with a constant: shared by all columns or one for each, whichever is better on valid.

    The penalty is chosen on valid too.
    """
    best: tuple[float, Method] | None = None
    sums = [_sums(run, series, column) for column in range(len(series.columns))]
    together = [total(sums)] * len(sums)
    for solved in (together, sums):
        for penalty in _PENALTIES:
            method = _linear([_solution(*each, penalty) for each in solved])
            error = measured(method, run, series, "valid").mse
            if best is None or error < best[0]:
                best = (error, method)
    assert best is not None
    return best[1]


def _solution(gram: Array, cross: Array, penalty: float) -> Array:
    # The constant stands last and is not held back: next to any penalty, 1 is as good as 0 there.
    centred = gram[:-1, :-1] - np.outer(gram[:-1, -1], gram[-1, :-1]) / gram[-1, -1]
    weights = ridge(
        centred, cross[:-1] - np.outer(gram[:-1, -1], cross[-1]) / gram[-1, -1], penalty
    )
    constant = (cross[-1] - gram[-1, :-1] @ weights) / gram[-1, -1]
    return np.concatenate([weights, constant[None]])


def _linear(weights: list[Array]) -> Method:
    return lambda column, x: x @ weights[column][:-1] + weights[column][-1]


def _sums(run: ForecastRun, series: Series, column: int) -> Sums:
    window, horizon = run.model.window, run.model.horizon
    gram, cross = np.zeros((window + 1, window + 1)), np.zeros((window + 1, horizon))
    train = filled(series.standardised()[slice(*series.parts["train"]), column : column + 1])[:, 0]
    for x, y in pairs(train, window, horizon):
        one = np.concatenate([x, np.ones((len(x), 1))], axis=1)
        gram += one.T @ one
        cross += one.T @ y
    return gram, cross


def _windows(run: ForecastRun, series: Series, part: str) -> Iterator[tuple[int, Array, Array]]:
    """Columns' windows (M, L), gaps filled, and what followed (M, H), gaps as they are."""
    start, stop = series.parts[part]
    window, horizon = run.model.window, run.model.horizon
    values = series.standardised()
    known = filled(values)
    for column in range(values.shape[1]):
        rows = slice(max(0, start - window), stop)
        x_parts = pairs(known[rows, column], window, horizon)
        y_parts = pairs(values[rows, column], window, horizon)
        for (x, _), (_, y) in zip(x_parts, y_parts, strict=True):
            yield column, x, y
