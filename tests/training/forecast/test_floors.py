from __future__ import annotations

import os
from collections.abc import Callable

import msgspec
import numpy as np
import pytest

from tests.training.forecast.conftest import waves
from training.forecast import data
from training.forecast.config import DataConfig, ForecastRun
from training.forecast.data import Series, filled
from training.forecast.floors import floors, measured, measured_pinball, ridge_on_window


def test_errors_are_means_over_windows_steps_and_columns(run: Callable[..., ForecastRun]) -> None:
    series = waves(gaps=0.1)
    z = series.standardised()
    known = filled(z)
    start, stop = series.parts["test"]
    errors = []
    for now in range(start, stop - 5 + 1):  # the first step of a horizon of 5
        for column in range(2):
            error = known[now - 1, column] - z[now : now + 5, column]
            errors.extend(error[~np.isnan(error)])
    found = measured(lambda _, x: np.repeat(x[:, -1:], 5, axis=1), run(), series, "test")
    assert found.mse == pytest.approx(np.mean(np.square(errors)))
    assert found.mae == pytest.approx(np.mean(np.abs(errors)))


def test_a_season_that_repeats_is_known(run: Callable[..., ForecastRun], series: Series) -> None:
    time = np.arange(len(series.values))[:, None]
    repeating = msgspec.structs.replace(series, values=np.sin(time * np.pi / 3 + [0.1, 1.0]))
    values = {(m.name, m.split, m.floor_name): m.value for m in floors(run(), repeating)}
    where = "waves test, load, price"
    assert values["MSE H=5", where, "last season of 6"] == pytest.approx(0, abs=1e-12)
    assert values["MSE H=5", where, "last observation"] > 1
    assert values["MSE H=5", where, "ridge on the last 12"] < 0.01


def test_ridge_knows_a_level_that_is_not_zero(run: Callable[..., ForecastRun]) -> None:
    series = waves()
    shifted = msgspec.structs.replace(series, values=series.values + 1e6)
    levels = [measured(ridge_on_window(run(), s), run(), s, "test").mse for s in (series, shifted)]
    assert levels[0] == pytest.approx(levels[1], rel=1e-3)
    assert levels[0] < 0.5


def test_ridge_knows_nothing_of_the_test_part(run: Callable[..., ForecastRun]) -> None:
    series, other = waves(), waves()
    other.values[slice(*other.parts["test"])] = 1e9
    x = np.random.default_rng(1).standard_normal((3, 12))
    for column in range(2):
        due, found = (ridge_on_window(run(), each)(column, x) for each in (series, other))
        np.testing.assert_array_equal(found, due)


def test_quantiles_of_pure_noise_cost_what_they_must(run: Callable[..., ForecastRun]) -> None:
    noise = np.random.default_rng(1).standard_normal((4000, 2))
    series = msgspec.structs.replace(waves(4000), values=noise)
    nothing = measured_pinball(lambda _, x: np.zeros((len(x), 5)), run(quantiles=(0.5,)), series)
    # Half the mean absolute value of a normal variable around its median, in deviations.
    assert nothing == pytest.approx(0.5 * np.sqrt(2 / np.pi), rel=0.05)


@pytest.mark.skipif(not os.environ.get("SEQSERVE_DATA"), reason="needs the real series")
def test_ridge_on_the_real_series_is_what_others_find(run: Callable[..., ForecastRun]) -> None:
    long = run(horizon=24, window=336)
    series = data.load(DataConfig(name="etth1"))
    found = measured(ridge_on_window(long, series), long, series, "test")
    assert found.mse == pytest.approx(0.318, abs=5e-4)
